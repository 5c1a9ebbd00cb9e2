"""Whether the mouth moves with the voice: the lag at which the jaw's opening and the loudness agree best."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from unils_jax.audio import frame_loudness
from unils_jax.motion import JAW, SAMPLES_PER_FRAME

MAX_LAG = 25  # frames, a second
LAGS = np.arange(-MAX_LAG, MAX_LAG + 1)
# Below this loudness a frame is as good as silent; deeper silence would outweigh the syllables.
FLOOR_DB = -55.0
SPEECH_BELOW_PEAK_DB = 30.0
MIN_SPEAKING_FRAMES = 50


class Alignment(NamedTuple):
    """Correlation at each of `LAGS` (jaw at t + lag against loudness at t), and the speaking frames behind it."""

    curve: np.ndarray
    frames: int


def speaking_frames(loudness: Float[np.ndarray, " T"], mask: Bool[np.ndarray, " T"] | None) -> Bool[np.ndarray, " T"]:
    """The frames of speech: the mask's, or where there is none those within 30 dB of the loudest."""
    if mask is not None:
        return mask
    return loudness > max(float(loudness.max(initial=FLOOR_DB)) - SPEECH_BELOW_PEAK_DB, FLOOR_DB)


def align(
    motion: Float[np.ndarray, "T 108"], audio: Float[np.ndarray, " N"], mask: Bool[np.ndarray, " T"] | None
) -> Alignment | None:
    """The correlation of one person's jaw opening with the loudness of the voice while speaking, by lag.

    None where the person speaks for less than two seconds or either never changes.
    """
    frames = len(motion)
    loudness = np.maximum(frame_loudness(audio[: frames * SAMPLES_PER_FRAME]), FLOOR_DB).astype(np.float64)
    loudness = np.pad(loudness, (0, frames - len(loudness)), constant_values=FLOOR_DB)
    speaking = speaking_frames(loudness, mask)
    # Frames whose neighbours at every lag exist: all lags are judged on the same frames of voice.
    inner = np.flatnonzero(speaking[MAX_LAG : frames - MAX_LAG]) + MAX_LAG
    if len(inner) < MIN_SPEAKING_FRAMES:
        return None
    voice = loudness[inner]
    voice = voice - voice.mean()
    opening = motion[:, JAW].astype(np.float64)[:, 0]
    curve = np.zeros(len(LAGS))
    for i, lag in enumerate(LAGS):
        jaw = opening[inner + lag]
        jaw = jaw - jaw.mean()
        size = np.sqrt((voice**2).sum() * (jaw**2).sum())
        if size < 1e-12:
            return None
        curve[i] = voice @ jaw / size
    return Alignment(curve, len(inner))


def peak(curve: Float[np.ndarray, " lags"]) -> tuple[float, float]:
    """The lag in frames (positive: the motion is late) at which a curve is highest, between frames by a parabola, and
    the correlation there."""
    best = int(np.argmax(curve))
    if 0 < best < len(curve) - 1:
        before, here, after = curve[best - 1 : best + 2]
        bend = before - 2 * here + after
        shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
        return float(LAGS[best] + shift), float(here)
    return float(LAGS[best]), float(curve[best])
