"""An audio encoder without weights: log-mel frames with their neighbours.

It has the interface of wav2vec2 and serves the demo and the smoke configs, where nothing is
downloaded. It is not part of the release.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.motion import SAMPLE_RATE
from unils_jax.nn.layers import resample
from unils_jax.nn.stack import FLOAT32, Compute

# wav2vec2's receptive field and stride: 4 s give 199 frames there and here.
WINDOW_SAMPLES, HOP_SAMPLES = 400, 320

# Of the level, in dB of a frame's mean power over the bands. Speech is brought to STANDARD_DB; what
# is never louder than MIN_DB is taken for silence.
STANDARD_DB, MIN_DB = -25.0, -80.0
# Speech is taken to be so far above a window's noise: a window of noise, or of another person's
# faint voice, is not lifted to speech.
MIN_RANGE_DB = 35.0
# Shares of the frames that are quieter than the speech, and than the noise, of a window.
SPEECH_SHARE, NOISE_SHARE = 0.95, 0.03
ZERO_POWER = 1e-11  # frames below it are no sound, but padding: they tell nothing of the noise


@dataclass(frozen=True)
class LogMelConfig:
    """Sizes of the log-mel front end."""

    num_mels: int = 40  # bands, of 50-8000 Hz
    context_frames: int = 2  # neighbours on either side that every frame carries; 0: none
    normalize_level: bool = False  # True: the speech of every window is brought to one level; False: as recorded

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.num_mels * (2 * self.context_frames + 1)


def mel_edges(num_mels: int) -> Float[np.ndarray, " m"]:
    """Returns the `num_mels` + 2 frequencies in mel at which the bands begin, peak and end."""
    return np.linspace(*(2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)), num_mels + 2)


def hertz(mel: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Converts mel to Hz."""
    return 700 * (10 ** (mel / 2595) - 1)


def mel_matrix(num_mels: int) -> np.ndarray:
    """Returns [frequencies, num_mels] triangular filters, equally spaced in mel.

    Each filter sums to one.
    """
    frequencies = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE)
    edges = hertz(mel_edges(num_mels))
    rise = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    fall = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[None, 1:]
    # A low band can be narrower than a frequency step and would then catch nothing: it takes the
    # nearest one.
    nearest = np.abs(frequencies[:, None] - edges[None, 1:-1]) <= SAMPLE_RATE / WINDOW_SAMPLES / 2
    filters = np.maximum(np.minimum(rise, fall).clip(0), 1e-3 * nearest)
    return (filters / filters.sum(0, keepdims=True)).astype(np.float32)


def log_mel(audio: Float[Array, "B N"], num_mels: int, *, normalize_level: bool) -> Float[Array, "B A m"]:
    """Returns log-mel frames of 25 ms every 20 ms, in float32.

    They have about zero mean and unit deviation on speech.

    Args:
        audio: Windows at 16 kHz.
        num_mels: Bands.
        normalize_level: Whether each window's power is multiplied by its `level_gain`.
    """
    num_frames = (audio.shape[-1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    index = np.arange(num_frames)[:, None] * HOP_SAMPLES + np.arange(WINDOW_SAMPLES)[None]
    frames = audio[:, index] * np.hanning(WINDOW_SAMPLES).astype(np.float32)[None, None]
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames, axis=-1))) / WINDOW_SAMPLES
    mel = jnp.einsum("BAf,fm->BAm", power, mel_matrix(num_mels))
    if normalize_level:
        mel = mel * level_gain(mel.mean(-1))[:, None, None]
    # To about zero mean and unit deviation on speech.
    return (jnp.log(mel + 1e-7) + 9) / 4


def with_vocal_tract(frames: Float[Array, "B A m"], factors: Float[Array, " B"]) -> Float[Array, "B A m"]:
    """Moves log-mel frames along frequency, as another speaker's vocal tract would.

    A band reads at its own frequency times its track's factor, between its two nearest bands
    linearly; beyond the first and the last band it reads these (Jaitly and Hinton's vocal tract
    length perturbation, 2013).
    """
    bands = frames.shape[-1]
    peaks = mel_edges(bands)[1:-1].astype(np.float32)
    moved = 2595 * jnp.log10(1 + hertz(peaks)[None] * factors[:, None] / 700)
    position = jnp.clip((moved - peaks[0]) / (peaks[1] - peaks[0]), 0, bands - 1)
    shares = jnp.maximum(1 - jnp.abs(position[:, :, None] - np.arange(bands, dtype=np.float32)[None, None]), 0)
    return jnp.einsum("Bnm,BAm->BAn", shares, frames)


def level_gain(power: Float[Array, "B A"]) -> Float[Array, " B"]:
    """Returns the factor that brings the power of each window's speech to the standard level.

    The level is that of the loud frames, but at least `MIN_RANGE_DB` above the quiet ones, so that
    a window of noise alone stays quiet, and at least `MIN_DB`. It is a function of the window
    alone: files and streams give the same.
    """
    last = power.shape[-1] - 1
    speech = jnp.sort(power, axis=-1)[:, round(SPEECH_SHARE * last)]
    sounding = jnp.sort(jnp.where(power > ZERO_POWER, power, jnp.inf), axis=-1)[:, round(NOISE_SHARE * last)]
    noise = jnp.where(jnp.isfinite(sounding), sounding, 0.0)
    level = jnp.maximum(jnp.maximum(speech, noise * 10 ** (MIN_RANGE_DB / 10)), 10 ** (MIN_DB / 10))
    return 10 ** (STANDARD_DB / 10) / level


def with_neighbours(x: Float[Array, "B A m"], reach: int) -> Float[Array, "B A M"]:
    """Joins every frame with the `reach` frames on either side; the edges are repeated."""
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(2 * reach + 1)], axis=-1)


class LogMel(nnx.Module):
    """Log-mel features [B, A, E] of audio [B, N] at 16 kHz.

    They have about zero mean and unit deviation on speech.
    """

    def __init__(self, config: LogMelConfig):
        self.num_mels = config.num_mels
        self.context_frames = config.context_frames
        self.normalize_level = config.normalize_level

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Computes the features in float32; returns them in the dtype of `compute`."""
        with jax.named_scope("logmel"):
            frames = log_mel(audio, self.num_mels, normalize_level=self.normalize_level)
            return with_neighbours(frames, self.context_frames).astype(compute.dtype)

    def at_frames(
        self, audio: Float[Array, "B N"], num_frames: int, compute: Compute = FLOAT32, noise: None = None
    ) -> Float[Array, "B T E"]:
        """Returns the features at `num_frames` frames, as `Wav2Vec2.at_frames` does.

        There is nothing that noise could act on.
        """
        return resample(self(audio, compute), num_frames)
