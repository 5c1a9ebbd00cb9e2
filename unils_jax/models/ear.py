"""A small trained audio encoder: from log-mel frames to the articulators of the mouth.

It has the interface of wav2vec2, and 100 to 600 thousand weights. A stage trains it by regression
of motion on audio; then it stays frozen in front of the dialogue. It is not part of the release.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.models.codec import Statistic
from unils_jax.models.logmel import log_mel, with_neighbours, with_vocal_tract
from unils_jax.models.wav2vec2 import Conv
from unils_jax.motion import JAW, STANDIN_SHAPES
from unils_jax.nn.layers import Linear, resample
from unils_jax.nn.stack import FLOAT32, Compute

ARTICULATORS = ("lip_press", "lip_pucker", "lip_stretch")  # in addition to the jaw
BLOCK_FRAMES = 5  # of 20 ms that a block convolves
STANDIN_CHANNELS = (JAW.start, *(list(STANDIN_SHAPES).index(name) for name in ARTICULATORS))


@dataclass(frozen=True)
class EarConfig:
    """Sizes of the ear."""

    num_mels: int = 40  # bands, of 50-8000 Hz
    context_frames: int = 9  # of 20 ms on either side that the first layer sees
    width: int = 128  # of the hidden layers
    # Residual convolutions over 5 frames after the first layer; each adds 2 frames to the context
    # on either side. 0: one dense layer instead.
    blocks: int = 0
    # Channels of motion that it predicts: the jaw, then lip press, pucker and stretch of the
    # stand-in basis. FLAME's expression has no such channels: there the jaw and any others.
    channels: tuple[int, ...] = STANDIN_CHANNELS
    coarse_bands: int = 8  # bands of the log-mel that the features have besides; divides num_mels
    feature_context: int = 2  # neighbours on either side that every frame of features carries
    normalize_level: bool = True  # the speech of every window is brought to one level; False: as recorded

    @property
    def reach_frames(self) -> int:
        """Frames of 20 ms on either side that an articulator depends on."""
        return self.context_frames + self.blocks * (BLOCK_FRAMES // 2)

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return (len(self.channels) + self.coarse_bands) * (2 * self.feature_context + 1)


class Ear(nnx.Module):
    """Features [B, A, E] of audio [B, N] at 16 kHz: articulators and coarse log-mel frames."""

    def __init__(self, config: EarConfig, *, rngs: nnx.Rngs):
        num_channels = len(config.channels)
        self.context = Conv(config.num_mels, config.width, 2 * config.context_frames + 1, 1, rngs=rngs)
        if config.blocks:
            width = config.width
            self.blocks = nnx.List([Conv(width, width, BLOCK_FRAMES, 1, rngs=rngs) for _ in range(config.blocks)])
        else:
            self.blocks, self.hidden = None, Linear(config.width, config.width, rngs=rngs)
        self.out = Linear(config.width, num_channels, rngs=rngs)
        # Of the channels in the training set: the articulators have zero mean and deviation one.
        self.channel_mean = Statistic(jnp.zeros(num_channels))
        self.channel_std = Statistic(jnp.ones(num_channels))
        self.num_mels, self.reach, self.normalize_level = config.num_mels, config.context_frames, config.normalize_level
        self.channels, self.coarse_bands = tuple(config.channels), config.coarse_bands
        self.feature_context = config.feature_context

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Computes the features in float32; returns them in the dtype of `compute`."""
        with jax.named_scope("ear"):
            # Without barriers XLA fuses the ear into all that follows, and compiles for minutes.
            frames = jax.lax.optimization_barrier(self._frames(audio))
            coarse = frames.reshape(*frames.shape[:2], self.coarse_bands, -1).mean(-1)
            features = jnp.concatenate([self._articulate(frames), coarse], axis=-1)
            features = jax.lax.optimization_barrier(with_neighbours(features, self.feature_context))
            return features.astype(compute.dtype)

    def at_frames(
        self, audio: Float[Array, "B N"], num_frames: int, compute: Compute = FLOAT32, noise: None = None
    ) -> Float[Array, "B T E"]:
        """Returns the features at `num_frames` frames, as `Wav2Vec2.at_frames` does.

        There is nothing that noise could act on.
        """
        return resample(self(audio, compute), num_frames)

    def articulators(
        self, audio: Float[Array, "B N"], num_frames: int, vocal_tract: Float[Array, " B"] | None = None
    ) -> Float[Array, "B T c"]:
        """Returns the predicted channels at `num_frames` frames, standardised as `standardized`.

        `vocal_tract` has a factor for the frequencies of each track; None: as recorded.
        """
        with jax.named_scope("ear"):
            frames = self._frames(audio)
            frames = frames if vocal_tract is None else with_vocal_tract(frames, vocal_tract)
            return resample(self._articulate(frames), num_frames)

    def standardized(self, motion: Float[Array, "*B 108"]) -> Float[Array, "*B c"]:
        """Returns what the articulators should be: the ear's channels of motion, standardised."""
        mean, std = (
            jnp.broadcast_to(statistic[...], (*motion.shape[:-1], len(self.channels)))
            for statistic in (self.channel_mean, self.channel_std)
        )
        return (motion[..., list(self.channels)] - mean) / std

    def _frames(self, audio: Float[Array, "B N"]) -> Float[Array, "B A m"]:
        return log_mel(audio, self.num_mels, normalize_level=self.normalize_level)

    def _articulate(self, frames: Float[Array, "B A m"]) -> Float[Array, "B A c"]:
        hidden = jax.nn.gelu(self.context(_widened(frames, self.reach)))
        if self.blocks is None:
            return self.out(jax.nn.gelu(self.hidden(hidden)))
        for block in self.blocks:
            hidden = hidden + jax.nn.gelu(block(_widened(hidden, BLOCK_FRAMES // 2)))
        return self.out(hidden)


def _widened(frames: Float[Array, "B A m"], count: int) -> Float[Array, "B A2 m"]:
    """Repeats the first and the last frame `count` times."""
    return jnp.pad(frames, ((0, 0), (count, count), (0, 0)), mode="edge")
