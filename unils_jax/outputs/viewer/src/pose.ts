// Vertices from motion: the same arithmetic as unils_jax/face/flame.py, on the CPU and without a library.
import { type HeadData, unpack } from "./data";

type Matrix = Float64Array; // 3 x 3, row by row

/** A head's arrays, unpacked once and shared by all people with that head. */
export interface HeadArrays {
  numVertices: number;
  numExpression: number;
  faces: Uint32Array;
  columns: { index: Uint32Array; value: Float32Array }[]; // of the basis, what is not zero
  template: Float32Array;
  totalWeight: Float32Array;
  weights: Float32Array;
  follow: Float32Array;
  colors: Float32Array;
  gloss: Float32Array;
  lips: Uint32Array;
  data: HeadData;
}

export async function unpackHead(data: HeadData, numExpression: number): Promise<HeadArrays> {
  const [faces, template, basis, totalWeight, weights, follow, colors, gloss, lips] = await Promise.all(
    [
      data.faces,
      data.template,
      data.basis,
      data.totalWeight,
      data.weights,
      data.follow,
      data.colors,
      data.gloss,
      data.lips,
    ].map((packed) => unpack(packed)),
  );
  const size = template!.length;
  const columns = [];
  for (let k = 0; k * size < basis!.length; k++) {
    const column = basis!.subarray(k * size, (k + 1) * size);
    const index = new Uint32Array(column.reduce((n, v) => n + (v !== 0 ? 1 : 0), 0));
    let n = 0;
    for (let i = 0; i < size; i++) if (column[i] !== 0) index[n++] = i;
    columns.push({ index, value: Float32Array.from(index, (i) => column[i]!) });
  }
  return {
    numVertices: size / 3,
    numExpression,
    faces: Uint32Array.from(faces!),
    columns,
    template: template!,
    totalWeight: totalWeight!,
    weights: weights!,
    follow: follow!,
    colors: colors!,
    gloss: gloss!,
    lips: Uint32Array.from(lips!),
    data,
  };
}

/** Rodrigues' formula with the angle of r + 1e-8, as the model has it. */
export function rotation(r0: number, r1: number, r2: number): Matrix {
  const angle = Math.hypot(r0 + 1e-8, r1 + 1e-8, r2 + 1e-8);
  const x = r0 / angle;
  const y = r1 / angle;
  const z = r2 / angle;
  const s = Math.sin(angle);
  const c = 1 - Math.cos(angle);
  return Float64Array.of(
    1 - c * (y * y + z * z),
    c * x * y - s * z,
    c * x * z + s * y,
    c * x * y + s * z,
    1 - c * (x * x + z * z),
    c * y * z - s * x,
    c * x * z - s * y,
    c * y * z + s * x,
    1 - c * (x * x + y * y),
  );
}

/** Poses one head; `points` and `normals` are [V, 3] and overwritten by every call. */
export class Poser {
  readonly points: Float32Array;
  readonly normals: Float32Array;
  private readonly shaped: Float32Array;

  constructor(readonly head: HeadArrays) {
    this.points = new Float32Array(3 * head.numVertices);
    this.normals = new Float32Array(3 * head.numVertices);
    this.shaped = new Float32Array(3 * head.numVertices);
  }

  /** `motion`: expression, head 3, jaw 1, eyes 4. */
  pose(motion: ArrayLike<number>): void {
    const { head, shaped } = this;
    const K = head.numExpression;
    const at = (i: number) => motion[K + i]!;
    const turns = [rotation(at(3), 0, 0), rotation(at(4), at(5), 0), rotation(at(6), at(7), 0)];
    for (const turn of turns) for (const i of [0, 4, 8]) turn[i]! -= 1;
    shaped.set(head.template);
    const joints = Float64Array.from(head.data.jointTemplate);
    for (let k = 0; k < K; k++) {
      this.add(k, motion[k]!);
      for (let i = 0; i < 12; i++) joints[i]! += motion[k]! * head.data.jointBasis[12 * k + i]!;
    }
    head.data.poseColumns.forEach((column, q) => this.add(K + q, turns[Math.floor(column / 9)]![column % 9]!));
    this.skin(turns, joints, rotation(at(0), at(1), at(2)));
    this.shade();
  }

  private add(column: number, amount: number): void {
    if (amount === 0) return;
    const { index, value } = this.head.columns[column]!;
    for (let i = 0; i < index.length; i++) this.shaped[index[i]!]! += amount * value[i]!;
  }

  private skin(turns: Matrix[], joints: Float64Array, R: Matrix): void {
    const { head, shaped, points } = this;
    const V = head.numVertices;
    const shifts = turns.map((m, j) => {
      const [x, y, z] = joints.subarray(3 * (j + 1), 3 * (j + 1) + 3);
      return [0, 3, 6].map((r) => -(m[r]! * x! + m[r + 1]! * y! + m[r + 2]! * z!));
    });
    for (let v = 0; v < V; v++) {
      const x = shaped[v]!;
      const y = shaped[V + v]!;
      const z = shaped[2 * V + v]!;
      const s = head.totalWeight[v]!;
      let px = s * x;
      let py = s * y;
      let pz = s * z;
      for (let j = 0; j < 3; j++) {
        const w = head.weights[j * V + v]!;
        if (w === 0) continue;
        const m = turns[j]!;
        const shift = shifts[j]!;
        px += w * (m[0]! * x + m[1]! * y + m[2]! * z + shift[0]!);
        py += w * (m[3]! * x + m[4]! * y + m[5]! * z + shift[1]!);
        pz += w * (m[6]! * x + m[7]! * y + m[8]! * z + shift[2]!);
      }
      const rx = px - joints[0]! * s;
      const ry = py - joints[1]! * s;
      const rz = pz - joints[2]! * s;
      const f = head.follow[v]!;
      points[3 * v] = px + f * (R[0]! * rx + R[1]! * ry + R[2]! * rz - rx);
      points[3 * v + 1] = py + f * (R[3]! * rx + R[4]! * ry + R[5]! * rz - ry);
      points[3 * v + 2] = pz + f * (R[6]! * rx + R[7]! * ry + R[8]! * rz - rz);
    }
  }

  private shade(): void {
    const { points: p, normals: n } = this;
    const { faces } = this.head;
    n.fill(0);
    for (let f = 0; f < faces.length; f += 3) {
      const a = 3 * faces[f]!;
      const b = 3 * faces[f + 1]!;
      const c = 3 * faces[f + 2]!;
      const ux = p[b]! - p[a]!;
      const uy = p[b + 1]! - p[a + 1]!;
      const uz = p[b + 2]! - p[a + 2]!;
      const vx = p[c]! - p[a]!;
      const vy = p[c + 1]! - p[a + 1]!;
      const vz = p[c + 2]! - p[a + 2]!;
      const x = uy * vz - uz * vy;
      const y = uz * vx - ux * vz;
      const z = ux * vy - uy * vx;
      for (const i of [a, b, c]) {
        n[i]! += x;
        n[i + 1]! += y;
        n[i + 2]! += z;
      }
    }
    for (let i = 0; i < n.length; i += 3) {
      const length = Math.hypot(n[i]!, n[i + 1]!, n[i + 2]!) || 1;
      n[i]! /= length;
      n[i + 1]! /= length;
      n[i + 2]! /= length;
    }
  }
}
