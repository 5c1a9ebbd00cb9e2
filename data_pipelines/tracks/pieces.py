"""Motion at any frame times brought to 25 a second, in pieces between longer gaps of tracking."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from data_pipelines.resampling import COMMON_RATES, at_positions
from unils_jax.audio import MAX_SECONDS
from unils_jax.errors import UserError
from unils_jax.motion import FPS

MAX_GAP_S = 0.2
_BLOCK = 20_000  # frames that are interpolated at a time, which takes 80 MB
_RATE_WITHIN = 2e-4  # 29.97 means 30000/1001, 30 does not


class Frames(NamedTuple):
    """One person's frames at 25 a second, whole length; zero where nothing covers them."""

    motion: Float32[np.ndarray, "U 108"]
    covered: Bool[np.ndarray, " U"]
    notices: list[str]


def even_times(count: int, fps: float) -> Float64[np.ndarray, " T"]:
    """Returns the seconds of frames at a rate; a rate written with two digits is the exact one."""
    near = [rate for rate in COMMON_RATES if abs(rate / fps - 1) < _RATE_WITHIN]
    exact = min(near, key=lambda rate: abs(rate - fps)) if near else fps
    return np.arange(count) / exact


def num_grid(times: Float64[np.ndarray, " T"]) -> int:
    """Returns the number of frames at 25 a second that the frames of a tracker last.

    Raises UserError beyond ten hours.
    """
    seconds = times[-1] + _step(times)
    if seconds > MAX_SECONDS:
        raise UserError(f"its frames last {seconds / 3600:.4g} h, at most {MAX_SECONDS / 3600:g} h are read; cut it up")
    return max(1, round(seconds * FPS))


def _step(times: Float64[np.ndarray, " T"]) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 1 / FPS


def on_grid(
    values: Float64[np.ndarray, "T 108"],
    valid: Bool[np.ndarray, " T"],
    times: Float64[np.ndarray, " T"],
    max_gap_s: float,
) -> Frames:
    """Returns motion at 0, 0.04, 0.08 s and so on, whatever the times of its frames are.

    What is missing for up to `max_gap_s` is interpolated: expression linearly, rotations along the
    shortest arc. Longer gaps are not covered. A frame at the very time of a tracker's is the same.
    """
    count, step = num_grid(times), _step(times)
    motion, covered = np.zeros((count, values.shape[1]), np.float32), np.zeros(count, bool)
    good = np.flatnonzero(valid)
    if not len(good):
        return Frames(motion, covered, [])
    known, wanted = times[good], np.arange(count) / FPS
    # Times written with six digits may be just after the frame that they mean.
    before = np.searchsorted(known, wanted + 2e-6, side="right") - 1
    gaps = np.append(np.diff(known), np.inf)
    near = gaps <= max_gap_s + step * 1.001
    # A frame lasts a step; before the first one, its values are held for as long.
    held = np.abs(wanted - known[np.maximum(before, 0)]) < 0.999 * step
    covered = held | ((before >= 0) & near[before])
    position = np.where(near[before], np.interp(wanted, known, np.arange(len(good))), before)
    position = np.clip(np.round(position, 6), 0, len(good) - 1)
    kept = values[good][None]
    for frames in np.array_split(np.flatnonzero(covered), max(1, count // _BLOCK)):
        motion[frames] = at_positions(kept, position[frames])[0]
    return Frames(motion, covered, _filled(good, near))


def _filled(good: np.ndarray, near: Bool[np.ndarray, " G"]) -> list[str]:
    missing = (np.diff(good) - 1)[near[:-1]]
    if not missing.any():
        return []
    first = good[:-1][near[:-1]][np.argmax(missing > 0)] + 1
    return [f"{missing.sum()} frames without a face are interpolated (up to {missing.max()} in a row, from {first})"]


def runs(covered: Bool[np.ndarray, " U"]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the spans `[first, last)` that are covered, and those that are not."""
    edges = np.flatnonzero(np.diff(covered.astype(np.int8))) + 1
    bounds = [0, *edges.tolist(), len(covered)]
    spans = [(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True) if last > first]
    return [s for s in spans if covered[s[0]]], [s for s in spans if not covered[s[0]]]


def together(people: Sequence[Frames]) -> Bool[np.ndarray, " U"]:
    """Returns the frames that cover all people, as long as the shortest."""
    count = min(len(person.covered) for person in people)
    return np.logical_and.reduce([person.covered[:count] for person in people])


def rate_hint(num_frames: int, seconds: float) -> str:
    """Returns what rate would make motion as long as its sound, "" where none in use does."""
    fits = [rate for rate in COMMON_RATES if abs(num_frames / rate - seconds) < 2 / FPS]
    return f"; --fps {fits[0]:.6g} would make them agree" if fits else ""
