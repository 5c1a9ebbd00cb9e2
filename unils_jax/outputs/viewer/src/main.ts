// The page of `unils view`: reads what is embedded, builds the controls, and draws whenever something has changed.
import { Clock } from "./clock";
import { blobOf, type PageData, unpack } from "./data";
import { made as element } from "./dom";
import { unpackHead } from "./pose";
import { Figure, Stage } from "./stage";
import css from "./style.css?inline";
import { type Lane, Timeline } from "./timeline";
import { type Track, unpackTracks } from "./track";

const COLORS = ["--first", "--second"];
const DEGREES = 180 / Math.PI;
const SPEEDS = [0.25, 0.5, 1, 1.5, 2];
const KEYS: [string, string][] = [
  ["Space", "play or pause"],
  ["← →", "a frame back or on; with Shift a second"],
  ["Home, End", "to the beginning, to the end"],
  ["- +", "slower, faster"],
  ["S", "smooth the motion, where it is raw"],
  ["T", "show or hide the truth"],
  ["R", "look from the front again"],
  ["D", "dark or light"],
  ["M", "sound off or on"],
];

/** Lanes of the timeline with a scale that fits what is shown. */
function lanesOf(page: PageData, shown: Track[]): Lane[] {
  const K = page.numExpression;
  const extent = (channels: number[]) => {
    const values = shown.flatMap((track) => channels.flatMap((channel) => Array.from(track.curve(channel))));
    return values.reduce(([low, high], v) => [Math.min(low!, v), Math.max(high!, v)], [Infinity, -Infinity]);
  };
  const [jawLow, jawHigh] = extent([K + 3]);
  const [headLow, headHigh] = extent([K, K + 1, K + 2]);
  const reach = Math.max(Math.abs(headLow!), Math.abs(headHigh!), 0.05) * DEGREES;
  const lanes: Lane[] = [
    {
      label: "jaw",
      height: 40,
      curves: [{ channels: [K + 3], gain: DEGREES }],
      low: Math.min(jawLow!, 0) * DEGREES,
      high: Math.max(jawHigh!, 0.05) * DEGREES,
    },
  ];
  if (page.blink) {
    const { channels, full } = page.blink;
    lanes.push({ label: "lids", height: 24, curves: [{ channels, gain: 1 / full }], low: -0.1, high: 1.1 });
  }
  lanes.push({
    label: "head",
    height: 44,
    curves: [K + 1, K, K + 2].map((channel) => ({ channels: [channel], gain: DEGREES })),
    low: -reach,
    high: reach,
  });
  return lanes;
}

