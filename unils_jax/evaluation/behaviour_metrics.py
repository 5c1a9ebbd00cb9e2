"""Measures what users notice: blinks, gaze, a shut mouth, smoothness, window borders, lip sync.

All are pure functions of one person's motion at 25 fps and a mask of the frames to measure. Each
docstring gives the unit. An undefined value is NaN: too few frames, NaN in the motion, or a motion
that never moves where a ratio or a correlation needs it to. Several figures mean something only
next to the same figure of the truth. The paper has none of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation

from unils_jax.evaluation.statistics import correlation
from unils_jax.motion import EYES, FPS, GROUPS, JAW, STANDIN_SHAPES, WINDOW_FRAMES

NAN = float("nan")
Motion = Float[np.ndarray, "T 108"]
Mask = Bool[np.ndarray, " T"]

BLINK_OPEN, BLINK_SHUT = 0.25, 0.5  # of a full blink: one begins and ends at half, and is over below a quarter
MIN_BLINK_FRAMES = 25  # a rate over less than a second says nothing
NO_LIDS = "the FLAME basis has no channel of the eyelids"

SEGMENT_FRAMES = 64  # of a spectrum: 2.56 s, steps of 0.39 Hz
PSD_FLOOR = 1e-9  # rad^2/Hz, far below tracking noise (1e-7): keeps a frozen face's spectrum finite
FREQUENCIES = np.fft.rfftfreq(SEGMENT_FRAMES, 1 / FPS)[1:-1]

MARGIN_FRAMES = 5  # around speech, where the mouth rightly is on its way
SHUT = 0.25  # of the way from rest to the opening of loud vowels

MAX_LAG_FRAMES = 10
MIN_LAG_FRAMES = 25


class Blinks(NamedTuple):
    """Blinks per minute, and their mean duration in seconds at half closure."""

    per_minute: float  # NaN with under a second of mask
    duration_s: float  # at half closure; NaN without a blink


def blinks(motion: Motion, mask: Mask) -> Blinks:
    """Counts blinks that begin in frames of `mask`, in motion of the stand-in basis.

    FLAME's basis will not do, see `NO_LIDS`. Closure is the mean of both blink channels over their
    full size, less its own median (a person's lids never hang at exactly zero). A blink begins
    where closure reaches 0.5, interpolated between frames, and cannot begin again before it fell
    below 0.25. The rate is NaN with under a second of mask, the duration without a blink.
    """
    lids = [list(STANDIN_SHAPES).index(name) for name in ("blink_left", "blink_right")]
    closure = motion[:, lids].mean(axis=1, dtype=np.float64) / STANDIN_SHAPES["blink_left"]
    if mask.sum() < MIN_BLINK_FRAMES or not np.isfinite(closure).all():
        return Blinks(NAN, NAN)
    # Lids never hang at exactly zero: each person's own median is their open eye.
    closure -= np.median(closure)
    durations, start = [], None
    armed = True  # lids that only tremble around half closure are one blink, not several
    for t in range(1, len(closure)):
        before, now = closure[t - 1], closure[t]
        if before < BLINK_SHUT <= now and armed:
            start = t - 1 + (BLINK_SHUT - before) / (now - before)
            begun, armed = t, False
        elif now < BLINK_SHUT <= before and start is not None:
            if mask[begun]:
                durations.append((t - 1 + (before - BLINK_SHUT) / (before - now) - start) / FPS)
            start = None
        armed = armed or now < BLINK_OPEN
    minutes = mask.sum() / FPS / 60
    return Blinks(float(len(durations) / minutes), float(np.mean(durations)) if durations else NAN)


def spectrum(tracks: Float[np.ndarray, "T C"], mask: Mask) -> Float[np.ndarray, " F"]:
    """Returns the power spectral density at `FREQUENCIES`, the mean over channels.

    The unit is that of the tracks squared per Hz. It is the mean of the periodograms (Hann, mean
    removed, one-sided) of all half-overlapping segments of 2.56 s that lie in the mask as a whole;
    all NaN without one.
    """
    # A segment that is only partly in the mask would mix both roles: it counts for neither.
    starts = range(0, len(tracks) - SEGMENT_FRAMES + 1, SEGMENT_FRAMES // 2)
    segments = [tracks[s : s + SEGMENT_FRAMES] for s in starts if mask[s : s + SEGMENT_FRAMES].all()]
    if not segments:
        return np.full(len(FREQUENCIES), np.nan)
    pieces = np.stack(segments).astype(np.float64)
    window = np.hanning(SEGMENT_FRAMES + 1)[:-1]
    pieces = (pieces - pieces.mean(axis=1, keepdims=True)) * window[None, :, None]
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2
    return 2 * power.mean(axis=(0, 2))[1:-1] / (FPS * (window**2).sum())


def gaze(motion: Motion) -> Float[np.ndarray, "T 2"]:
    """Returns pitch and yaw of the eyes against the head in radians, the mean of both eyes."""
    return motion[:, EYES].reshape(len(motion), 2, 2).mean(axis=1)


def spectral_distance(prediction: Float[np.ndarray, " F"], truth: Float[np.ndarray, " F"]) -> float:
    """Returns the root mean square over frequencies of two spectra's level difference, in dB.

    Frequencies are 0.39-12 Hz; 0 dB is equal. Levels are floored at 1e-9 rad^2/Hz, so that a frozen
    prediction is some 30-60 dB off, not infinitely.
    """
    levels = [10 * np.log10(np.maximum(psd, PSD_FLOOR)) for psd in (prediction, truth)]
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))


def mouth_shut_in_silence(motion: Motion, truth: Motion, speaking: Mask, mask: Mask) -> float:
    """Returns the share of silent frames, 0..1, whose jaw is nearer than a quarter to rest.

    Silent are frames of `mask` at least 5 frames away from own speech. Rest and wide open are the
    5th and the 95th percentile of the *truth's* jaw while speaking, also when `motion` is a
    prediction. NaN without silence or speech, or where the true jaw never moves.
    """
    silent = mask & ~binary_dilation(speaking, iterations=MARGIN_FRAMES)
    if not silent.any() or not speaking.any() or not np.isfinite(motion[silent, JAW]).all():
        return NAN
    # The truth sets the scale, so that a prediction that hardly moves cannot set its own.
    rest, wide = np.percentile(truth[speaking, JAW], [5, 95])
    return float((motion[silent, JAW] < rest + SHUT * (wide - rest)).mean()) if wide > rest else NAN


def jitter(motion: Motion, mask: Mask) -> dict[str, float]:
    """Returns the root mean square jerk per group of channels, in units/s^3.

    Jerk is the third difference times 25^3; four frames in a row must be in the mask. Too little is
    as wrong as too much: compare with the truth's.
    """
    in_row = mask[3:] & mask[2:-1] & mask[1:-2] & mask[:-3] if len(mask) > 3 else np.zeros(0, bool)
    if not in_row.any():
        return dict.fromkeys(GROUPS, NAN)
    jerk = np.diff(motion.astype(np.float64), 3, axis=0)[in_row] * FPS**3
    return {group: float(np.sqrt((jerk[:, channels] ** 2).mean())) for group, channels in GROUPS.items()}


def border_jumps(
    motion: Motion, mask: Mask, window_frames: int = WINDOW_FRAMES, first_frame: int = 0
) -> dict[str, float]:
    """Divides the mean step over window borders by the mean step inside, per group; 1 is seamless.

    A step is the Euclidean distance of neighbouring frames, both in the mask; a border lies before
    every frame of the recording that is a multiple of `window_frames`, and `first_frame` is the
    number of the motion's first one in it. NaN without a border, without an inside, or
    where nothing moves inside.
    """
    steps = np.diff(motion.astype(np.float64), axis=0)
    border = (first_frame + np.arange(1, len(motion))) % window_frames == 0
    used = mask[1:] & mask[:-1]
    ratios = {}
    for group, channels in GROUPS.items():
        sizes = np.linalg.norm(steps[:, channels], axis=1)
        across, inside = sizes[used & border], sizes[used & ~border]
        ratios[group] = float(across.mean() / inside.mean()) if across.size and inside.any() else NAN
    return ratios


def jaw_voice_correlation(
    motion: Motion, loudness_db: Float[np.ndarray, " T2"], frames: Int[np.ndarray, " n"], lag: int
) -> float:
    """Returns the Pearson correlation of the jaw at `frames + lag` with the loudness at `frames`.

    A negative lag means that the mouth leads. NaN with fewer than two frames, or where jaw or
    loudness is constant over them.
    """
    return correlation(motion[frames + lag, JAW][:, 0], loudness_db[frames])


class MouthLag(NamedTuple):
    """The delay of the jaw after the own voice, and the correlation at that delay."""

    lag_s: float  # negative: the mouth leads
    correlation: float


def mouth_lag(motion: Motion, loudness_db: Float[np.ndarray, " T"], mask: Mask) -> MouthLag:
    """Finds the delay within +-0.4 s at which jaw and loudness correlate most.

    It uses the frames of the mask (own speech). The peak is that of a parabola through the best
    whole-frame delay and its neighbours. NaN with under 25 frames, and where jaw or loudness is
    constant. Lips lead the sound by 0.04-0.08 s, so that about -0.06 is true to life.
    """
    frames = np.flatnonzero(mask)
    # Only frames with a neighbour at every lag: all lags are judged on the same frames of voice.
    frames = frames[(frames >= MAX_LAG_FRAMES) & (frames < len(motion) - MAX_LAG_FRAMES)]
    if len(frames) < MIN_LAG_FRAMES:
        return MouthLag(NAN, NAN)
    lags = range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
    values = np.array([jaw_voice_correlation(motion, loudness_db, frames, lag) for lag in lags])
    if not np.isfinite(values).all():
        return MouthLag(NAN, NAN)
    best = int(values.argmax())
    # Lips lead by 1 to 2 frames: whole frames would be too coarse, so a parabola goes between.
    offset, peak = 0.0, values[best]
    if 0 < best < len(values) - 1:
        before, after = values[best - 1], values[best + 1]
        bend = before - 2 * peak + after
        if bend < 0:
            offset = 0.5 * (before - after) / bend
            peak = peak - 0.25 * (before - after) * offset
    return MouthLag(float((lags[best] + offset) / FPS), float(peak))
