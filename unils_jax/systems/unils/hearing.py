"""What a dialogue hears of a batch: its audio through the encoder, or features that were kept."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from unils_jax.models.logmel import HOP_SAMPLES, WINDOW_SAMPLES
from unils_jax.models.mimi import MimiConfig
from unils_jax.models.unils import EncoderConfig, UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.stack import Compute
from unils_jax.systems.base import Arrays


def heard_features(
    model: UniLS, batch: Arrays, gains: Float[Array, "B 2 1"] | None, compute: Compute
) -> Float[Array, "B K A E"]:
    """Returns the audio features of a batch, without gradient.

    Where the batch has `audio_features` they are taken as they are, and the encoder does not run:
    `gains`, the factors of the tracks, cannot act then.
    """
    if "audio_features" in batch:
        return jnp.asarray(batch["audio_features"]).astype(compute.dtype)
    audio = jnp.asarray(batch["audio"])
    audio = audio if gains is None else audio * gains
    return jax.lax.stop_gradient(model.encode_audio(audio, compute=compute))


def feature_shape(config: UniLSConfig) -> tuple[int, int, int]:
    """Returns tracks, frames and width of the features that condition a pair's window."""
    tracks = 1 if config.prior.audio_condition == "mixed" else 2
    return tracks, _num_frames(config.audio_encoder, config.window.num_samples), config.audio_encoder.feature_dim


def _num_frames(encoder: EncoderConfig, num_samples: int) -> int:
    """Returns the frames that an encoder of these sizes makes of so many samples."""
    if isinstance(encoder, MimiConfig):
        return encoder.num_frames(num_samples)
    sizes = [(WINDOW_SAMPLES, HOP_SAMPLES)]
    if isinstance(encoder, Wav2Vec2Config):
        sizes = list(zip(encoder.conv_kernels, encoder.conv_strides, strict=True))
    for kernel, stride in sizes:
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples
