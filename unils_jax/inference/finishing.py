"""Motion as it is shown: borders mended, smoothed, and limited to what a face can do.

Whatever draws or exports motion calls `finish`, once; a motion file says whether it was called.
Models, metrics and comparisons use the motion as it was decoded. NumPy and SciPy only.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.signal import savgol_filter

from unils_jax.errors import UserError
from unils_jax.motion import (
    BASES,
    EXPRESSION,
    EYES,
    GROUPS,
    HEAD,
    JAW,
    MOTION_DIM,
    STANDIN_SHAPES,
    WINDOW_FRAMES,
    MotionFile,
    channel_names,
    smooth,
)

log = logging.getLogger(__name__)

# The limits are soft: a value up to KNEE of its range stays as it is, what lies beyond is bent
# towards CEILING and never reaches it. CEILING leaves room below 1.05 for rounding in exports.
KNEE, CEILING = 0.95, 1.04

# Ranges, lowest and highest. A shape of the stand-in head is at its end when it is fully expressed;
# three quarters of it the other way still look like a face (a lower brow, a narrower mouth), a
# blink's other way only lifts the lids.
SHAPE_RANGE, BLINK_RANGE = (-0.75, 1.0), (-0.2, 1.0)  # parts of full
# FLAME's coefficients are in deviations of the scans it was made from: its basis is their PCA, and
# its fit regularises coefficients as unit Gaussians. A tracked face reaches 4.3 within 23 s.
FLAME_RANGE = (-4.5, 4.5)
# Radians. A jaw opens 40 to 55 mm at the teeth, about 0.1 m from its hinge; below zero teeth meet.
JAW_RANGE = (-0.04, 0.5)
# Necks bend 60 degrees to front and back, turn 80 to either side and tilt 45, the usual normal
# values of the range of motion.
HEAD_RANGES = ((-1.05, 1.05), (-1.40, 1.40), (-0.79, 0.79))
# Eyes turn 28 degrees up, 47 down and 45 to either side in healthy adults.
EYE_RANGES = ((-0.49, 0.82), (-0.79, 0.79))

# Frames over which the step at a border fades, on each side of it. Lips are quick and must arrive
# at their consonants; a head is heavy.
FADE_FRAMES = {"expression": 4, "head": 10, "jaw": 4, "eyes": 3}
LIDS = [list(STANDIN_SHAPES).index(name) for name in ("blink_left", "blink_right")]
_TAIL = 3  # frames before a border, and after it, that tell how fast the face moves there
SMOOTHER_FRAMES = 9  # the head's window, and the frames that any smoothing here needs
LIP_FRAMES = 7  # the window of lips, jaw and gaze: nine frames take more of a closed lip away
SMOOTHER_DELAY_FRAMES = SMOOTHER_FRAMES // 2


@dataclass(frozen=True)
class Finished:
    """Finished motion, and how much of it was beyond what a face can do."""

    motion: Float[np.ndarray, "*P T 108"]
    limited_frames: float  # share of the people's frames with a value beyond its range, 0..1
    limited_values: float  # share of the values that have a range
    limited_channels: tuple[str, ...]  # their names, those that were limited most often first

    def limits(self) -> str:
        """Says in one line what was limited; "" where nothing was."""
        if not self.limited_channels:
            return ""
        more = len(self.limited_channels) - 3
        return (
            f"limited to what a face can do in {self.limited_frames:.1%} of the frames, {self.limited_values:.2%} of "
            f"the values: {', '.join(self.limited_channels[:3])}{f' and {more} more' if more > 0 else ''}"
        )


def finish(
    motion: Float[np.ndarray, "*P T C"],
    expression_basis: str,
    *,
    causal: bool = False,
    window_frames: int = WINDOW_FRAMES,
) -> Finished:
    """Finishes decoded motion: mends window borders, smooths, then limits.

    Smoothing is that of `smooth_face`. Neither it nor the mending of borders delays anything.
    Deterministic; the dtype stays.

    Args:
        motion: Motion at 25 frames a second, decoded window by window from its first frame on.
        expression_basis: "flame" or "standin"; "" leaves expression without limits.
        causal: Mends a border in the frames after it alone, as `Finisher` does for streams. False:
            half before and half after it.
        window_frames: Frames of the model's windows.

    Raises:
        UserError: The basis is unknown or the shape is wrong.
    """
    if motion.ndim < 2 or motion.shape[-1] != MOTION_DIM:
        raise UserError(f"motion must be [people, frames, {MOTION_DIM}], got {list(motion.shape)}")
    mended = mend_borders(motion, causal=causal, window_frames=window_frames)
    return _limited(smooth_face(mended, expression_basis), expression_basis)


def finish_file(file: MotionFile, name: str | os.PathLike, *, raw: bool = False) -> tuple[MotionFile, str]:
    """Returns a motion file's contents as they are drawn and exported: finished, and only once.

    The second value says in one line under `name` what was limited, for the log once the output is
    there; "" where nothing was. With `raw` contents stay as they are; a file that holds finished
    motion cannot give what was decoded, and that is what the line says then.
    """
    if file.finished and raw:
        return file, f"{name} holds finished motion; `unils decode --raw` writes it as it was decoded"
    if file.finished or raw:
        return file, ""
    finished = finish(file.motion, file.expression_basis, window_frames=window_frames_of(file.source))
    return replace(file, motion=finished.motion, finished=True), _line(finished, name)


def window_frames_of(source: Mapping[str, object]) -> int:
    """Returns the frames of the windows that a motion file was decoded in, by its `source`."""
    frames = source.get("window_frames")
    return frames if type(frames) is int and frames > 0 else WINDOW_FRAMES


def log_limits(finished: Finished, name: str | os.PathLike) -> None:
    """Logs in one line what was limited, and nothing where nothing was."""
    if line := _line(finished, name):
        log.info(line)


def _line(finished: Finished, name: str | os.PathLike) -> str:
    line = finished.limits()
    return f"{name}: {line}; with --raw it stays as decoded" if line else ""


def limit(motion: Float[np.ndarray, "*b 108"], expression_basis: str) -> Float[np.ndarray, "*b 108"]:
    """Bends values beyond their range back, softly; values within 0.95 of it stay as they are.

    No value is beyond 1.04 of its range afterwards: a shape of the stand-in head beyond 1.04 of
    fully expressed, for example. The bend has no corner, so that motion does not stop abruptly.
    """
    bounds = limits_of(expression_basis)
    limited = motion.copy()
    channels = np.flatnonzero(np.isfinite(bounds[0]))
    values = motion[..., channels].astype(np.float64)
    # Both sides alike: beyond the knee, x = knee + r u becomes knee + r tanh(u).
    for bound in (bound[channels] for bound in bounds):
        knee, room, side = KNEE * bound, (CEILING - KNEE) * np.abs(bound), np.sign(bound)
        beyond = np.maximum(side * (values - knee), 0.0) / room
        values = np.where(beyond > 0, knee + side * room * np.tanh(beyond), values)
    limited[..., channels] = values
    return limited


@functools.cache
def limits_of(expression_basis: str) -> tuple[Float64[np.ndarray, "108"], Float64[np.ndarray, "108"]]:
    """Returns the lowest and the highest value of every channel; infinite where there is no limit.

    The stand-in's channels without a name move nothing on the head and have none.
    """
    if expression_basis not in (*BASES, ""):
        raise UserError(f"expression_basis must be one of {BASES}, got {expression_basis!r}")
    ranges = np.tile([-np.inf, np.inf], (MOTION_DIM, 1))
    if expression_basis == "flame":
        ranges[EXPRESSION] = FLAME_RANGE
    elif expression_basis == "standin":
        for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
            ranges[channel] = np.multiply(full, BLINK_RANGE if name.startswith("blink") else SHAPE_RANGE)
    ranges[JAW], ranges[HEAD], ranges[EYES] = JAW_RANGE, HEAD_RANGES, 2 * EYE_RANGES
    ranges.setflags(write=False)
    return ranges[:, 0], ranges[:, 1]


def _limited(motion: np.ndarray, expression_basis: str) -> Finished:
    low, high = limits_of(expression_basis)
    beyond: Bool[np.ndarray, "N 108"] = ((motion < low) | (motion > high)).reshape(-1, MOTION_DIM)
    counts = beyond.sum(axis=0)
    names = channel_names(expression_basis or "flame")
    ranked = sorted(np.flatnonzero(counts), key=lambda channel: (-counts[channel], channel))
    num_values = max(1, len(beyond) * int(np.isfinite(high).sum()))
    return Finished(
        limit(motion, expression_basis),
        limited_frames=float(beyond.any(axis=1).mean()) if len(beyond) else 0.0,
        limited_values=float(counts.sum() / num_values),
        limited_channels=tuple(names[channel] for channel in ranked),
    )


def smooth_face(motion: Float[np.ndarray, "*P T 108"], expression_basis: str = "") -> Float[np.ndarray, "*P T 108"]:
    """Smooths the head as `motion.smooth` does, lips and gaze less, and lids not at all.

    Both are Savitzky-Golay filters: over nine frames of order 3 for the head, over seven of order 4
    for the face. Only the stand-in basis has channels of the lids. Motion of fewer than nine frames
    is returned unchanged.
    """
    if motion.shape[-2] < SMOOTHER_FRAMES:
        return motion
    # Order 3 takes a sixth of a closed lip away, which is over in 0.1 s.
    smoothed = savgol_filter(motion, LIP_FRAMES, 4, axis=-2, mode="interp").astype(motion.dtype)
    smoothed[..., HEAD] = smooth(motion)[..., HEAD]
    if expression_basis == "standin":
        # A blink lasts as long as the filter.
        smoothed[..., LIDS] = motion[..., LIDS]
    return smoothed


def mend_borders(
    motion: Float[np.ndarray, "*P T 108"], *, causal: bool = False, window_frames: int = WINDOW_FRAMES
) -> Float[np.ndarray, "*P T 108"]:
    """Fades the steps at the borders between windows out over the frames around them.

    At a border the motion should go on as fast as it moves before and after it. What its step has
    beyond that, less what is usual between other frames, is an offset. Half of it is added before
    the border and half subtracted after it, fading as a raised cosine over `FADE_FRAMES`, at most a
    window; with `causal` all of it after the border. Motion without jumps stays nearly as it is.
    """
    num_frames = motion.shape[-2]
    frames = np.moveaxis(motion, -2, 0).astype(np.float64)  # [T, ..., 108]
    mended = frames.copy()
    for border in range(window_frames, num_frames, window_frames):
        before, after = frames[border - window_frames : border], frames[border : border + window_frames]
        jump = _excess(before, after, causal=causal)
        share = 1.0 if causal else 0.5
        for name, fade in _fades(window_frames).items():
            channels = GROUPS[name]
            room = fade[: len(after)].reshape(-1, *(1,) * (frames.ndim - 1))
            mended[border : border + len(fade), ..., channels] -= share * room * jump[..., channels]
            if not causal:
                room = fade[::-1].reshape(-1, *(1,) * (frames.ndim - 1))
                mended[border - len(fade) : border, ..., channels] += share * room * jump[..., channels]
    return np.moveaxis(mended, 0, -2).astype(motion.dtype)


@functools.cache
def _fades(most: int) -> dict[str, Float64[np.ndarray, " n"]]:
    """Returns the offset's weights from the border on, from 1 towards 0, by group of channels."""
    counts = {name: min(count, most) for name, count in FADE_FRAMES.items()}
    return {name: 0.5 + 0.5 * np.cos(np.pi * np.arange(count) / count) for name, count in counts.items()}


