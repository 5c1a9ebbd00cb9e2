"""Stage 1: the motion codec, a transformer autoencoder around the multi-scale quantiser."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.models.quantizer import Quantized, full_features, quantize
from unils_jax.motion import MOTION_DIM
from unils_jax.nn.attention import rotary_table
from unils_jax.nn.block import Block
from unils_jax.nn.layers import Linear
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec; the defaults are the paper's."""

    motion_dim: int = MOTION_DIM
    code_dim: int = 32
    scales: tuple[int, ...] = (1, 5, 25, 50, 100)
    width: int = 512
    depth: int = 8
    num_heads: int = 8

    @property
    def window_frames(self) -> int:
        return self.scales[-1]

    @property
    def num_tokens(self) -> int:
        return sum(self.scales)


class Statistic(nnx.Variable):
    """Channel statistics of the training set: saved and loaded with the parameters, never trained."""


class FrameTransformer(nnx.Module):
    """Linear, LeakyReLU(0.2), blocks without MLP norm over the frames of a window, Linear."""

    def __init__(self, in_dim: int, out_dim: int, config: CodecConfig, *, rngs: nnx.Rngs, out_init=None):
        width = config.width
        self.inp = Linear(in_dim, width, rngs=rngs)
        self.blocks = nnx.List(
            Block(width, config.num_heads, width * 3 // 2, norm_eps=1e-5, mlp_norm=False, rngs=rngs)
            for _ in range(config.depth)
        )
        zeros = nnx.initializers.zeros if out_init is not None else None
        self.out = Linear(width, out_dim, rngs=rngs, kernel_init=out_init, bias_init=zeros)
        self.head_dim = width // config.num_heads

    def __call__(self, x: Float[Array, "B T I"], compute: Compute = FLOAT32) -> Float[Array, "B T O"]:
        """Float32 in and out, the layers in the dtype of `compute`."""
        rotary = rotary_table(np.arange(x.shape[1]), self.head_dim)
        x = jax.nn.leaky_relu(self.inp(x.astype(compute.dtype)), 0.2)
        x = run_blocks(self.blocks, x, lambda block, x: block(x, rotary), [()] * len(self.blocks), compute)
        return self.out(x).astype(jnp.float32)


class Codec(nnx.Module):
    """Motion windows to bits and back. Motion in and out is un-normalised; the statistics are the codec's own."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.motion_mean = Statistic(jnp.zeros(config.motion_dim))
        self.motion_std = Statistic(jnp.ones(config.motion_dim))
        self.encoder = FrameTransformer(config.motion_dim, config.code_dim, config, rngs=rngs)
        # Xavier-uniform with gain 0.05: variance_scaling's scale is the square of the gain.
        xavier = nnx.initializers.variance_scaling(0.05**2, "fan_avg", "uniform")
        self.decoder = FrameTransformer(config.code_dim, config.motion_dim, config, rngs=rngs, out_init=xavier)
        self.scales = config.scales

    def normalize(self, motion: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """`(x - mean) / (std + 1e-8)` by the training set's statistics, what the encoder reads."""
        mean, std = self.motion_mean[...][None, None], self.motion_std[...][None, None]
        return (motion - mean) / (std + 1e-8)

    def encode(self, motion: Float[Array, "B T M"], compute: Compute = FLOAT32) -> Float[Array, "B T C"]:
        """Latent of un-normalised motion."""
        with jax.named_scope("codec_encoder"):
            return self.encoder(self.normalize(motion), compute)

    def quantize(
        self,
        motion: Float[Array, "B T M"],
        flips: Bool[Array, "B F C"] | None = None,
        compute: Compute = FLOAT32,
        sample_weights: Float[Array, " B"] | None = None,
        whole_means: Float[Array, "K 2 C"] | None = None,
    ) -> Quantized:
        """Bits, features and losses of one-window motion (T = 100); shares and means as in `quantizer.scale_loss`."""
        return quantize(self.encode(motion, compute), self.scales, flips, sample_weights, whole_means)

    def features(self, motion: Float[Array, "B T M"]) -> Float[Array, "B T C"]:
        """The full feature of one-window motion, as style and previous motion condition on it; no gradient."""
        return jax.lax.stop_gradient(full_features(self.quantize(motion).bits, self.scales))

    def decode(self, features: Float[Array, "B T C"], compute: Compute = FLOAT32) -> Float[Array, "B T M"]:
        """Un-normalised motion from features: `y * std + mean`, no epsilon."""
        with jax.named_scope("codec_decoder"):
            return (
                self.decoder(features, compute) * self.motion_std[...][None, None] + self.motion_mean[...][None, None]
            )

    def __call__(
        self,
        motion: Float[Array, "B T M"],
        compute: Compute = FLOAT32,
        sample_weights: Float[Array, " B"] | None = None,
        whole_means: Float[Array, "K 2 C"] | None = None,
    ) -> tuple[Float[Array, "B T M"], Quantized]:
        """Reconstruction of one-window motion with straight-through gradients, and what the quantiser made of it."""
        quantized = self.quantize(motion, None, compute, sample_weights, whole_means)
        return self.decode(quantized.features, compute), quantized

    def reconstruct(self, motion: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Motion of any length, coded in windows: the last is padded with zero motion, the output cut back to T."""
        batch, frames, dim = motion.shape
        window = self.scales[-1]
        padded = jnp.pad(motion, ((0, 0), (0, -frames % window), (0, 0)))
        windows = padded.reshape(-1, window, dim)
        return self(windows)[0].reshape(batch, -1, dim)[:, :frames]
