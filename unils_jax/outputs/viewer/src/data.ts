// The page's data: the JSON that `unils view` embeds, and its arrays.

/** An array: little-endian, its bytes sorted by significance, deflated, in base64; value = stored * step[channel]. */
export interface Packed {
  type: "int8" | "uint8" | "int16" | "uint16" | "float32";
  shape: number[];
  step: number[] | null;
  data: string;
}

export interface HeadData {
  faces: Packed;
  template: Packed; // [3, V]: all x, all y, all z, metres
  basis: Packed; // [K + Q, 3 V]: expression columns, then pose columns
  poseColumns: number[]; // of the 27 entries of jaw, left eye, right eye
  jointTemplate: number[]; // [4, 3]: root, jaw, left eye, right eye
  jointBasis: number[]; // [K, 4, 3]
  totalWeight: Packed; // [V]
  weights: Packed; // [3, V]
  follow: Packed; // [V]
  colors: Packed; // [C, V, 3]
  gloss: Packed; // [V]
  lips: Packed;
  centre: [number, number];
  half: number;
}

export interface PersonData {
  name: string;
  peaks: Packed | null; // loudest sample of each 1/50 s, 0..255
  speaking: Packed | null; // [T], 0 or 1
}

export interface PageData {
  title: string;
  fps: number;
  numFrames: number;
  people: PersonData[];
  notices: string[];
  head: HeadData;
  numExpression: number;
  blink: { channels: number[]; full: number } | null;
  motion: Packed; // [P, T, K + 8]: expression, head 3, jaw 1, eyes 4; differences from frame to frame
  truth: Packed | null;
  smoothing: number[] | null; // [9, 9]: each row gives one frame of nine from all nine; null: motion is finished
  audio: { type: string; data: string } | null;
}

function bytesOf(base64: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

export function blobOf(part: { type: string; data: string }): Blob {
  return new Blob([bytesOf(part.data)], { type: part.type });
}

const ARRAYS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  float32: Float32Array,
};

/** The numbers of a packed array, steps applied along the last axis. With `frames`, [P, T, C] came as differences over
 * its T; they are summed in the stored type, which wraps around as it did when they were taken. */
export async function unpack(packed: Packed, frames?: number): Promise<Float32Array> {
  const stream = new Blob([bytesOf(packed.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const sorted = new Uint8Array(await new Response(stream).arrayBuffer());
  const kind = ARRAYS[packed.type];
  const width = kind.BYTES_PER_ELEMENT;
  const count = sorted.length / width;
  const bytes = new Uint8Array(sorted.length);
  for (let b = 0; b < width; b++) {
    for (let i = 0; i < count; i++) bytes[i * width + b] = sorted[b * count + i]!;
  }
  const stored = new kind(bytes.buffer);
  const channels = packed.shape.at(-1)!;
  if (frames) {
    for (let i = channels; i < count; i++) if (i % (frames * channels) >= channels) stored[i]! += stored[i - channels]!;
  }
  const values = Float32Array.from(stored);
  if (packed.step) {
    const { step } = packed;
    for (let i = 0; i < count; i++) values[i]! *= step[i % step.length]!;
  }
  return values;
}
