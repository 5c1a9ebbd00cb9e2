"""The WavLM encoder (base family, any size): audio -> features.

Its blocks are post-norm with gated relative positions. Source: WavLM as transformers names and
computes it (`feat_extract_norm` group, no stable layer norm), without attention mask. In training
`EncoderNoise` acts as in wav2vec2.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from unils_jax.models.encoder_noise import EncoderNoise, EncoderRates
from unils_jax.models.wav2vec2 import (
    NORM_EPS,
    Conv,
    EncoderAttention,
    PositionalConv,
    check_encoder_sizes,
    frames_after,
)
from unils_jax.nn.layers import LayerNorm, Linear, SampleKeys, dropout, split_key
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks

GATE_PARTS = (2, 4)  # the gate's eight outputs: two gates, each a sum of four


@dataclass(frozen=True)
class WavLMConfig:
    """Sizes of the encoder; the defaults are wavlm-base-plus's."""

    width: int = 768  # of the transformer and of the features
    depth: int = 12  # blocks
    num_heads: int = 12
    hidden_dim: int = 3072  # of the feed-forward layers
    # Channels, widths and strides of the convolutions over samples, first to last.
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    pos_conv_kernel: int = 128  # of the positional convolution, in frames
    pos_conv_groups: int = 16
    num_buckets: int = 320  # of relative positions, half of them for later frames
    max_distance: int = 800  # frames; all larger distances share a bucket
    norm_eps: float = NORM_EPS

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit together."""
        check_encoder_sizes(vars(self))

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.width


class ChannelNorm(nnx.Module):
    """Group normalisation with a group for every channel.

    Each channel is normalised by its own mean and deviation over time.
    """

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "B n C"]) -> Float[Array, "B n C"]:
        """Normalises in float32; the result has the dtype of `x`."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(1, keepdims=True) + NORM_EPS)
        return (y * self.scale[...][None, None] + self.bias[...][None, None]).astype(x.dtype)


class ConvLayer(nnx.Module):
    """Convolution without bias, norm in the first layer only, exact GELU."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, norm: bool, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, out_dim, kernel, stride, use_bias=False, rngs=rngs)
        self.norm = ChannelNorm(out_dim) if norm else None

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        """Applies the layers."""
        x = self.conv(x)
        return jax.nn.gelu(x if self.norm is None else self.norm(x), approximate=False)


class GatedAttention(EncoderAttention):
    """Self-attention with an additive bias that every query scales by its own gate."""

    def __init__(self, width: int, num_heads: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        super().__init__(width, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.gate = Linear(width // num_heads, math.prod(GATE_PARTS), rngs=rngs)
        self.gate_scale = nnx.Param(jnp.ones((1, num_heads, 1, 1)))

    def __call__(
        self, x: Float[Array, "B A E"], key: SampleKeys | None, bias: Float[Array, "1 H A A"]
    ) -> Float[Array, "B A E"]:
        """Attends over all frames; `bias` is the relative positions', `key` turns dropout on."""
        heads = x.reshape(*x.shape[:2], self.num_heads, -1)
        parts = self.gate(heads).astype(jnp.float32).reshape(*heads.shape[:3], *GATE_PARTS).sum(-1)
        first, second = jnp.split(jax.nn.sigmoid(jnp.swapaxes(parts, 1, 2)), 2, axis=-1)  # [B, H, A, 1] each
        gate = first * (second * self.gate_scale[...] - 1.0) + 2.0
        return super().__call__(x, key, gate * bias)


