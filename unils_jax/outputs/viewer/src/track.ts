// A person's motion over time: frames between which the page interpolates.
import { type Packed, unpack } from "./data";

export class Track {
  readonly channels: number;

  constructor(
    private readonly values: Float32Array, // [T, C]
    readonly numFrames: number,
    readonly fps: number,
  ) {
    this.channels = values.length / numFrames;
  }

  /** One channel over all frames. */
  curve(channel: number): Float32Array {
    return Float32Array.from({ length: this.numFrames }, (_, t) => this.values[t * this.channels + channel]!);
  }

  /** All channels at a time in seconds. A frame shows the middle of its interval; between middles it is a mixture. */
  at(time: number): Float32Array {
    const place = Math.min(Math.max(time * this.fps - 0.5, 0), this.numFrames - 1);
    const before = Math.floor(place);
    const after = Math.min(before + 1, this.numFrames - 1);
    const share = place - before;
    const { channels: C, values } = this;
    return Float32Array.from(
      { length: C },
      (_, c) => (1 - share) * values[before * C + c]! + share * values[after * C + c]!,
    );
  }

  /** The track smoothed over nine frames by the rows of `weights` [9, 9]; shorter tracks stay as they are. */
  smoothed(weights: number[]): Track {
    const { numFrames: T, channels: C, values } = this;
    if (T < 9) return this;
    const result = new Float32Array(values.length);
    for (let t = 0; t < T; t++) {
      const first = Math.min(Math.max(t - 4, 0), T - 9);
      const row = 9 * (t - first);
      for (let c = 0; c < C; c++) {
        let sum = 0;
        for (let i = 0; i < 9; i++) sum += weights[row + i]! * values[(first + i) * C + c]!;
        result[t * C + c] = sum;
      }
    }
    return new Track(result, T, this.fps);
  }
}

/** A track for each person of a packed motion. */
export async function unpackTracks(packed: Packed, numFrames: number, fps: number): Promise<Track[]> {
  const values = await unpack(packed, numFrames);
  const size = values.length / packed.shape[0]!;
  return Array.from(
    { length: packed.shape[0]! },
    (_, p) => new Track(values.subarray(p * size, (p + 1) * size), numFrames, fps),
  );
}
