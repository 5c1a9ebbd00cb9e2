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
from unils_jax.nn.block import Block, BlockSizes
from unils_jax.nn.layers import Linear
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec; the defaults are the paper's."""

    motion_dim: int = MOTION_DIM  # channels of motion; no other number is allowed
    code_dim: int = 32  # bits of a token
    # Tokens of each scale, rising; the last number is the window's frames, and their sum (181) is
    # the number of tokens of a window.
    scales: tuple[int, ...] = (1, 5, 25, 50, 100)
    width: int = 512  # of both transformers; width / num_heads must be even
    depth: int = 8  # blocks of each transformer
    num_heads: int = 8  # of the attention of both

    @property
    def window_frames(self) -> int:
        """Frames of a window."""
        return self.scales[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of a window, over all scales."""
        return sum(self.scales)


class Statistic(nnx.Variable):
    """Channel statistics of the training set: saved with the parameters, never trained."""


class FrameTransformer(nnx.Module):
    """Linear, LeakyReLU(0.2), blocks without MLP norm over a window's frames, Linear."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        config: CodecConfig,
        *,
        rngs: nnx.Rngs,
        out_init: nnx.initializers.Initializer | None = None,
    ):
        width = config.width
        self.inp = Linear(in_dim, width, rngs=rngs)
        sizes = BlockSizes(width, config.num_heads, width * 3 // 2, norm_eps=1e-5, mlp_norm=False)
        self.blocks = nnx.List(Block(sizes, rngs=rngs) for _ in range(config.depth))
        # A kernel with an initialiser of its own (the decoder's) has a bias that starts at zero.
        zeros = nnx.initializers.zeros if out_init is not None else None
        self.out = Linear(width, out_dim, rngs=rngs, kernel_init=out_init, bias_init=zeros)
        self.head_dim = width // config.num_heads

    def __call__(self, x: Float[Array, "B T I"], compute: Compute = FLOAT32) -> Float[Array, "B T O"]:
        """Applies the layers in the dtype of `compute`; float32 in and out."""
        rotary = rotary_table(np.arange(x.shape[1]), self.head_dim)
        x = jax.nn.leaky_relu(self.inp(x.astype(compute.dtype)), 0.2)
        x = run_blocks(self.blocks, x, lambda block, x: block(x, rotary), [()] * len(self.blocks), compute)
        return self.out(x).astype(jnp.float32)


class Codec(nnx.Module):
    """Motion windows to bits and back.

    Motion in and out is un-normalised; the codec holds the statistics itself.
    """

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.motion_mean = Statistic(jnp.zeros(config.motion_dim))
        self.motion_std = Statistic(jnp.ones(config.motion_dim))
        self.encoder = FrameTransformer(config.motion_dim, config.code_dim, config, rngs=rngs)
        # Xavier-uniform with gain 0.05: variance_scaling's scale is the square of the gain.
        xavier = nnx.initializers.variance_scaling(0.05**2, "fan_avg", "uniform")
        self.decoder = FrameTransformer(config.code_dim, config.motion_dim, config, rngs=rngs, out_init=xavier)
        self.scales = config.scales

    def normalize(self, motion: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Computes `(x - mean) / (std + 1e-8)` by the training set's statistics.

        This is what the encoder reads.
        """
        mean, std = self.motion_mean[...][None, None], self.motion_std[...][None, None]
        return (motion - mean) / (std + 1e-8)

    def encode(self, motion: Float[Array, "B T M"], compute: Compute = FLOAT32) -> Float[Array, "B T C"]:
        """Encodes un-normalised motion to its latent."""
        with jax.named_scope("codec_encoder"), compute.exact():
            return self.encoder(self.normalize(motion), compute)

    def quantize(
        self,
        motion: Float[Array, "B T M"],
        flips: Bool[Array, "B F C"] | None = None,
        compute: Compute = FLOAT32,
        sample_weights: Float[Array, " B"] | None = None,
        global_means: Float[Array, "K 2 C"] | None = None,
    ) -> Quantized:
        """Quantises motion of one window to bits, features and losses.

        Args:
            motion: Un-normalised motion.
            flips: Bits to invert as noise, see `quantizer.quantize`; None: none.
            compute: How the encoder is run.
            sample_weights: As in `quantizer.scale_loss`.
            global_means: As in `quantizer.scale_loss`.
        """
        return quantize(self.encode(motion, compute), self.scales, flips, sample_weights, global_means)

    def features(self, motion: Float[Array, "B T M"], compute: Compute = FLOAT32) -> Float[Array, "B T C"]:
        """Returns the full feature of motion of one window or several, without gradient.

        Every window is coded apart. Style and previous motion condition the generators in this
        form.
        """
        windows = motion.reshape(-1, self.scales[-1], motion.shape[-1])
        features = full_features(self.quantize(windows, None, compute).bits, self.scales)
        return jax.lax.stop_gradient(features.reshape(*motion.shape[:2], -1))

    def decode(self, features: Float[Array, "B T C"], compute: Compute = FLOAT32) -> Float[Array, "B T M"]:
        """Decodes features to un-normalised motion: `y * std + mean`, no epsilon."""
        with jax.named_scope("codec_decoder"), compute.exact():
            mean, std = self.motion_mean[...][None, None], self.motion_std[...][None, None]
            return self.decoder(features, compute) * std + mean

    def __call__(
        self,
        motion: Float[Array, "B T M"],
        compute: Compute = FLOAT32,
        sample_weights: Float[Array, " B"] | None = None,
        global_means: Float[Array, "K 2 C"] | None = None,
    ) -> tuple[Float[Array, "B T M"], Quantized]:
        """Reconstructs one-window motion with straight-through gradients.

        Also returns what the quantiser computed. Weights and means are as in
        `quantizer.scale_loss`.
        """
        quantized = self.quantize(motion, None, compute, sample_weights, global_means)
        return self.decode(quantized.features, compute), quantized

    def reconstruct(self, motion: Float[Array, "B T M"], compute: Compute = FLOAT32) -> Float[Array, "B T M"]:
        """Reconstructs motion of any length, window by window.

        The last window is padded with zero motion, the output cut back to T.
        """
        batch, frames, dim = motion.shape
        window = self.scales[-1]
        padded = jnp.pad(motion, ((0, 0), (0, -frames % window), (0, 0)))
        windows = padded.reshape(-1, window, dim)
        return self(windows, compute)[0].reshape(batch, -1, dim)[:, :frames]
