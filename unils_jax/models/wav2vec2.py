"""The wav2vec2 encoder (stable-layer-norm family, any size): audio -> features.

Source: wav2vec2 2.0 / XLS-R as transformers names and computes it, without attention mask. UniLS keeps it frozen and
quiet; where it trains (DualTalk, UniTalker) `EncoderNoise` brings dropout, skipped layers and masked frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.attention import attend
from unils_jax.nn.layers import LayerNorm, Linear, RandomKey, SampleKeys, dropout, resample, split_key, uniform_init
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes; the defaults are wav2vec2-xls-r-300m's."""

    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    hidden_dim: int = 4096
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    norm_eps: float = NORM_EPS

    @property
    def feature_dim(self) -> int:
        return self.width


@dataclass(frozen=True)
class EncoderRates:
    """What acts in training. `mask_prob` is the share of frames that spans of `mask_frames` frames should cover, there
    are `min_spans` at least; `layer_drop` skips a layer for the whole batch. The defaults are those of the published
    wav2vec2-large-960h-lv60-self, from memory."""

    hidden: float = 0.1
    attention: float = 0.1
    activation: float = 0.1
    projection: float = 0.1
    layer_drop: float = 0.1
    mask_prob: float = 0.05
    mask_frames: int = 10
    min_spans: int = 2


@dataclass(frozen=True)
class EncoderNoise:
    """One draw for a batch: `keys [B]` for dropout, `masked [B, A]` frames that become `masked_spec_embed`, `skipped
    [B, depth]` layers. All lie along the batch, so that it can be cut."""

    keys: Array
    masked: Array
    skipped: Array


jax.tree_util.register_dataclass(EncoderNoise, ["keys", "masked", "skipped"], [])


class Conv(nnx.Module):
    """A strided 1D convolution without padding; kernel [width, in, out]."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = uniform_init((in_dim * kernel) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, in_dim, out_dim)))
        self.bias = nnx.Param(init(rngs.params(), (out_dim,))) if use_bias else None
        self.stride = stride

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)


class ConvLayer(nnx.Module):
    """Convolution, LayerNorm over channels, exact GELU."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, out_dim, kernel, stride, rngs=rngs)
        self.norm = LayerNorm(out_dim, NORM_EPS)  # whatever the config says for the other norms

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        return jax.nn.gelu(self.norm(self.conv(x)), approximate=False)


