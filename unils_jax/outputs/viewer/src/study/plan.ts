// What a rater is asked: the questions in a random order, each with its sides, the same for the same seed and rater.

export type System = "a" | "b";
export type Shown = System | "moving" | "frozen";
export type Side = "left" | "right";

export interface Question {
  clip: number;
  check: System | null; // whose motion is shown next to a face that does not move; null: a against b
  left: Shown;
  right: Shown;
}

/** Numbers in [0, 1) by mulberry32, whose state comes from the text by FNV-1a. */
export function random(text: string): () => number {
  let state = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled<T>(items: T[], next: () => number): T[] {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [result[i], result[j]] = [result[j]!, result[i]!];
  }
  return result;
}

/** All questions of one rater. Either system is on the left in half of the clips, or in one more. */
export function plan(
  numClips: number,
  checks: { clip: number; system: System }[],
  seed: number,
  rater: string,
): Question[] {
  const next = random(`${seed}:${rater}`);
  const first = next() < 0.5 ? 0 : 1;
  const sides = shuffled(
    Array.from({ length: numClips }, (_, i) => (i + first) % 2 === 0),
    next,
  );
  const pairs = sides.map((swapped, clip): Question => {
    return { clip, check: null, left: swapped ? "b" : "a", right: swapped ? "a" : "b" };
  });
  const controls = checks.map(({ clip, system }): Question => {
    const swapped = next() < 0.5;
    return { clip, check: system, left: swapped ? "frozen" : "moving", right: swapped ? "moving" : "frozen" };
  });
  return shuffled([...pairs, ...controls], next);
}
