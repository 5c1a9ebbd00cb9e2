"""The wav2vec2 encoder (stable-layer-norm family, any size): audio -> features.

Source: wav2vec2 2.0 / XLS-R as transformers names and computes it, without attention mask. UniLS
keeps it frozen and without noise; where it trains `EncoderNoise` acts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.errors import UserError
from unils_jax.models.encoder_noise import DEFAULT_RATES, EncoderNoise, EncoderRates
from unils_jax.nn.attention import attend
from unils_jax.nn.layers import LayerNorm, Linear, SampleKeys, dropout, resample, split_key, uniform_init
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes of the encoder; the defaults are wav2vec2-xls-r-300m's."""

    width: int = 1024  # of the transformer and of the features
    depth: int = 24  # blocks
    num_heads: int = 16
    hidden_dim: int = 4096  # of the feed-forward layers
    # Channels, widths and strides of the convolutions over samples, first to last; the strides'
    # product is 320 samples a frame.
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    pos_conv_kernel: int = 128  # of the positional convolution, in frames
    pos_conv_groups: int = 16
    norm_eps: float = NORM_EPS  # of the layer norms outside the convolutions

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit together."""
        check_encoder_sizes(vars(self))

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.width


def check_encoder_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises UserError where the settings of an audio encoder's config do not make one."""
    convs, problems = [sizes[name] for name in ("conv_dims", "conv_kernels", "conv_strides")], []
    if len({len(counts) for counts in convs}) > 1 or min(min(counts, default=0) for counts in convs) < 1:
        problems.append(f"conv_dims, conv_kernels and conv_strides must be equally many counts, got {convs}")
    # Without transformer layers its convolutions alone are left.
    least = {"width": 1, "depth": 0, "num_heads": 1, "hidden_dim": 1, "pos_conv_kernel": 1, "pos_conv_groups": 1}
    problems += [
        f"{name} must be at least {count}, got {sizes[name]}" for name, count in least.items() if sizes[name] < count
    ]
    parts = [sizes["num_heads"], sizes["pos_conv_groups"]]
    if not problems and any(sizes["width"] % number for number in parts):
        problems.append(f"width {sizes['width']} must be a multiple of num_heads and pos_conv_groups, got {parts}")
    if problems:
        raise UserError(f"audio encoder: {'; '.join(problems)}; use the sizes of its weights")


class Conv(nnx.Module):
    """A strided 1D convolution without padding; kernel [width, in, out]."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = uniform_init((in_dim * kernel) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, in_dim, out_dim)))
        self.bias = nnx.Param(init(rngs.params(), (out_dim,))) if use_bias else None
        self.stride = stride

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        """Convolves over time; the output has (N - kernel) // stride + 1 frames."""
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)