class PositionalConv(nnx.Module):
    """Grouped convolution over time with weight norm over all but the taps, in PyTorch's layout [out, in/groups, K]."""

    def __init__(self, width: int, kernel: int, groups: int, *, rngs: nnx.Rngs):
        init = uniform_init((width // groups * kernel) ** -0.5)
        self.weight_v = nnx.Param(init(rngs.params(), (width, width // groups, kernel)))
        self.weight_g = nnx.Param(jnp.sqrt(jnp.sum(jnp.square(self.weight_v[...]), (0, 1), keepdims=True)))
        self.bias = nnx.Param(init(rngs.params(), (width,)))
        self.groups = groups

    def __call__(self, x: Float[Array, "B A E"]) -> Float[Array, "B A E"]:
        v = self.weight_v[...]
        weight = self.weight_g[...] * v / jnp.sqrt(jnp.sum(jnp.square(v), (0, 1), keepdims=True))
        taps = v.shape[-1]
        y = jax.lax.conv_general_dilated(
            x,
            weight.astype(x.dtype),
            (1,),
            [(taps // 2, taps // 2)],
            dimension_numbers=("NWC", "OIW", "NWC"),
            feature_group_count=self.groups,
        )
        y = y[:, : x.shape[1]]  # an even kernel gives one frame too many
        return jax.nn.gelu(y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape), approximate=False)


class EncoderAttention(nnx.Module):
    """Plain multi-head self-attention with biases; dropout of the weights. `bias` is added to the scores."""

    def __init__(self, width: int, num_heads: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        self.q = Linear(width, width, rngs=rngs)
        self.k = Linear(width, width, rngs=rngs)
        self.v = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

    def __call__(
        self, x: Float[Array, "B A E"], key: SampleKeys | None = None, bias: Float[Array, "#B H A A"] | None = None
    ) -> Float[Array, "B A E"]:
        q, k, v = (layer(x).reshape(*x.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, bias=bias, dropout_rate=self.dropout_rate, key=key))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward, exact GELU."""

    def __init__(self, config: Wav2Vec2Config, rates: EncoderRates = EncoderRates(), *, rngs: nnx.Rngs):
        width, eps = config.width, config.norm_eps
        self.attn_norm = LayerNorm(width, eps)
        self.attn = EncoderAttention(width, config.num_heads, dropout_rate=rates.attention, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps)
        self.up = Linear(width, config.hidden_dim, rngs=rngs)
        self.down = Linear(config.hidden_dim, width, rngs=rngs)
        self.hidden_rate, self.activation_rate = rates.hidden, rates.activation

    def __call__(
        self, x: Float[Array, "B A E"], key: SampleKeys | None = None, skipped: Bool[Array, " B"] | None = None
    ) -> Float[Array, "B A E"]:
        """Samples that are `skipped` leave as they came."""
        attn_key, attn_drop, up_key, down_key = split_key(key, 4)
        y = x + dropout(self.attn(self.attn_norm(x), attn_key), self.hidden_rate, attn_drop)
        hidden = jax.nn.gelu(self.up(self.mlp_norm(y)), approximate=False)
        y = y + dropout(self.down(dropout(hidden, self.activation_rate, up_key)), self.hidden_rate, down_key)
        return y if skipped is None else jnp.where(skipped[:, None, None], x, y)


class Wav2Vec2(nnx.Module):
    """Audio [B, N] at 16 kHz to features [B, A, E]; a 4 s window gives A = 199."""

    def __init__(self, config: Wav2Vec2Config, rates: EncoderRates = EncoderRates(), *, rngs: nnx.Rngs):
        # What masked frames become where the encoder trains. UniLS never does; kept so that files map one to one.
        self.masked_spec_embed = nnx.Param(jax.random.uniform(rngs.params(), (config.width,)))
        in_dims = (1, *config.conv_dims[:-1])
        sizes = zip(in_dims, config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
        self.convs = nnx.List(ConvLayer(*size, rngs=rngs) for size in sizes)
        self.feature_norm = LayerNorm(config.conv_dims[-1], config.norm_eps)
        self.feature_proj = Linear(config.conv_dims[-1], config.width, rngs=rngs)
        self.pos_conv = PositionalConv(config.width, config.pos_conv_kernel, config.pos_conv_groups, rngs=rngs)
        self.blocks = nnx.List(EncoderBlock(config, rates, rngs=rngs) for _ in range(config.depth))
        self.final_norm = LayerNorm(config.width, config.norm_eps)
        self.projection_rate, self.hidden_rate = rates.projection, rates.hidden

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Float32 audio of a window, normalised here; features in the dtype of `compute`."""
        return self.encode(self.extract(normalize_audio(audio), compute), compute)

    def at_frames(
        self,
        audio: Float[Array, "B N"],
        num_frames: int,
        compute: Compute = FLOAT32,
        noise: EncoderNoise | None = None,
    ) -> Float[Array, "B T E"]:
        """Normalised audio to features at `num_frames` frames, to which the convolutions' output is resampled: the
        transformer and its positional convolution run at the frames' rate."""
        return self.encode(resample(self.extract(audio, compute), num_frames), compute, noise)

    def extract(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A C"]:
        """The convolutions' output for normalised audio, about 50 frames a second."""
        with jax.named_scope("wav2vec2"), jax.named_scope("convs"):
            x = audio[..., None].astype(compute.dtype)
            for conv in self.convs:
                x = conv(x)
            return x

    def num_frames(self, num_samples: int) -> int:
        """Frames that the convolutions make of so many samples."""
        return frames_after(self.convs, num_samples)

    def encode(
        self, x: Float[Array, "B A C"], compute: Compute = FLOAT32, noise: EncoderNoise | None = None
    ) -> Float[Array, "B A E"]:
        """The convolutions' output through projection and transformer."""
        with jax.named_scope("wav2vec2"):
            depth = len(self.blocks)
            proj_key, pos_key, *keys = split_key(None if noise is None else noise.keys, 2 + depth)
            x = dropout(self.feature_proj(self.feature_norm(x)), self.projection_rate, proj_key)
            if noise is not None:
                embed = self.masked_spec_embed[...].astype(x.dtype)[None, None]
                x = jnp.where(noise.masked[..., None], embed, x)
            x = dropout(x + self.pos_conv(x), self.hidden_rate, pos_key)
            skipped = [None] * depth if noise is None else list(noise.skipped.T)
            values = list(zip(keys, skipped, strict=True)) if noise is not None else [()] * depth
            x = run_blocks(self.blocks, x, lambda block, x, *values: block(x, *values), values, compute)
            return self.final_norm(x)


def frames_after(layers: Iterable[nnx.Module], num_samples: int) -> int:
    """Frames that a chain of convolution layers makes of so many samples."""
    for layer in layers:
        num_samples = (num_samples - layer.conv.kernel.shape[0]) // layer.conv.stride + 1
    return num_samples


def draw_encoder_noise(
    key: RandomKey, batch_size: int, num_frames: int, depth: int, rates: EncoderRates
) -> EncoderNoise:
    """One draw for a whole batch of `num_frames` frames at the transformer's rate."""
    layer_key, skip_key, mask_key = jax.random.split(key, 3)
    skipped = jax.random.bernoulli(skip_key, rates.layer_drop, (1, depth))
    masked = draw_time_mask(mask_key, batch_size, num_frames, rates)
    return EncoderNoise(jax.random.split(layer_key, batch_size), masked, jnp.broadcast_to(skipped, (batch_size, depth)))


def draw_time_mask(key: RandomKey, batch_size: int, num_frames: int, rates: EncoderRates) -> Bool[Array, "B A"]:
    """Frames to mask: spans whose number is rounded at random once a batch, starts without replacement; rows with more
    masked frames than the fewest are thinned at random to as many. None where there are too few frames for it."""
    length = rates.mask_frames
    mean_spans = rates.mask_prob * num_frames / length
    max_spans = max(rates.min_spans, int(mean_spans) + 1)
    if rates.mask_prob == 0 or num_frames - length < max_spans:
        return jnp.zeros((batch_size, num_frames), bool)
    count_key, start_key, thin_key = jax.random.split(key, 3)
    num_spans = jnp.maximum(rates.min_spans, jnp.floor(mean_spans + jax.random.uniform(count_key)).astype(jnp.int32))
    scores = jax.random.uniform(start_key, (batch_size, num_frames - length))
    _, starts = jax.lax.top_k(scores, max_spans)
    ends = np.arange(num_frames)[None, None] - starts[..., None]
    covered = (ends >= 0) & (ends < length) & (jnp.arange(max_spans) < num_spans)[None, :, None]
    masked = covered.any(1)
    # Masked frames in a random order, then all others: the first so many of each row stay masked.
    order = jnp.argsort(jnp.where(masked, jax.random.uniform(thin_key, masked.shape), 2.0), axis=-1)
    ranks = jnp.argsort(order, axis=-1)
    return masked & (ranks < masked.sum(-1).min())


def normalize_audio(audio: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Each window by its own mean and unbiased standard deviation (+1e-6)."""
    mean = audio.mean(-1, keepdims=True)
    std = audio.std(-1, ddof=1, keepdims=True)
    return (audio - mean) / (std + 1e-6)
