// The page of `unils study`: a rater watches pairs of clips and says, by each criterion, which side is better.
import { Clock } from "../clock";
import { blobOf, type HeadData, type Packed } from "../data";
import { made } from "../dom";
import { type HeadArrays, unpackHead } from "../pose";
import { Figure, Stage } from "../stage";
import css from "../style.css?inline";
import { Track, unpackTracks } from "../track";
import { plan, type Question, type Side, type System } from "./plan";
import studyCss from "./study.css?inline";

const SIDES: Side[] = ["left", "right"];
const WATCHED = 0.95; // of a clip, played before its answers are taken

interface Clip {
  name: string;
  numFrames: number;
  audio: { type: string; data: string };
  motions: Record<System, Packed>; // [P, T, K + 8]
}

interface StudyData {
  study: { id: string; systems: Record<System, string>; seed: number; clips: string[]; num_checks: number };
  criteria: { name: string; question: string }[];
  title: string;
  fps: number;
  notices: string[];
  head: HeadData;
  numExpression: number;
  clips: Clip[];
  checks: { clip: number; system: System }[];
}

interface Answer {
  clip: string;
  check: System | null;
  left: string;
  right: string;
  choices: Record<string, Side>;
  seconds: number; // from the clip's first appearance
}

interface Answers {
  format: "unils-study-answers";
  study: StudyData["study"] & { criteria: string[] };
  rater: string;
  started: string;
  finished: string | null;
  answers: Answer[];
}

/** What a rater has answered, kept by the browser until it is downloaded. */
class Session {
  readonly answers: Answers;
  private readonly key: string;

  constructor(data: StudyData, rater: string) {
    this.key = `unils-study:${data.study.id}:${rater}`;
    const kept = localStorage.getItem(this.key);
    this.answers = kept
      ? (JSON.parse(kept) as Answers)
      : {
          format: "unils-study-answers",
          study: { ...data.study, criteria: data.criteria.map(({ name }) => name) },
          rater,
          started: new Date().toISOString(),
          finished: null,
          answers: [],
        };
  }

  add(answer: Answer, last: boolean): void {
    this.answers.answers.push(answer);
    if (last) this.answers.finished = new Date().toISOString();
    localStorage.setItem(this.key, JSON.stringify(this.answers));
  }
}

/** The heads of both sides; the tracks of a question are handed in. */
class Heads {
  readonly stage = made("div", { class: "stage" });
  tracks: Track[][] = [[], []]; // of each side, one a person
  private readonly canvas = made("canvas", { class: "heads", "aria-hidden": "true" });
  private readonly figures: Figure[][];
  private readonly view: Stage | null = null;
  private drawn = -1; // the time of the last picture; -1: what it shows has changed since

  constructor(head: HeadArrays, people: number) {
    const tiles = SIDES.map(() => Array.from({ length: people }, () => made("div", { class: "tile" })));
    this.stage.style.setProperty("--columns", "2");
    this.stage.classList.toggle("two", people === 2);
    this.stage.append(this.canvas);
    SIDES.forEach((side, s) => {
      tiles[s]![0]!.append(made("div", { class: "label" }, made("b", {}, side)));
      this.stage.append(made("div", { class: "side" }, ...tiles[s]!));
    });
    this.figures = tiles.map((column) => column.map((tile, p) => new Figure(head, p, tile)));
    try {
      this.view = new Stage(this.stage, this.canvas, head, this.figures.flat(), () => (this.drawn = -1));
    } catch {
      this.stage.replaceChildren(made("p", { class: "failure" }, "This browser has no WebGL; please use another one."));
    }
    window.addEventListener("resize", () => (this.drawn = -1));
  }

  show(tracks: Track[][]): void {
    this.tracks = tracks;
    this.figures.forEach((column, s) =>
      column.forEach((figure, p) => (figure.tile.style.display = tracks[s]![p] ? "" : "none")),
    );
    this.view?.reset();
    this.drawn = -1;
  }

  draw(time: number): void {
    if (time === this.drawn) return;
    this.tracks.forEach((side, s) => side.forEach((track, p) => this.figures[s]![p]!.pose(track.at(time))));
    this.view?.draw();
    this.drawn = time;
  }
}

/** The motion of a question's two sides. */
async function tracksOf(clip: Clip, question: Question, fps: number): Promise<Track[][]> {
  const of = (system: System) => unpackTracks(clip.motions[system], clip.numFrames, fps);
  if (!question.check) return Promise.all([of(question.left as System), of(question.right as System)]);
  const moving = await of(question.check);
  const rest = (track: Track) => new Track(new Float32Array(track.channels * clip.numFrames), clip.numFrames, fps);
  const still = moving.map(rest);
  return question.left === "moving" ? [moving, still] : [still, moving];
}

class Study {
  private readonly place = made("input", { id: "place", "aria-label": "time", type: "range", max: "1", step: "any" });
  private readonly play = made("button", { id: "play", type: "button", "aria-label": "play or pause" }, "▶");
  private readonly next = made("button", { id: "next", type: "button" }, "Next");
  private readonly hint = made("span", { class: "hint" });
  private readonly progress = made("p", { id: "progress" });
  private readonly form = made("form", {});
  private readonly page = made("div", { id: "questions" });
  private clock: Clock | null = null;
  private question: Question | null = null;
  private since = 0;