class ConvLayer(nnx.Module):
    """Convolution, LayerNorm over channels, exact GELU."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, out_dim, kernel, stride, rngs=rngs)
        self.norm = LayerNorm(out_dim, NORM_EPS)  # whatever the config's norm_eps is

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        """Applies the layers."""
        return jax.nn.gelu(self.norm(self.conv(x)), approximate=False)


class PositionalConv(nnx.Module):
    """Grouped convolution over time with weight norm over all axes but the taps.

    The weight is in PyTorch's layout [out, in/groups, K].
    """

    def __init__(self, width: int, kernel: int, groups: int, *, rngs: nnx.Rngs):
        init = uniform_init((width // groups * kernel) ** -0.5)
        self.weight_v = nnx.Param(init(rngs.params(), (width, width // groups, kernel)))
        self.weight_g = nnx.Param(jnp.sqrt(jnp.sum(jnp.square(self.weight_v[...]), (0, 1), keepdims=True)))
        self.bias = nnx.Param(init(rngs.params(), (width,)))
        self.groups = groups

    def __call__(self, x: Float[Array, "B A E"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Returns as many frames as it is given."""
        v = self.weight_v[...]
        weight = self.weight_g[...] * v / jnp.sqrt(jnp.sum(jnp.square(v), (0, 1), keepdims=True))
        taps = v.shape[-1]

        def convolve(x: Array, weight: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x,
                weight,
                (1,),
                [(taps // 2, taps // 2)],
                dimension_numbers=("NWC", "OIW", "NWC"),
                feature_group_count=self.groups,
            )

        # Cut by hand: XLA's partitioner for CPU and GPU lets every device compute a grouped
        # convolution of the whole batch.
        y = compute.by_rows(convolve, x, weight.astype(x.dtype))
        y = y[:, : x.shape[1]]  # an even kernel gives one frame too many
        return jax.nn.gelu(y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape), approximate=False)


class EncoderAttention(nnx.Module):
    """Plain multi-head self-attention with biases and dropout of the weights."""

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
        """Attends over all frames; `bias` is added to the scores, `key` turns dropout on."""
        q, k, v = (layer(x).reshape(*x.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, bias=bias, dropout_rate=self.dropout_rate, key=key))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward, exact GELU."""

    def __init__(self, config: Wav2Vec2Config, rates: EncoderRates = DEFAULT_RATES, *, rngs: nnx.Rngs):
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
        """Applies the block; samples that are `skipped` leave it unchanged."""
        attn_key, attn_drop, up_key, down_key = split_key(key, 4)
        y = x + dropout(self.attn(self.attn_norm(x), attn_key), self.hidden_rate, attn_drop)
        hidden = jax.nn.gelu(self.up(self.mlp_norm(y)), approximate=False)
        y = y + dropout(self.down(dropout(hidden, self.activation_rate, up_key)), self.hidden_rate, down_key)
        return y if skipped is None else jnp.where(skipped[:, None, None], x, y)


class Wav2Vec2(nnx.Module):
    """Features [B, A, E] of audio [B, N] at 16 kHz; a 4 s window gives A = 199."""

    def __init__(self, config: Wav2Vec2Config, rates: EncoderRates = DEFAULT_RATES, *, rngs: nnx.Rngs):
        # What masked frames become where the encoder trains; UniLS' does not, and keeps it so that
        # files map one to one.
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
        """Encodes float32 audio of a window, which it normalises.

        The features have the dtype of `compute`.
        """
        return self.encode(self.extract(normalize_audio(audio), compute), compute)

    def at_frames(
        self,
        audio: Float[Array, "B N"],
        num_frames: int,
        compute: Compute = FLOAT32,
        noise: EncoderNoise | None = None,
    ) -> Float[Array, "B T E"]:
        """Encodes normalised audio to features at `num_frames` frames.

        The convolutions' output is resampled to them: the transformer and its positional
        convolution run at the frames' rate. `noise` acts in training.
        """
        return self.encode(resample(self.extract(audio, compute), num_frames), compute, noise)

    def extract(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A C"]:
        """Applies the convolutions to normalised audio: about 50 frames a second."""
        with jax.named_scope("wav2vec2"), jax.named_scope("convs"):
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
        with jax.named_scope("wav2vec2"):
            depth = len(self.blocks)
            proj_key, pos_key, *keys = split_key(None if noise is None else noise.keys, 2 + depth)
            x = dropout(self.feature_proj(self.feature_norm(x)), self.projection_rate, proj_key)
            if noise is not None:
                x = noise.mask(x, self.masked_spec_embed[...])
            x = dropout(x + self.pos_conv(x, compute), self.hidden_rate, pos_key)
            values = [()] * depth if noise is None else list(zip(keys, noise.skipped.T, strict=True))
            x = run_blocks(self.blocks, x, lambda block, x, *values: block(x, *values), values, compute)
            return self.final_norm(x)


def frames_after(layers: Iterable[nnx.Module], num_samples: int) -> int:
    """Returns the number of frames that a chain of convolution layers makes of samples."""
    for layer in layers:
        num_samples = (num_samples - layer.conv.kernel.shape[0]) // layer.conv.stride + 1
    return num_samples


def normalize_audio(audio: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Normalises each window by its own mean and unbiased standard deviation (+1e-6)."""
    mean = audio.mean(-1, keepdims=True)
    std = audio.std(-1, ddof=1, keepdims=True)
    return (audio - mean) / (std + 1e-6)
