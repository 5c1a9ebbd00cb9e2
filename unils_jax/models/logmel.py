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


@dataclass(frozen=True)
class LogMelConfig:
    """Sizes of the log-mel front end."""

    num_mels: int = 40  # bands, of 50-8000 Hz
    context_frames: int = 2  # neighbours on either side that every frame carries; 0: none

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.num_mels * (2 * self.context_frames + 1)


def mel_matrix(num_mels: int) -> np.ndarray:
    """Returns [frequencies, num_mels] triangular filters, equally spaced in mel.

    Each filter sums to one.
    """
    frequencies = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE)
    mel_edges = np.linspace(*(2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)), num_mels + 2)
    edges = 700 * (10 ** (mel_edges / 2595) - 1)
    rise = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    fall = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[None, 1:]
    # A low band can be narrower than a frequency step and would then catch nothing: it takes the
    # nearest one.
    nearest = np.abs(frequencies[:, None] - edges[None, 1:-1]) <= SAMPLE_RATE / WINDOW_SAMPLES / 2
    filters = np.maximum(np.minimum(rise, fall).clip(0), 1e-3 * nearest)
    return (filters / filters.sum(0, keepdims=True)).astype(np.float32)


class LogMel(nnx.Module):
    """Log-mel features [B, A, E] of audio [B, N] at 16 kHz.

    They have about zero mean and unit deviation on speech.
    """

    def __init__(self, config: LogMelConfig):
        self.num_mels = config.num_mels
        self.context_frames = config.context_frames

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Computes the features in float32; returns them in the dtype of `compute`."""
        with jax.named_scope("logmel"):
            num_frames = (audio.shape[-1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1
            index = np.arange(num_frames)[:, None] * HOP_SAMPLES + np.arange(WINDOW_SAMPLES)[None]
            frames = audio[:, index] * np.hanning(WINDOW_SAMPLES).astype(np.float32)[None, None]
            power = jnp.square(jnp.abs(jnp.fft.rfft(frames, axis=-1))) / WINDOW_SAMPLES
            mel = jnp.einsum("BAf,fm->BAm", power, mel_matrix(self.num_mels))
            # To about zero mean and unit deviation on speech.
            log_mel = (jnp.log(mel + 1e-7) + 9) / 4
            reach = self.context_frames
            padded = jnp.pad(log_mel, ((0, 0), (reach, reach), (0, 0)), mode="edge")
            features = jnp.concatenate([padded[:, i : i + num_frames] for i in range(2 * reach + 1)], axis=-1)
            return features.astype(compute.dtype)

    def at_frames(
        self, audio: Float[Array, "B N"], num_frames: int, compute: Compute = FLOAT32, noise: None = None
    ) -> Float[Array, "B T E"]:
        """Returns the features at `num_frames` frames, as `Wav2Vec2.at_frames` does.

        There is nothing that noise could act on.
        """
        return resample(self(audio, compute), num_frames)
