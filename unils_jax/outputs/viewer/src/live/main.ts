// The live page: the user's microphone goes to a server, and two faces come back.
import { type HeadData } from "../data";
import { made } from "../dom";
import { type HeadArrays, unpackHead } from "../pose";
import { Figure, Stage } from "../stage";
import css from "../style.css?inline";
import { Connection, type Ready } from "./connection";
import liveCss from "./live.css?inline";
import { percentile, Playout } from "./playout";
import { loudness, Sound } from "./sound";

const SHOWN_S = 10; // that latencies are of
const SAMPLES_PER_FRAME = 640;
const NAMES = ["avatar", "you"];
const PAUSE_HINT = "paused: nothing is sent";

interface LiveData {
  head: HeadData;
  numExpression: number;
  notices: string[];
  server: string;
}

interface Drawn {
  time: number; // of drawing, seconds
  frame: number;
  latency: number; // sound in to motion drawn, seconds
  jaw: number[]; // of both people, radians
  head: number[][]; // rotations of both people
}

/** What a picture shows. */
interface Posed {
  conversation: Conversation;
  at: number; // when it was begun
  frame: number;
  motion: Float32Array[];
}

/** The address of the streams: what `?server=` says, else what the page was built for, else where it is from. */
function address(data: LiveData): string {
  const base = new URLSearchParams(location.search).get("server") || data.server;
  return `${(base || location.origin.replace(/^http/, "ws")).replace(/\/$/, "")}/v1/stream`;
}

/** What is on the page. */
class Controls {
  readonly start = made("button", { id: "start", type: "button" }, "Start");
  readonly pause = made("button", { id: "pause", type: "button", disabled: "" }, "Pause");
  readonly file = made("input", { id: "file", type: "file", accept: "audio/*", disabled: "" });
  readonly token = made("input", { id: "token", type: "password", size: "12", autocomplete: "off" });
  readonly smooth = made("input", { id: "smooth", type: "checkbox" });
  readonly latency = made("span", { id: "latency" });
  readonly status = made("p", { id: "status", role: "status" }, "Press Start and speak: the avatar listens.");
  readonly meters = NAMES.map((name) => made("meter", { min: "0", max: "1", title: `${name}: loudness` }));
  readonly tiles = NAMES.map((name, p) =>
    made("div", { class: "tile" }, made("div", { class: `label person${p}` }, made("b", {}, name), this.meters[p]!)),
  );
  readonly canvas = made("canvas", { class: "heads", "aria-hidden": "true" });
  readonly stage = made("div", { class: "stage" }, this.canvas, ...this.tiles);

  constructor(notices: string[]) {
    this.stage.style.setProperty("--columns", "2");
    this.token.value = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
    document.body.append(
      made("h1", {}, "UniLS, live"),
      made("div", { class: "notices" }, ...notices.map((text) => made("p", {}, text))),
      this.stage,
      made(
        "div",
        { class: "bar" },
        this.start,
        this.pause,
        made("label", {}, "the avatar speaks a file ", this.file),
        made("label", {}, this.smooth, "smooth, 0.16 s later"),
        made("label", {}, "token ", this.token),
        this.latency,
      ),
      this.status,
    );
  }
}

/** A conversation from Start to Stop. */
class Conversation {
  readonly drawn: Drawn[] = [];
  readonly levels: number[][] = []; // loudness of both tracks, by frame
  playout: Playout | null = null;
  private readonly partial: number[][] = [];
  private sentAt = 0; // number of the first sample that was sent

  constructor(
    readonly sound: Sound,
    readonly connection: Connection,
  ) {}

  take(tracks: Float32Array[]): void {
    if (!this.playout) {
      this.sentAt = this.sound.numSamples;
      return;
    }
    tracks.forEach((samples, track) => this.connection.send(track, samples));
    this.partial.push(tracks.map(loudness));
    if (this.partial.length < 2) return;
    const [a, b] = this.partial.splice(0, 2);
    this.levels.push(a!.map((level, track) => Math.hypot(level, b![track]!) / Math.SQRT2));
  }

  /** When a frame's sound was recorded. */
  recorded(frame: number): number {
    return this.sound.recorded(this.sentAt + frame * SAMPLES_PER_FRAME);
  }

  place(time: number): number {
    return (this.sound.sampleAt(time) - this.sentAt) / SAMPLES_PER_FRAME;
  }
}

class Page {
  private readonly controls: Controls;
  private readonly figures: Figure[];
  private readonly view: Stage | null;
  private conversation: Conversation | null = null;
  private busy = false;
  private heard: number[] = []; // loudness of both tracks
  private posed: Posed | null = null; // of the picture that is being drawn

  constructor(
    private readonly data: LiveData,
    arrays: HeadArrays,
  ) {
    this.controls = new Controls(data.notices);
    const { start, pause, file, stage, canvas, tiles } = this.controls;
    this.figures = tiles.map((tile, p) => new Figure(arrays, p, tile));
    this.figures.forEach((figure) => figure.pose(new Float32Array(data.numExpression + 8)));
    let view: Stage | null = null;
    try {
      view = new Stage(stage, canvas, arrays, this.figures, () => undefined, true);
    } catch {
      stage.replaceChildren(made("p", { class: "failure" }, "This browser has no WebGL, so the heads are not drawn."));
    }
    this.view = view;
    start.addEventListener("click", () => void (this.conversation ? this.stop("") : this.start()));
    pause.addEventListener("click", () => void this.toggle());
    file.addEventListener("change", () => void this.playFile());
    requestAnimationFrame(this.draw);
  }

