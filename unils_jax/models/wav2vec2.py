"""The wav2vec2 encoder (stable-layer-norm family, any size): a frozen front end, audio -> features.

Source: wav2vec2 2.0 / XLS-R as transformers names and computes it. No attention mask, no spec-augment.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.nn.attention import attend
from unils_jax.nn.layers import LayerNorm, Linear, uniform_init
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


class Conv(nnx.Module):
    """A strided 1D convolution without padding; kernel [width, in, out]."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        init = uniform_init((in_dim * kernel) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, in_dim, out_dim)))
        self.bias = nnx.Param(init(rngs.params(), (out_dim,)))
        self.stride = stride

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
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

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        width, kernel, groups = config.width, config.pos_conv_kernel, config.pos_conv_groups
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
    """Plain multi-head self-attention with biases."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.q = Linear(width, width, rngs=rngs)
        self.k = Linear(width, width, rngs=rngs)
        self.v = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "B A E"]) -> Float[Array, "B A E"]:
        q, k, v = (layer(x).reshape(*x.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        return self.out(attend(q, k, v))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward, exact GELU."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        width, eps = config.width, config.norm_eps
        self.attn_norm = LayerNorm(width, eps)
        self.attn = EncoderAttention(width, config.num_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps)
        self.up = Linear(width, config.hidden_dim, rngs=rngs)
        self.down = Linear(config.hidden_dim, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B A E"]) -> Float[Array, "B A E"]:
        x = x + self.attn(self.attn_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class Wav2Vec2(nnx.Module):
    """Audio [B, N] at 16 kHz to features [B, A, E]; a 4 s window gives A = 199."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        # Of the published checkpoint, used in its pre-training only; kept so that files map one to one.
        self.masked_spec_embed = nnx.Param(jax.random.uniform(rngs.params(), (config.width,)))
        in_dims = (1, *config.conv_dims[:-1])
        sizes = zip(in_dims, config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
        self.convs = nnx.List(ConvLayer(*size, rngs=rngs) for size in sizes)
        self.feature_norm = LayerNorm(config.conv_dims[-1], config.norm_eps)
        self.feature_proj = Linear(config.conv_dims[-1], config.width, rngs=rngs)
        self.pos_conv = PositionalConv(config, rngs=rngs)
        self.blocks = nnx.List(EncoderBlock(config, rngs=rngs) for _ in range(config.depth))
        self.final_norm = LayerNorm(config.width, config.norm_eps)

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Float32 audio, features in the dtype of `compute`."""
        with jax.named_scope("wav2vec2"):
            x = normalize_audio(audio)[..., None].astype(compute.dtype)
            for conv in self.convs:
                x = conv(x)
            x = self.feature_proj(self.feature_norm(x))
            x = x + self.pos_conv(x)
            x = run_blocks(self.blocks, x, lambda block, x: block(x), [()] * len(self.blocks), compute)
            return self.final_norm(x)


def normalize_audio(audio: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Each window by its own mean and unbiased standard deviation (+1e-6)."""
    mean = audio.mean(-1, keepdims=True)
    std = audio.std(-1, ddof=1, keepdims=True)
    return (audio - mean) / (std + 1e-6)