def _excess(before: np.ndarray, after: np.ndarray, *, causal: bool) -> np.ndarray:
    """Returns the part of the step from `before` to `after` that does not belong to the motion."""
    tail, head = before[-_TAIL:], after[:_TAIL]
    jump = head[0] - tail[-1] - _expected_step(tail, head)
    # The same figure between all frames inside: what motion and noise do anyway. A median, because
    # a few saccades must not hide a jump of the eyes. Streams have forgotten the window before.
    usual = [np.abs(_inner_jumps(part)) for part in ((after,) if causal else (before, after))]
    usual = np.concatenate([part for part in usual if len(part)] or [np.zeros((1, *jump.shape))])
    scale = 1.5 * np.median(usual, axis=0)
    kept = np.maximum(0.0, 1.0 - np.square(scale) / np.maximum(np.square(jump), 1e-30))
    return jump * kept


def _expected_step(tail: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Returns the mean step of the frames before and after a border."""
    steps = [(part[-1] - part[0]) / (len(part) - 1) for part in (tail, head) if len(part) > 1]
    return np.mean(steps, axis=0) if steps else np.zeros_like(tail[0])


def _inner_jumps(frames: np.ndarray) -> np.ndarray:
    """Returns for each step inside how far it is from the mean step of the frames around it."""
    if len(frames) < 2 * _TAIL:
        return frames[:0]
    x, last = frames, len(frames) - _TAIL
    step = x[_TAIL : last + 1] - x[_TAIL - 1 : last]
    around = (x[_TAIL - 1 : last] - x[: last - _TAIL + 1]) + (x[2 * _TAIL - 1 :] - x[_TAIL : last + 1])
    return step - around / (2 * (_TAIL - 1))


class Smoother:
    """A Savitzky-Golay filter over nine frames for motion that comes in parts.

    Its output is equal to `smooth` of the whole: `motion.smooth` or `smooth_face`. A frame is final
    once the four that follow it are there, 0.16 s; the first four wait for the ninth, because
    either end of a sequence is one polynomial through its outermost nine frames. It keeps nine
    frames.
    """

    def __init__(self, people: int, smooth: Callable[[np.ndarray], np.ndarray] = smooth):
        self._smooth = smooth
        self._kept = np.zeros((people, 0, MOTION_DIM), np.float32)
        self._has_begun = False

    def feed(self, motion: Float[np.ndarray, "P T 108"]) -> Float[np.ndarray, "P T2 108"]:
        """Takes the next frames; returns those that became final."""
        frames = np.concatenate([self._kept, motion], axis=1)
        if frames.shape[1] < SMOOTHER_FRAMES:
            self._kept = frames
            return frames[:, :0]
        handed_out = SMOOTHER_FRAMES - SMOOTHER_DELAY_FRAMES if self._has_begun else 0
        self._kept, self._has_begun = frames[:, -SMOOTHER_FRAMES:], True
        return self._smooth(frames)[:, handed_out:-SMOOTHER_DELAY_FRAMES]

    def flush(self) -> Float[np.ndarray, "P T 108"]:
        """Ends the sequence: returns the frames that are left, and starts anew."""
        left = self._smooth(self._kept)[:, -SMOOTHER_DELAY_FRAMES if self._has_begun else 0 :]
        self._kept, self._has_begun = self._kept[:, :0], False
        return left


class Finisher:
    """Finishes a stream window by window; the whole equals `finish(..., causal=True)`.

    Mending and limits wait for nothing, the smoothing for four frames (see `Smoother`).
    """

    def __init__(self, people: int, expression_basis: str, window_frames: int = WINDOW_FRAMES):
        self._window_frames = window_frames
        limits_of(expression_basis)  # fails now, not after seconds of a stream
        smooth_lips = functools.partial(smooth_face, expression_basis=expression_basis)
        self._smoother, self._basis = Smoother(people, smooth_lips), expression_basis
        self._before: np.ndarray | None = None  # the last frames of the window before

    def feed(self, window: Float[np.ndarray, "P T 108"]) -> Float[np.ndarray, "P T2 108"]:
        """Takes the next window, a whole one or the last; returns frames that are final."""
        mended = window
        if self._before is not None and window.shape[1]:
            joined = np.concatenate([self._before, window], axis=1)
            mended = mend_borders(joined, causal=True, window_frames=self._window_frames)
            mended = mended[:, self._window_frames :]
        self._before = window.copy()
        return limit(self._smoother.feed(mended), self._basis)

    def flush(self) -> Float[np.ndarray, "P T 108"]:
        """Ends the sequence: returns the frames that are left, and starts anew."""
        self._before = None
        return limit(self._smoother.flush(), self._basis)
