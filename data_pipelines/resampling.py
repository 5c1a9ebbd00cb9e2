"""Motion brought from one frame rate to another, and the rate that times of frames tell.

Expression is interpolated linearly, rotations along the shortest arc (slerp). NumPy and SciPy only.
"""

import logging

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from unils_jax.errors import UserError
from unils_jax.motion import EYES, FPS, HEAD

SLOWEST, FASTEST = 1.0, 1000.0  # frames a second that motion may have
MAX_GAP_S = 0.2  # frames that are missing for longer are not interpolated
COMMON_RATES = (12, 15, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 90, 100, 120)
# Channels of one rotation each; the jaw turns about one axis, where slerp is linear interpolation.
_ROTATIONS = (HEAD, slice(EYES.start, EYES.start + 2), slice(EYES.start + 2, EYES.stop))

log = logging.getLogger(__name__)


def check_rate(fps: float, name: str) -> float:
    """Returns a frame rate. Raises UserError, naming its origin, where it is none."""
    if not SLOWEST <= fps <= FASTEST:  # False for NaN, too
        raise UserError(
            f"{name} must be {SLOWEST:g} to {FASTEST:g} frames a second, got {fps:g}; mend it or give --fps"
        )
    return float(fps)


def at_our_rate(motion: Float[np.ndarray, "P T 108"], fps: float, name: str) -> Float32[np.ndarray, "P U 108"]:
    """Returns motion of `fps` frames a second at 25; says so, naming its origin `name`."""
    if fps == FPS:
        return motion
    resampled = resample(motion, fps)
    log.warning(
        "%s has %.6g frames a second and is resampled to %g: %d frames become %d",
        name,
        fps,
        FPS,
        motion.shape[1],
        resampled.shape[1],
    )
    return resampled


def resample(motion: Float[np.ndarray, "P T 108"], fps: float, to: float = FPS) -> Float32[np.ndarray, "P U 108"]:
    """Returns motion of `fps` frames a second at `to`, as long in seconds; at least one frame.

    Frame t is at t / to seconds. A frame whose time is that of a frame before is the same bit for
    bit; after the last one its values are held.
    """
    return at_positions(motion, positions(motion.shape[1], fps, to))


def positions(num_frames: int, fps: float, to: float = FPS) -> Float[np.ndarray, " U"]:
    """Returns where frames at `to` a second lie among frames of `fps`, as long in seconds."""
    num_resampled = max(1, round(num_frames * to / fps))
    # Rounded, so that times which agree but for the last bit give whole positions.
    return np.minimum(np.round(np.arange(num_resampled) * fps / to, 6), num_frames - 1)


def fill_gaps(
    motion: Float[np.ndarray, "T 108"], times: Float[np.ndarray, " T"], name: str
) -> tuple[Float[np.ndarray, "U 108"], Float[np.ndarray, " U"]]:
    """Returns motion and times with the frames that a tracker left out, interpolated; says so.

    Gaps of up to `MAX_GAP_S` are filled where all times lie on one even grid. Other times are
    returned as they are: `rate_of_times` refuses them.
    """
    steps = np.diff(times)
    if not len(steps) or not (steps > 0).all():  # NaN, too
        return motion, times
    step = float(np.median(steps))
    counts = np.round(steps / step).astype(int)
    longest = int(counts.max()) - 1
    # Half a step to either side would be another frame.
    if longest < 1 or longest * step > MAX_GAP_S + 1e-6 or (np.abs(steps - counts * step) > 0.3 * step).any():
        return motion, times
    places = np.concatenate([[0], np.cumsum(counts)])
    every = np.arange(places[-1] + 1)
    missing = len(every) - len(times)
    log.warning(
        "%s: %d missing frames (at most %d in a row, the first after %.2f s) are interpolated",
        name, missing, longest, times[int(np.argmax(counts > 1))],
    )  # fmt: skip
    return at_positions(motion[None], np.interp(every, places, np.arange(len(times))))[0], np.interp(
        every, places, times
    )