class EncoderBlock(nnx.Module):
    """Post-norm attention and feed-forward, exact GELU."""

    def __init__(self, config: WavLMConfig, rates: EncoderRates, *, rngs: nnx.Rngs):
        width = config.width
        self.attn = GatedAttention(width, config.num_heads, dropout_rate=rates.attention, rngs=rngs)
        self.attn_norm = LayerNorm(width, config.norm_eps)
        self.up = Linear(width, config.hidden_dim, rngs=rngs)
        self.down = Linear(config.hidden_dim, width, rngs=rngs)
        self.mlp_norm = LayerNorm(width, config.norm_eps)
        self.hidden_rate, self.activation_rate = rates.hidden, rates.activation

    def __call__(
        self,
        x: Float[Array, "B A E"],
        bias: Float[Array, "1 H A A"],
        key: SampleKeys | None = None,
        skipped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B A E"]:
        """Applies the block; samples that are `skipped` leave it unchanged."""
        attn_key, attn_drop, up_key, down_key = split_key(key, 4)
        y = self.attn_norm(x + dropout(self.attn(x, attn_key, bias), self.hidden_rate, attn_drop))
        hidden = dropout(jax.nn.gelu(self.up(y), approximate=False), self.activation_rate, up_key)
        y = self.mlp_norm(y + dropout(self.down(hidden), self.hidden_rate, down_key))
        return y if skipped is None else jnp.where(skipped[:, None, None], x, y)


class WavLM(nnx.Module):
    """Features [B, A, E] of audio [B, N] at 16 kHz; parts are named as in `Wav2Vec2`."""

    def __init__(self, config: WavLMConfig, rates: EncoderRates, *, rngs: nnx.Rngs):
        # What masked frames become.
        self.masked_spec_embed = nnx.Param(jax.random.uniform(rngs.params(), (config.width,)))
        in_dims = (1, *config.conv_dims[:-1])
        sizes = zip(in_dims, config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
        self.convs = nnx.List(ConvLayer(*size, norm=i == 0, rngs=rngs) for i, size in enumerate(sizes))
        self.feature_norm = LayerNorm(config.conv_dims[-1], config.norm_eps)
        self.feature_proj = Linear(config.conv_dims[-1], config.width, rngs=rngs)
        self.pos_conv = PositionalConv(config.width, config.pos_conv_kernel, config.pos_conv_groups, rngs=rngs)
        self.final_norm = LayerNorm(config.width, config.norm_eps)  # of the encoder, here before its blocks
        # One table for all blocks; files keep it in the first.
        self.position_table = nnx.Param(jax.random.normal(rngs.params(), (config.num_buckets, config.num_heads)))
        self.blocks = nnx.List(EncoderBlock(config, rates, rngs=rngs) for _ in range(config.depth))
        self.max_distance = config.max_distance
        self.projection_rate, self.hidden_rate = rates.projection, rates.hidden

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Encodes float32 audio as it is; the features have the dtype of `compute`."""
        return self.encode(self.extract(audio, compute), compute)

    def extract(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A C"]:
        """Applies the convolutions: about 50 frames a second."""
        with jax.named_scope("wavlm"), jax.named_scope("convs"):
            x = audio[..., None].astype(compute.dtype)
            for conv in self.convs:
                x = conv(x)
            return x

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames that the convolutions make of so many samples."""
        return frames_after(self.convs, num_samples)

    def encode(
        self, x: Float[Array, "B A C"], compute: Compute = FLOAT32, noise: EncoderNoise | None = None
    ) -> Float[Array, "B A E"]:
        """Applies projection and transformer to the convolutions' output."""
        with jax.named_scope("wavlm"):
            depth = len(self.blocks)
            proj_key, pos_key, *keys = split_key(None if noise is None else noise.keys, 2 + depth)
            x = dropout(self.feature_proj(self.feature_norm(x)), self.projection_rate, proj_key)
            if noise is not None:
                x = noise.mask(x, self.masked_spec_embed[...])
            x = dropout(self.final_norm(x + self.pos_conv(x, compute)), self.hidden_rate, pos_key)
            buckets = relative_buckets(x.shape[1], self.position_table.shape[0], self.max_distance)
            bias = jnp.moveaxis(self.position_table[...][buckets], -1, 0)[None]
            values = [()] * depth if noise is None else list(zip(keys, noise.skipped.T, strict=True))
            return run_blocks(self.blocks, x, lambda block, x, *own: block(x, bias, *own), values, compute)


def relative_buckets(num_frames: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "A A"]:
    """Returns the bucket of every pair (query, key).

    Half of the buckets are for keys that come later. Each half has one for every small distance and
    then logarithmically wider ones up to `max_distance`.
    """
    step = np.arange(num_frames)[None] - np.arange(num_frames)[:, None]
    half, distance = num_buckets // 2, np.abs(step)
    exact = half // 2
    # In float32 as transformers has it: a bucket's edge may fall on the last digit.
    log_ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = log_ratio / np.float32(math.log(max_distance / exact))
    wide = np.minimum(exact + (ratio * (half - exact)).astype(np.int64), half - 1)
    return half * (step > 0) + np.where(distance < exact, distance, wide)