  constructor(
    private readonly data: StudyData,
    private readonly heads: Heads,
    private readonly session: Session,
    private readonly questions: Question[],
  ) {
    for (const { name, question } of data.criteria) {
      const choices = SIDES.map((side) =>
        made("label", {}, made("input", { type: "radio", name, value: side, id: `${name}-${side}` }), ` ${side}`),
      );
      this.form.append(made("fieldset", {}, made("span", {}, question), ...choices));
    }
    const bar = made("div", { class: "bar" }, this.play, this.place);
    this.page.append(this.progress, heads.stage, bar, this.form, made("div", { class: "bar" }, this.next, this.hint));
    document.body.append(this.page);
    this.play.addEventListener("click", () => {
      if (this.clock?.playing) this.clock.pause();
      else void this.clock?.play();
    });
    this.place.addEventListener("input", () => {
      this.clock?.seek(Number(this.place.value) * this.clock.duration);
    });
    this.next.addEventListener("click", () => void this.answer());
    requestAnimationFrame(() => this.draw());
  }

  /** The chosen side of each criterion that has one. */
  private choices(): Record<string, Side> {
    return Object.fromEntries(new FormData(this.form)) as Record<string, Side>;
  }

  /** Whether the clip was played: a jump to its end leaves a gap. */
  private get seen(): boolean {
    const played = this.clock?.audio?.played;
    if (!played) return false;
    const seconds = Array.from({ length: played.length }, (_, i) => played.end(i) - played.start(i));
    return seconds.reduce((sum, one) => sum + one, 0) >= WATCHED * this.clock!.duration;
  }

  private get complete(): boolean {
    return this.seen && Object.keys(this.choices()).length === this.data.criteria.length;
  }

  async ask(): Promise<void> {
    const done = this.session.answers.answers.length;
    const question = this.questions[done];
    if (!question) return this.finish();
    const clip = this.data.clips[question.clip]!;
    this.heads.show(await tracksOf(clip, question, this.data.fps));
    if (this.clock?.audio) URL.revokeObjectURL(this.clock.audio.src);
    this.clock = new Clock(clip.numFrames / this.data.fps, new Audio(URL.createObjectURL(blobOf(clip.audio))));
    this.form.reset();
    this.progress.textContent = `Pair ${done + 1} of ${this.questions.length}. Both sides hear the same sound.`;
    this.since = performance.now();
    this.question = question;
  }

  private async answer(): Promise<void> {
    const { question } = this;
    if (!question || !this.complete) return;
    this.clock!.pause();
    this.question = null; // a second click finds nothing to answer
    const { check, left, right } = question;
    const seconds = Math.round((performance.now() - this.since) / 100) / 10;
    const answer = { clip: this.data.clips[question.clip]!.name, check, left, right, choices: this.choices(), seconds };
    this.session.add(answer, this.session.answers.answers.length + 1 === this.questions.length);
    await this.ask();
  }

  private finish(): void {
    this.clock = null;
    const { answers } = this.session;
    const text = `${JSON.stringify(answers, null, 1)}\n`;
    const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const safe = answers.rater.replace(/[^\p{L}\p{N}_-]+/gu, "_");
    const link = made("a", { id: "download", href, download: `answers_${answers.study.id}_${safe}.json` }, "Download");
    this.page.replaceChildren(
      made("p", { id: "done" }, "Thank you. Please download your answers and send the file to who asked you:"),
      link,
    );
  }

  private draw(): void {
    const { clock } = this;
    if (clock) {
      const time = clock.now();
      this.heads.draw(time);
      this.place.value = String(time / clock.duration);
      this.play.textContent = clock.playing ? "❚❚" : "▶";
      this.next.disabled = !this.complete;
      const missing = this.seen ? "Please answer every line." : "Please play the clip to its end.";
      this.hint.textContent = this.complete ? "" : missing;
    }
    requestAnimationFrame(() => this.draw());
  }

  /** For scripts and tests: what the rater sees now. */
  state(): object {
    const { clock, heads, data } = this;
    const time = clock?.now() ?? 0;
    return {
      asked: this.session.answers.answers.length,
      ready: this.question !== null,
      total: this.questions.length,
      time,
      playing: clock?.playing ?? false,
      seen: this.seen,
      jaws: heads.tracks.map((side) => side.map((track) => Array.from(track.curve(data.numExpression + 3)))),
    };
  }
}

async function start(): Promise<void> {
  document.head.append(made("style", {}, css + studyCss));
  const data = JSON.parse(document.getElementById("page-data")!.textContent!) as StudyData;
  const name = made("input", { id: "rater", type: "text", maxlength: "60", autocomplete: "off", required: "" });
  name.value = new URLSearchParams(location.search).get("rater") ?? "";
  const begin = made("button", { id: "begin", type: "submit" }, "Begin");
  const intro = made(
    "form",
    { id: "intro" },
    made("p", {}, "You will see pairs of animated conversations, left and right, with the same sound. Play each pair"
      + " to its end, as often as you like, and say for each line which side is better. Use headphones."),
    made("ul", {}, ...data.criteria.map(({ question }) => made("li", {}, question))),
    made("p", {}, "If you close the page, it goes on where you were when you give the same name."),
    made("p", {}, made("label", {}, "Your name or number ", name), begin),
  );
  const notices = made("div", { class: "notices" }, ...data.notices.map((text) => made("p", {}, text)));
  document.body.append(made("h1", {}, data.title), notices, intro);
  const head = await unpackHead(data.head, data.numExpression);
  intro.addEventListener("submit", (event) => {
    event.preventDefault();
    const rater = name.value.trim();
    if (!rater) return;
    intro.remove();
    const people = Math.max(...data.clips.map((clip) => clip.motions.a.shape[0]!));
    const questions = plan(data.clips.length, data.checks, data.study.seed, rater);
    const study = new Study(data, new Heads(head, people), new Session(data, rater), questions);
    Object.assign(window, { unils: { state: () => study.state() } });
    void study.ask();
  });
}

void start().catch((error: unknown) => {
  document.body.append(`This page cannot be shown: ${String(error)}`);
  throw error;
});
