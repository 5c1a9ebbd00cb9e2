// The jitter buffer: motion that has arrived, shown a constant while after its sound, which adapts to the network.

const KEPT_FRAMES = 500;
const MARGIN_S = 0.03; // beyond the slowest of the newest windows
const WINDOWS = 20; // that the delay is chosen from
// Growing is at once. Shrinking takes a share of the difference a window: one that is not seen, or, after the browser
// itself has stood still for long, one that is soon over.
const SHRINK = 0.05;
const FAST_SHRINK = 0.3;
const MUCH_S = 0.5;

/** Frames of all people by number, with the delay at which they are shown. Times are seconds of performance.now(). */
export class Playout {
  delay = 0.4;
  late = 0; // windows that came after they should have been shown
  private readonly frames = new Map<number, Float32Array[]>();
  private newest = -1;
  private readonly needed: number[] = [];

  constructor(readonly fps: number) {}

  /** Takes the frames of a message: `values` is [people, frames, channels]. `recorded`: when the first one's sound was. */
  push(first: number, people: number, count: number, values: Float32Array, recorded: number, now: number): void {
    const channels = values.length / (people * count);
    for (let f = 0; f < count; f++) {
      const at = (p: number) => (p * count + f) * channels;
      this.frames.set(
        first + f,
        Array.from({ length: people }, (_, p) => values.slice(at(p), at(p) + channels)),
      );
      this.frames.delete(first + f - KEPT_FRAMES);
    }
    this.newest = first + count - 1;
    this.needed.push(now - recorded);
    if (this.needed.length > WINDOWS) this.needed.shift();
    if (now - recorded > this.delay && first > 0) this.late++;
    const wanted = Math.max(...this.needed) + MARGIN_S;
    const excess = this.delay - wanted;
    this.delay -= excess < 0 ? excess : (excess > MUCH_S ? FAST_SHRINK : SHRINK) * excess;
  }

  /** The motion at a place in frames, a mixture of the two around it; null before the first. The newest one is held. */
  at(place: number): { frame: number; motion: Float32Array[] } | null {
    const held = Math.min(place, this.newest);
    const before = this.frames.get(Math.floor(held));
    if (!before) return null;
    const after = this.frames.get(Math.floor(held) + 1) ?? before;
    const share = held - Math.floor(held);
    const motion = before.map((values, p) => values.map((value, c) => (1 - share) * value + share * after[p]![c]!));
    return { frame: held, motion };
  }
}

/** The value below which a share of the numbers lies; null of none. */
export function percentile(numbers: number[], share: number): number | null {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)]! : null;
}
