"""Recording conditions of the bank's voices: level, noise, crosstalk, gate, room, band, codec.

They are drawn for each track of a conversation, and what was drawn is kept in the record. The
built-in voices have their one recording, `voice.mix`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int16
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, rfft
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import lfilter, oaconvolve

from data_pipelines.synthetic.conversation import Phrase
from unils_jax.motion import SAMPLE_RATE

# Ranges that are drawn from evenly.
LEVEL_DB = (-36.0, -14.0)  # of the own voice while speaking, against full scale
SNR_DB = (16.0, 48.0)
CROSSTALK_DB = (-50.0, -20.0)  # the other's voice relative to the own one
ROOM_S = (0.12, 0.6)  # reverberation time, down by 60 dB
DIRECT_DB = (6.0, 20.0)  # direct sound over reverberation
TILT_DB = (-3.0, 3.0)  # dB an octave, around 1 kHz
NOISE_COLOUR = (0.0, 0.95)  # 0: white noise; near 1: falling by 6 dB an octave
DRY_PROBABILITY = 0.3
# Calls and edited recordings are silenced below a level, in dB of the own voice; of the other's
# voice short pieces are heard then.
GATE_PROBABILITY = 0.2
GATE_DB = (-38.0, -22.0)
GATE_FLOOR = 0.01  # of the sound that is silenced
GATE_FRAME_S, GATE_HOLD_S, GATE_FADE_S = 0.02, 0.1, 0.01
# Bands in Hz with their odds: whole, wide-band telephone, telephone, a cheap microphone.
BANDS = ((20.0, 8000.0, 0.5), (60.0, 7000.0, 0.2), (250.0, 3600.0, 0.15), (120.0, 5500.0, 0.15))
CODECS = (("none", 0.5), ("mulaw", 0.2), ("transform", 0.3))
TRANSFORM_FRAME, TRANSFORM_FLOOR = 512, 0.025
EQUALISER_TAPS = 1024


class Recording(NamedTuple):
    """The conditions of one recorded track."""

    level_db: float
    snr_db: float
    crosstalk_db: float
    room_s: float  # 0: no room
    direct_db: float
    tilt_db: float
    noise_colour: float
    low_hz: float
    high_hz: float
    codec: str
    gate_db: float  # what is quieter is silenced; 0: nothing is


def draw_recording(rng: np.random.Generator) -> Recording:
    """Draws the conditions of one track; every call takes the same numbers from `rng`."""
    level, snr, crosstalk, room, direct, tilt, colour = (
        round(float(rng.uniform(*limits)), 2)
        for limits in (LEVEL_DB, SNR_DB, CROSSTALK_DB, ROOM_S, DIRECT_DB, TILT_DB, NOISE_COLOUR)
    )
    dry = rng.random() < DRY_PROBABILITY
    low, high, _ = BANDS[rng.choice(len(BANDS), p=[odds for *_, odds in BANDS])]
    codec = CODECS[rng.choice(len(CODECS), p=[odds for _, odds in CODECS])][0]
    threshold = round(float(rng.uniform(*GATE_DB)), 2)
    gate = threshold if rng.random() < GATE_PROBABILITY else 0.0
    return Recording(level, snr, crosstalk, 0.0 if dry else room, direct, tilt, colour, low, high, codec, gate)


def record_track(
    recording: Recording,
    own: Float32[np.ndarray, " N"],
    other: Float32[np.ndarray, " N"],
    phrases: list[Phrase],
    rng: np.random.Generator,
) -> Int16[np.ndarray, " N"]:
    """Returns the track that a microphone records.

    Args:
        recording: Its conditions.
        own: The clean voice at 16 kHz.
        other: The clean voice of the other person.
        phrases: When the own voice is active: levels are measured there.
        rng: Draws room and noise.
    """
    speaking = np.zeros(len(own), bool)
    for phrase in phrases:
        speaking[round(phrase.start_s * SAMPLE_RATE) : round(phrase.end_s * SAMPLE_RATE)] = True
    equaliser = _equaliser(recording)
    path = np.convolve(_room(recording, rng), equaliser) if recording.room_s else equaliser
    voice = _through(own, path)
    voice /= _level(voice[speaking])
    noise = rng.standard_normal(len(own), dtype=np.float32)
    noise = lfilter(np.float32([1]), np.float32([1, -recording.noise_colour]), noise)
    noise *= np.float32(10 ** (-recording.snr_db / 20)) / _level(noise)
    crosstalk = np.float32(10 ** (recording.crosstalk_db / 20)) / _level(own[speaking])
    track = voice + _through(noise + crosstalk * other, equaliser)
    track = _coded(recording.codec, _gated(track, recording.gate_db) if recording.gate_db else track)
    track *= np.float32(10 ** (recording.level_db / 20)) / _level(track[speaking])
    return np.clip(np.rint(track * np.float32(32768)), -32768, 32767).astype(np.int16)


def _through(track: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Returns a track after a filter whose equaliser has no delay."""
    return oaconvolve(track, taps)[EQUALISER_TAPS // 2 :][: len(track)].astype(np.float32)


def _level(samples: np.ndarray) -> np.float32:
    """Returns the root mean square, at least a little; 1 for no samples."""
    return np.float32(max(np.sqrt(np.mean(np.square(samples))), 1e-6)) if len(samples) else np.float32(1)


def _room(recording: Recording, rng: np.random.Generator) -> np.ndarray:
    """Draws an impulse response: the direct sound, then noise that decays."""
    time = np.arange(round(recording.room_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / recording.room_s)
    tail[: round(0.003 * SAMPLE_RATE)] = 0  # the first reflection comes from a metre away
    tail *= 10 ** (-recording.direct_db / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return tail.astype(np.float32)


def _equaliser(recording: Recording) -> np.ndarray:
    """Returns a filter with tilt and band; the edges of the band are a sixth of it wide."""
    frequency = np.fft.rfftfreq(EQUALISER_TAPS, 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, 60) / 1000)
    rise = np.clip((frequency / recording.low_hz - 0.83) / 0.33, 0, 1)
    fall = np.clip((1.08 - frequency / recording.high_hz) / 0.16, 0, 1)
    taps = np.fft.irfft(10 ** (recording.tilt_db / 20 * octaves) * rise * fall)
    return (np.fft.fftshift(taps) * np.hanning(EQUALISER_TAPS)).astype(np.float32)


def _gated(track: np.ndarray, threshold_db: float) -> np.ndarray:
    """Returns a track of level 1 as a noise gate leaves it: silent where it is below a level."""
    frame, hold, fade = (round(seconds * SAMPLE_RATE) for seconds in (GATE_FRAME_S, GATE_HOLD_S, GATE_FADE_S))
    is_loud = uniform_filter1d(np.square(track), frame) > 10 ** (threshold_db / 10)
    is_open = maximum_filter1d(is_loud.view(np.uint8), hold)
    gain = uniform_filter1d(np.where(is_open, np.float32(1), np.float32(GATE_FLOOR)), fade)
    return track * gain


def _coded(codec: str, track: np.ndarray) -> np.ndarray:
    """Returns a track of level 1 as a codec leaves it."""
    if codec == "mulaw":
        # Eight bits, logarithmic, of a range of six times the level.
        scaled = np.clip(track / np.float32(6), -1, 1)
        steps = np.rint(np.sign(scaled) * np.log1p(255 * np.abs(scaled)) / np.log(256) * 127) / np.float32(127)
        return (np.sign(steps) * np.float32(6) * np.expm1(np.abs(steps) * np.log(256)) / 255).astype(np.float32)
    if codec == "transform":
        return _transform_coded(track)
    return track


def _transform_coded(track: np.ndarray) -> np.ndarray:
    """Returns a track without what is far below the loudest of its frame, as at a low bit rate."""
    half = TRANSFORM_FRAME // 2
    window = np.sqrt(np.hanning(TRANSFORM_FRAME + 1)[:-1]).astype(np.float32)
    padded = np.pad(track, (half, 2 * half - len(track) % half))
    frames = sliding_window_view(padded, TRANSFORM_FRAME)[::half] * window
    bins = rfft(frames)
    power = bins.real**2 + bins.imag**2
    bins *= power >= np.float32(TRANSFORM_FLOOR**2) * power.max(axis=1, keepdims=True)
    frames = irfft(bins) * window
    whole = np.zeros((len(frames) + 1, half), np.float32)
    whole[:-1] += frames[:, :half]
    whole[1:] += frames[:, half:]
    return whole.ravel()[half : half + len(track)]
