"""The lag at which the jaw's opening and the loudness of the voice agree best."""

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
    """How well the jaw agrees with the voice at each lag."""

    curve: np.ndarray  # correlation at each of `LAGS`: jaw at t + lag against loudness at t
    frames: int  # the speaking frames that were counted


def speaking_frames(loudness: Float[np.ndarray, " T"], mask: Bool[np.ndarray, " T"] | None) -> Bool[np.ndarray, " T"]:
    """Returns the frames of speech: those of the mask.

    Without a mask they are the frames within 30 dB of the loudest.
    """
    if mask is not None:
        return mask
    return loudness > max(float(loudness.max(initial=FLOOR_DB)) - SPEECH_BELOW_PEAK_DB, FLOOR_DB)


def align(
    motion: Float[np.ndarray, "T 108"], audio: Float[np.ndarray, " N"], mask: Bool[np.ndarray, " T"] | None
) -> Alignment | None:
    """Correlates one person's jaw opening with the loudness of the voice while speaking, by lag.

    Returns None where the person speaks for less than two seconds or either never changes.
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
    """Returns the lag in frames at which a curve is highest, and the correlation there.

    A positive lag says that the motion is late. It is refined between frames by a parabola.
    """
    best = int(np.argmax(curve))
    if 0 < best < len(curve) - 1:
        before, here, after = curve[best - 1 : best + 2]
        bend = before - 2 * here + after
        shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
        return float(LAGS[best] + shift), float(here)
    return float(LAGS[best]), float(curve[best])
