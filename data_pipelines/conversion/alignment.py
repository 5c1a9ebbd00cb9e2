"""The lag at which the jaw's opening and the loudness of the voice agree best."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from unils_jax.audio import frame_loudness
from unils_jax.motion import JAW, SAMPLES_PER_FRAME

MAX_LAG = 25  # frames, a second
LAGS = np.arange(-MAX_LAG, MAX_LAG + 1)
# Below this loudness a frame is as good as silent; deeper silence would outweigh the syllables.
FLOOR_DB = -55.0
SPEECH_BELOW_PEAK_DB = 30.0
MIN_SPEAKING_FRAMES = 50
# A peak that an unrelated voice reaches more often than this says nothing about the offset.
CLEAR_CHANCE = 0.01


class Alignment(NamedTuple):
    """How well the jaw agrees with the voice at each lag."""

    curve: np.ndarray  # correlation at each of `LAGS`: jaw at t + lag against loudness at t
    frames: int  # the speaking frames that were counted
    chance: float  # that an unrelated voice of this kind has a peak as high, 0 to 1


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
    return Alignment(curve, len(inner), _chance(opening, loudness, inner, float(curve.max())))


def _chance(opening: np.ndarray, loudness: np.ndarray, inner: np.ndarray, height: float) -> float:
    """Returns the chance that an unrelated voice has a peak of this height at one of `LAGS`.

    The voice, shifted in a circle by more than any lag, is unrelated and keeps its rhythm. The
    correlations at all such shifts, as Fisher's z, give the spread of a normal distribution. It is
    1 where the record has fewer such shifts than there are lags, or where one of them is as high.
    """
    far = _circular_correlations(opening, loudness, inner)[2 * MAX_LAG + 1 : len(opening) - 2 * MAX_LAG]
    if len(far) < len(LAGS) or far.max() >= height:
        return 1.0
    # Correlations of exactly 1 have no finite z.
    spread = np.sqrt(np.mean(np.arctanh(np.clip(far, -0.999, 0.999)) ** 2))
    deviations = np.arctanh(min(height, 0.999)) / max(spread, 1e-6)
    # Bonferroni's bound over the lags: neighbours are alike, so the true chance is smaller.
    return float(min(1.0, len(LAGS) * norm.sf(deviations)))


def _circular_correlations(opening: np.ndarray, loudness: np.ndarray, inner: np.ndarray) -> Float[np.ndarray, " T"]:
    """Correlates the loudness at `inner` with the jaw at every circular lag, 0 to T - 1."""
    frames = len(opening)
    chosen, voice = np.zeros(frames), np.zeros(frames)
    chosen[inner], voice[inner] = 1.0, loudness[inner] - loudness[inner].mean()
    opening = opening - opening.mean()

    def summed(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.conj(np.fft.rfft(weights)) * np.fft.rfft(values), frames)

    variance = summed(chosen, opening**2) - summed(chosen, opening) ** 2 / len(inner)
    # Where the jaw is still in all chosen frames, rounding alone would decide.
    still = variance <= 1e-9 * (opening**2).sum()
    size = np.sqrt((voice**2).sum() * np.where(still, 1.0, variance))
    return np.where(still, 0.0, summed(voice, opening) / np.maximum(size, 1e-12))


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
