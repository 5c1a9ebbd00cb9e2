// The conversation as curves: voice, speech, jaw, lids and head of each person, and a cursor that can be dragged.
import type { Track } from "./track";

export interface Row {
  name: string;
  color: string; // a CSS variable's name
  track: Track;
  truth: Track | null;
  peaks: Float32Array | null;
  speaking: Float32Array | null;
}

/** A curve lane: one figure of a track, in that figure's unit. */
export interface Lane {
  label: string;
  height: number;
  curves: { channels: number[]; gain: number }[];
  low: number;
  high: number;
}

const VOICE_HEIGHT = 26;
const TITLE_HEIGHT = 17;
const LEFT = 62; // room for the lanes' names

export class Timeline {
  private from = 0;
  private to: number;
  private readonly probe = document.createElement("i");
  private picture: ImageData | null = null; // all but the cursor, redrawn only when it changes

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly rows: Row[],
    private readonly lanes: Lane[],
    private readonly duration: number,
    seek: (time: number) => void,
  ) {
    this.to = duration;
    this.probe.hidden = true;
    canvas.after(this.probe);
    const heights = lanes.reduce((sum, lane) => sum + lane.height, 0);
    const voice = rows.some((row) => row.peaks || row.speaking) ? VOICE_HEIGHT : 0;
    canvas.style.height = `${rows.length * (TITLE_HEIGHT + voice + heights) + 16}px`;
    let held = false;
    const follow = (event: PointerEvent) => {
      const box = canvas.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / Math.max(box.width - LEFT, 1);
      seek(this.from + Math.min(Math.max(share, 0), 1) * (this.to - this.from));
    };
    canvas.addEventListener("pointerdown", (event) => {
      held = true;
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => held && follow(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (held = false));
    canvas.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.show(0, duration));
  }

  private zoom(event: WheelEvent): void {
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left - LEFT) / Math.max(box.width - LEFT, 1), 0), 1);
    const length = Math.min(Math.max((this.to - this.from) * Math.exp(event.deltaY / 400), 1), this.duration);
    const centre = this.from + share * (this.to - this.from);
    const from = Math.min(Math.max(centre - share * length, 0), this.duration - length);
    this.show(from, from + length);
  }

  private show(from: number, to: number): void {
    this.from = from;
    this.to = to;
    this.invalidate();
  }

  /** Marks everything to be drawn anew: size, theme, zoom or tracks have changed. */
  invalidate(): void {
    this.picture = null;
  }

  setTracks(tracks: Track[], truths: (Track | null)[]): void {
    this.rows.forEach((row, p) => Object.assign(row, { track: tracks[p], truth: truths[p] }));
    this.invalidate();
  }

  draw(time: number): void {
    if (time < this.from || time > this.to) {
      const length = this.to - this.from;
      const from = Math.min(Math.max(time, 0), this.duration - length);
      this.show(from, from + length);
    }
    const ratio = Math.min(window.devicePixelRatio, 2);
    const { canvas } = this;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      this.picture = null;
    }
    const pen = canvas.getContext("2d", { willReadFrequently: true })!;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!this.picture) {
      pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
      this.drawRows(pen, canvas.clientWidth);
      this.picture = pen.getImageData(0, 0, width, height);
    } else {
      pen.putImageData(this.picture, 0, 0);
    }
    const x = this.x(time, canvas.clientWidth);
    pen.fillStyle = this.css("--cursor");
    pen.fillRect(x - 0.75, 0, 1.5, canvas.clientHeight);
  }

  /** A colour of the style sheet as the theme in force has it. */
  private css(name: string): string {
    this.probe.style.color = `var(${name})`;
    return getComputedStyle(this.probe).color;
  }

  private x(time: number, width: number): number {
    return LEFT + ((time - this.from) / (this.to - this.from)) * (width - LEFT);
  }

  private drawRows(pen: CanvasRenderingContext2D, width: number): void {
    let y = 0;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (const row of this.rows) {
      const color = this.css(row.color);
      pen.fillStyle = color;
      pen.fillText(row.name, 2, y + TITLE_HEIGHT / 2 + 1);
      y += TITLE_HEIGHT;
      if (row.peaks || row.speaking) {
        this.drawVoice(pen, row, color, y, width);
        y += VOICE_HEIGHT;
      }
      for (const lane of this.lanes) {
        this.drawLane(pen, row, lane, color, y, width);
        y += lane.height;
      }
    }
    this.drawSeconds(pen, y, width);
  }

  private label(pen: CanvasRenderingContext2D, text: string, y: number, height: number): void {
    pen.fillStyle = this.css("--faint");
    pen.fillText(text, 2, y + height / 2);
  }

  private drawVoice(pen: CanvasRenderingContext2D, row: Row, color: string, y: number, width: number): void {
    this.label(pen, "voice", y, VOICE_HEIGHT);
    const { fps } = row.track;
    if (row.speaking) {
      pen.fillStyle = color;
      pen.globalAlpha = 0.18;
      row.speaking.forEach((on, t) => {
        if (!on) return;
        const left = Math.max(this.x(t / fps, width), LEFT);
        const right = Math.min(this.x((t + 1) / fps, width), width);
        if (right > left) pen.fillRect(left, y + 1, right - left, VOICE_HEIGHT - 2);
      });
      pen.globalAlpha = 1;
    }
    if (!row.peaks) return;
    pen.fillStyle = color;
    const perSecond = row.peaks.length / this.duration;
    for (let x = LEFT; x < width; x++) {
      const time = this.from + ((x - LEFT) / (width - LEFT)) * (this.to - this.from);
      const step = (this.to - this.from) / (width - LEFT);
      const first = Math.floor(time * perSecond);
      const last = Math.max(first + 1, Math.floor((time + step) * perSecond));
      const peak = row.peaks.subarray(first, last).reduce((a, b) => Math.max(a, b), 0) / 255;
      const half = Math.max(0.5, (peak * (VOICE_HEIGHT - 4)) / 2);
      pen.fillRect(x, y + VOICE_HEIGHT / 2 - half, 1, 2 * half);
    }
  }

  private drawLane(
    pen: CanvasRenderingContext2D,
    row: Row,
    lane: Lane,
    color: string,
    y: number,
    width: number,
  ): void {
    this.label(pen, lane.label, y, lane.height);
    pen.strokeStyle = this.css("--grid");
    pen.lineWidth = 1;
    pen.strokeRect(LEFT - 0.5, y + 0.5, width - LEFT, lane.height - 1);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, y, width - LEFT, lane.height);
    pen.clip();
    for (const [track, ink, dash] of [
      [row.truth, this.css("--truth"), [3, 2]],
      [row.track, color, []],
    ] as const) {
      if (!track) continue;
      pen.strokeStyle = ink;
      pen.setLineDash([...dash]);
      lane.curves.forEach((curve, i) => {
        pen.globalAlpha = 1 - 0.28 * i;
        this.drawCurve(pen, track, curve, lane, y, width);
      });
      pen.globalAlpha = 1;
    }
    pen.restore();
  }

  private drawCurve(
    pen: CanvasRenderingContext2D,
    track: Track,
    curve: Lane["curves"][number],
    lane: Lane,
    y: number,
    width: number,
  ): void {
    const curves = curve.channels.map((channel) => track.curve(channel));
    const first = Math.max(0, Math.floor(this.from * track.fps) - 1);
    const last = Math.min(track.numFrames, Math.ceil(this.to * track.fps) + 1);
    pen.beginPath();
    for (let t = first; t < last; t++) {
      const value = (curve.gain * curves.reduce((sum, c) => sum + c[t]!, 0)) / curves.length;
      const place = y + 2 + (1 - (value - lane.low) / (lane.high - lane.low)) * (lane.height - 4);
      pen.lineTo(this.x((t + 0.5) / track.fps, width), place);
    }
    pen.stroke();
  }

  private drawSeconds(pen: CanvasRenderingContext2D, y: number, width: number): void {
    const length = this.to - this.from;
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300].find((s) => (s / length) * (width - LEFT) > 48) ?? 600;
    pen.fillStyle = this.css("--faint");
    pen.textAlign = "center";
    for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
      pen.fillText(`${Number(t.toFixed(1))} s`, Math.min(Math.max(this.x(t, width), LEFT + 10), width - 12), y + 9);
    }
    pen.textAlign = "left";
  }
}