async function start(): Promise<void> {
  document.head.append(element("style", {}, css));
  const page = JSON.parse(document.getElementById("page-data")!.textContent!) as PageData;
  const [arrays, raw, rawTruth, peaks, speaking] = await Promise.all([
    unpackHead(page.head, page.numExpression),
    unpackTracks(page.motion, page.numFrames, page.fps),
    page.truth ? unpackTracks(page.truth, page.numFrames, page.fps) : null,
    Promise.all(page.people.map((person) => (person.peaks ? unpack(person.peaks) : null))),
    Promise.all(page.people.map((person) => (person.speaking ? unpack(person.speaking) : null))),
  ]);
  const duration = page.numFrames / page.fps;
  const audio = page.audio ? new Audio(URL.createObjectURL(blobOf(page.audio))) : null;
  if (audio) audio.preload = "auto";
  const clock = new Clock(duration, audio);

  const canvas = element("canvas", { class: "heads", "aria-hidden": "true" });
  const stage = element("div", { class: "stage" }, canvas);
  const sets = rawTruth ? [raw, rawTruth] : [raw];
  const figures: Figure[] = [];
  const badges: HTMLElement[] = [];
  sets.forEach((set, row) =>
    set.forEach((_, p) => {
      const badge = element("span", { class: "role" });
      const name = page.people[p]!.name + (rawTruth ? (row ? ", truth" : ", predicted") : "");
      const label = element("div", { class: "label" }, element("b", { style: `color: var(${COLORS[p % 2]})` }, name), badge);
      const tile = element("div", { class: row ? "tile truth" : "tile" }, label);
      stage.append(tile);
      badges.push(badge);
      figures.push(new Figure(arrays, p, tile));
    }),
  );
  stage.style.setProperty("--columns", String(raw.length === 1 ? sets.length : raw.length));

  const play = element("button", { id: "play", type: "button", "aria-label": "play" }, "▶");
  const clockText = element("span", { id: "time" });
  const speed = element("select", { id: "speed", title: "speed", "aria-label": "speed" });
  for (const s of SPEEDS) speed.append(element("option", { value: String(s) }, `${s}×`));
  speed.value = "1";
  const box = (id: string, text: string, on: boolean) => {
    const input = element("input", { id, type: "checkbox" });
    input.checked = on;
    return { input, label: element("label", {}, input, text) };
  };
  const smooth = box("smooth", "smooth", false);
  const truth = box("truth", "truth", true);
  const sound = box("sound", "sound", true);
  const front = element("button", { id: "front", type: "button" }, "front view");
  const theme = element("button", { id: "theme", type: "button" }, "dark / light");
  const help = element("details", { class: "help" }, element("summary", {}, "keys"));
  for (const [keys, what] of KEYS) help.append(element("div", {}, element("kbd", {}, keys), ` ${what}`));
  const bar = element("div", { class: "bar" }, play, clockText, speed);
  if (page.smoothing) bar.append(smooth.label);
  if (rawTruth) bar.append(truth.label);
  if (audio) bar.append(sound.label);
  bar.append(front, theme, help);
  const timelineCanvas = element("canvas", {
    class: "timeline",
    role: "slider",
    tabindex: "0",
    "aria-label": "time",
    "aria-valuemin": "0",
    "aria-valuemax": duration.toFixed(2),
  });
  const notices = element("div", { class: "notices" }, ...page.notices.map((text) => element("p", {}, text)));
  document.body.append(element("h1", {}, page.title), notices, stage, bar, timelineCanvas);

  let changed = true;
  let shown = raw;
  let shownTruth = rawTruth;
  const touch = () => (changed = true);
  let view: Stage | null = null;
  try {
    view = new Stage(stage, canvas, arrays, figures, touch);
  } catch {
    stage.replaceChildren(element("p", { class: "failure" }, "This browser has no WebGL, so the heads are not drawn."));
  }
  const seek = (time: number) => {
    clock.seek(time);
    touch();
  };
  const rows = page.people.map((person, p) => ({
    name: person.name,
    color: COLORS[p % 2]!,
    track: raw[p]!,
    truth: rawTruth ? rawTruth[p]! : null,
    peaks: peaks[p]!,
    speaking: speaking[p]!,
  }));
  const lanes = lanesOf(page, [...raw, ...(rawTruth ?? [])]);
  const timeline = new Timeline(timelineCanvas, rows, lanes, duration, seek);

  const toggle = () => {
    if (clock.playing) clock.pause();
    else void clock.play();
    touch();
  };
  const choose = () => {
    const { smoothing } = page;
    const ready = (set: Track[] | null) =>
      set && smoothing && smooth.input.checked ? set.map((track) => track.smoothed(smoothing)) : set;
    shown = ready(raw)!;
    shownTruth = ready(rawTruth);
    stage.classList.toggle("plain", !truth.input.checked);
    timeline.setTracks(shown, shown.map((_, p) => (shownTruth && truth.input.checked ? shownTruth[p]! : null)));
    touch();
  };
  const setSpeed = (step: number) => {
    const next = SPEEDS.indexOf(clock.speed) + step;
    const value = step === 0 ? Number(speed.value) : SPEEDS[Math.min(Math.max(next, 0), SPEEDS.length - 1)]!;
    clock.setSpeed(value);
    speed.value = String(value);
  };
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const flip = () => {
    const { style } = document.documentElement;
    const dark = style.colorScheme ? style.colorScheme === "dark" : preference.matches;
    style.colorScheme = dark ? "light" : "dark";
    timeline.invalidate();
    touch();
  };
  const press = (input: HTMLInputElement) => {
    input.checked = !input.checked;
    input.dispatchEvent(new Event("change"));
  };
  play.addEventListener("click", toggle);
  speed.addEventListener("change", () => setSpeed(0));
  smooth.input.addEventListener("change", choose);
  truth.input.addEventListener("change", choose);
  sound.input.addEventListener("change", () => audio && (audio.muted = !sound.input.checked));
  front.addEventListener("click", () => view?.reset());
  theme.addEventListener("click", flip);
  window.addEventListener("resize", touch);
  preference.addEventListener("change", () => {
    timeline.invalidate();
    touch();
  });
  const frame = 1 / page.fps;
  const actions: Record<string, (event: KeyboardEvent) => void> = {
    " ": toggle,
    k: toggle,
    arrowleft: (event) => seek(clock.now() - (event.shiftKey ? 1 : frame)),
    arrowright: (event) => seek(clock.now() + (event.shiftKey ? 1 : frame)),
    home: () => seek(0),
    end: () => seek(duration),
    "-": () => setSpeed(-1),
    "+": () => setSpeed(1),
    "=": () => setSpeed(1),
    s: () => page.smoothing && press(smooth.input),
    t: () => rawTruth && press(truth.input),
    r: () => view?.reset(),
    d: flip,
    m: () => press(sound.input),
  };
  document.addEventListener("keydown", (event) => {
    const action = actions[event.key.toLowerCase()];
    const typing = event.target instanceof HTMLSelectElement && event.key !== " ";
    if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action(event);
    touch();
  });

  // What was drawn last: the time of the motion, and the audio's time at that moment.
  const drawn = { time: -1, audio: -1, motions: [] as Float32Array[] };
  let before: number | null = null;
  const draw = () => {
    const time = clock.now();
    const wall = performance.now() / 1000;
    const quality = clock.playing ? (before === null ? 0 : wall - before) : null;
    if (before !== null && quality === null) changed = true; // it has stopped: once more in full detail
    before = clock.playing ? wall : null;
    view?.pace(quality);
    if (time !== drawn.time || changed || clock.playing) {
      changed = false;
      drawn.time = time;
      drawn.audio = audio ? audio.currentTime : time;
      drawn.motions = [...shown, ...(shownTruth ?? [])].map((track) => track.at(time));
      drawn.motions.forEach((motion, i) => figures[i]!.pose(motion));
      view?.draw();
      timeline.draw(time);
      const at = Math.min(Math.floor(time * page.fps), page.numFrames - 1);
      badges.forEach((badge, i) => {
        const mask = speaking[i % raw.length];
        badge.textContent = mask ? (mask[at] ? "speaking" : "listening") : "";
      });
      clockText.textContent = `${time.toFixed(2)} / ${duration.toFixed(2)} s`;
      timelineCanvas.setAttribute("aria-valuenow", time.toFixed(2));
      play.textContent = clock.playing ? "❚❚" : "▶";
      play.setAttribute("aria-label", clock.playing ? "pause" : "play");
    }
    requestAnimationFrame(draw);
  };
  choose();
  requestAnimationFrame(draw);

  const K = page.numExpression;
  const people = () =>
    drawn.motions.map((motion) => ({
      head: Array.from(motion.subarray(K, K + 3)),
      jaw: motion[K + 3],
      blink: page.blink ? motion[page.blink.channels[0]!]! / page.blink.full : null,
    }));
  // For scripts and tests: what the page shows.
  const face = {
    state: () => ({
      time: drawn.time,
      audioWhenDrawn: drawn.audio,
      audio: audio ? audio.currentTime : null,
      playing: clock.playing,
      speed: clock.speed,
      smooth: smooth.input.checked,
      truth: rawTruth !== null && truth.input.checked,
      people: people(),
    }),
    seek,
    play: () => clock.play(),
    pause: () => clock.pause(),
    points: (i: number) => Array.from(figures[i]!.poser.points),
    lips: (i: number) => view?.lips(figures[i]!),
  };
  Object.assign(window, { unils: face });
}

void start().catch((error: unknown) => {
  document.body.append(`This page cannot be shown: ${String(error)}`);
  throw error;
});