def at_positions(
    motion: Float[np.ndarray, "P T 108"], position: Float[np.ndarray, " U"]
) -> Float32[np.ndarray, "P U 108"]:
    """Returns motion at positions in frames, between the first and the last."""
    before = np.floor(position).astype(int)
    after = np.minimum(before + 1, motion.shape[1] - 1)
    amount = (position - before)[:, None]
    first, second = motion[:, before].astype(np.float64), motion[:, after].astype(np.float64)
    mixed = first + amount * (second - first)
    for channels in _ROTATIONS:
        mixed[..., channels] = _slerp(first[..., channels], second[..., channels], amount, mixed[..., channels])
    whole = np.broadcast_to(amount == 0, mixed.shape)
    return np.where(whole, motion[:, before], mixed).astype(np.float32)


def _slerp(
    first: Float[np.ndarray, "P U D"],
    second: Float[np.ndarray, "P U D"],
    amount: Float[np.ndarray, "U 1"],
    near: Float[np.ndarray, "P U D"],
) -> Float[np.ndarray, "P U D"]:
    """Returns rotation vectors between two, of the turns that mean the same those next to `near`.

    Vectors of two components have a third of zero, which slerp keeps.
    """
    missing = [(0, 0), (0, 0), (0, 3 - first.shape[-1])]
    start, end = (Rotation.from_rotvec(np.pad(v, missing).reshape(-1, 3)) for v in (first, second))
    amounts = np.broadcast_to(amount, (*first.shape[:2], 1)).reshape(-1, 1)
    turned = start * Rotation.from_rotvec(amounts * (start.inv() * end).as_rotvec())
    vectors = turned.as_rotvec().reshape(*first.shape[:2], 3)[..., : first.shape[-1]]
    # A tracker may count on beyond half a turn: without this its values would jump to the other
    # side.
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    axis = vectors / np.maximum(angle, 1e-12)
    turns = np.round(((near * axis).sum(-1, keepdims=True) - angle) / (2 * np.pi))
    return vectors + 2 * np.pi * turns * axis


def rate_of_times(times: Float[np.ndarray, " T"], name: str) -> float:
    """Returns the frames a second of evenly spaced times in seconds; 25 for fewer than two.

    A rate in use is returned exactly where the times, rounded as they were written, agree with it.
    Raises UserError, naming their origin, where times do not grow or are not evenly spaced.
    """
    if len(times) < 2:
        return FPS
    steps = np.diff(times)
    if not np.isfinite(times).all() or not (steps > 0).all():
        at = int(np.argmax(~(steps > 0)))
        raise UserError(f"{name} must grow from frame to frame, got {times[at]:g} and {times[at + 1]:g}; mend it")
    step = (times[-1] - times[0]) / (len(times) - 1)
    even = times[0] + step * np.arange(len(times))
    if np.abs(times - even).max() > 0.5 * step:
        at = int(np.argmax(steps))
        raise UserError(
            f"{name} is not evenly spaced: frames of {np.median(steps):.4g} s as a rule, {steps[at]:.4g} s after "
            f"{times[at]:g} s; give frames at a steady rate (even gaps up to {MAX_GAP_S:g} s are interpolated)"
        )
    # The first and the last time may each be half a digit off.
    tolerance = 2 * _rounding(times) + 1e-6 * (1 + np.abs(times).max())
    fits = [rate for rate in COMMON_RATES if abs((len(times) - 1) * (1 / rate - step)) <= tolerance]
    if not fits:
        return round(float(1 / step), 3)
    return float(FPS if FPS in fits else min(fits, key=lambda rate: abs(1 / rate - step)))


def _rounding(times: Float[np.ndarray, " T"]) -> float:
    """Returns half the last decimal that times were written with, at most that of two decimals."""
    for decimals in range(2, 7):
        if np.abs(times - np.round(times, decimals)).max() < 1e-9:
            return 0.5 * 10.0**-decimals
    return 0.0