  private async start(): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    const { controls } = this;
    controls.status.textContent = "Connecting ...";
    try {
      const sound = await Sound.start((tracks) => {
        this.heard = tracks.map(loudness);
        this.conversation?.take(tracks);
      });
      const connection = new Connection(address(this.data), controls.token.value.trim(), controls.smooth.checked, {
        ready: (answer: Ready) => {
          if (!this.conversation) return;
          this.conversation.playout = new Playout(answer.fps);
          const window = (answer.window_frames + answer.lookahead_frames) / answer.fps;
          controls.status.textContent = `Windows and look-ahead of ${window.toFixed(2)} s.`;
        },
        motion: (first, people, frames, values) => {
          const { conversation } = this;
          if (!conversation?.playout) return;
          const now = performance.now() / 1000;
          conversation.playout.push(first, people, frames, values, conversation.recorded(first), now);
          conversation.sound.setDelay(conversation.playout.delay);
        },
        closed: (reason) => void this.stop(reason),
      });
      this.conversation = new Conversation(sound, connection);
      this.view?.pace(null);
      controls.start.textContent = "Stop";
      controls.smooth.disabled = true;
      controls.pause.disabled = controls.file.disabled = false;
    } catch (error) {
      controls.status.textContent = `No microphone: ${String(error)}`;
    }
    this.busy = false;
  }

  private async stop(reason: string): Promise<void> {
    const { conversation, controls } = this;
    if (!conversation) return;
    this.conversation = null;
    conversation.connection.close();
    controls.start.textContent = "Start";
    controls.smooth.disabled = false;
    controls.pause.textContent = "Pause";
    controls.pause.disabled = controls.file.disabled = true;
    controls.status.textContent = reason ? `Ended: ${reason}` : "Ended.";
    await conversation.sound.stop();
  }

  private async toggle(): Promise<void> {
    const { conversation, controls } = this;
    if (!conversation) return;
    const wasPaused = conversation.sound.paused;
    await (wasPaused ? conversation.sound.resume() : conversation.sound.pause());
    this.view?.pace(null);
    controls.pause.textContent = wasPaused ? "Pause" : "Go on";
    controls.status.textContent = wasPaused ? "" : PAUSE_HINT;
  }

  private async playFile(): Promise<void> {
    const { conversation, controls } = this;
    const file = controls.file.files?.[0];
    if (!conversation || !file) return;
    try {
      await conversation.sound.play(file, () => (controls.status.textContent = ""));
      controls.status.textContent = `The avatar speaks ${file.name}.`;
    } catch {
      controls.status.textContent = `${file.name} is no audio that this browser plays.`;
    }
  }

  /** The coefficients that the head takes, of all 108. */
  private used(motion: Float32Array): Float32Array {
    const K = this.data.numExpression;
    const values = new Float32Array(K + 8);
    values.set(motion.subarray(0, K));
    values.set(motion.subarray(100), K);
    return values;
  }

  private readonly draw = (): void => {
    requestAnimationFrame(this.draw);
    const { conversation } = this;
    const now = performance.now() / 1000;
    const playout = conversation?.playout;
    // A picture is drawn when the browser asks for the next one: drawing takes its time, too.
    if (this.posed && this.posed.conversation === conversation) this.note(now, this.posed);
    this.posed = null;
    if (conversation && playout && !conversation.sound.paused) {
      const shown = playout.at(conversation.place(now - playout.delay));
      if (shown) {
        shown.motion.forEach((motion, p) => this.figures[p]?.pose(this.used(motion)));
        this.posed = { conversation, at: now, ...shown };
      }
    }
    // Here and not with every 20 ms of sound: each change makes the browser paint.
    this.heard.forEach((level, p) => (this.controls.meters[p]!.value = Math.sqrt(Math.min(1, 4 * level))));
    this.view?.draw();
  };

  private note(now: number, { conversation, at, frame, motion }: Posed): void {
    const { drawn } = conversation;
    if (document.visibilityState === "visible") this.view?.pace(now - at);
    drawn.push({
      time: now,
      frame,
      latency: now - conversation.recorded(frame),
      jaw: motion.map((values) => values[103]!),
      head: motion.map((values) => Array.from(values.subarray(100, 103))),
    });
    while (drawn[0]!.time < now - SHOWN_S) drawn.shift();
    const [p50, p95] = [0.5, 0.95].map((share) => percentile(drawn.map((d) => d.latency), share)!);
    this.controls.latency.textContent = `sound to motion: ${p50!.toFixed(2)} s, p95 ${p95!.toFixed(2)} s`;
  }

  /** For scripts and tests: what the page shows. */
  state(): object {
    const { conversation, controls } = this;
    const latencies = conversation?.drawn.map((d) => d.latency) ?? [];
    return {
      connected: !!conversation?.playout,
      paused: conversation?.sound.paused ?? false,
      status: controls.status.textContent,
      p50: percentile(latencies, 0.5),
      p95: percentile(latencies, 0.95),
      delay: conversation?.playout?.delay ?? null,
      late: conversation?.playout?.late ?? 0,
      drawn: conversation?.drawn ?? [],
      levels: conversation?.levels ?? [],
    };
  }
}

async function begin(): Promise<void> {
  // Sheets that a script makes are allowed by the strictest policy; style elements are not.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css + liveCss);
  document.adoptedStyleSheets = [sheet];
  const data = JSON.parse(document.getElementById("page-data")!.textContent!) as LiveData;
  const page = new Page(data, await unpackHead(data.head, data.numExpression));
  Object.assign(window, { unils: { state: () => page.state() } });
}

void begin().catch((error: unknown) => {
  document.body.append(`This page cannot be shown: ${String(error)}`);
  throw error;
});
