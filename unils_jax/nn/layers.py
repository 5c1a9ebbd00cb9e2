"""Linear, norm, MLP, dropout, drop-path and resampling with PyTorch's conventions.

Initialisation and rounding follow PyTorch. Parameters are float32; a layer computes in the dtype of
its input, norms and softmax in float32. Every layer takes `key`: in training one random key for
each sample, so that what a sample draws depends neither on the others of its batch nor on how a
batch is cut over devices and accumulated steps; None in evaluation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

RandomKey = Key[Array, ""]
SampleKeys = Key[Array, " B"]


def uniform_init(bound: float) -> nnx.initializers.Initializer:
    """Returns an initialiser that draws from U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def token_init(width: int) -> nnx.initializers.Initializer:
    """Returns the initialiser of learned vectors.

    It draws from a normal of deviation sqrt(1/width/3), cut at an absolute +-2 (the paper's code).
    """
    std = math.sqrt(1 / width / 3)

    def init(key: RandomKey, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return std * jax.random.truncated_normal(key, -2 / std, 2 / std, shape, dtype)

    return init


class Linear(nnx.Module):
    """`x @ kernel + bias`, initialised as PyTorch does: U(+-1/sqrt(fan_in)).

    `kernel_init` and `bias_init` take the place of that default.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        kernel_init: nnx.initializers.Initializer | None = None,
        bias_init: nnx.initializers.Initializer | None = None,
    ):
        # PyTorch draws weight and bias from the same range.
        default = uniform_init(1 / math.sqrt(in_dim))
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), (in_dim, out_dim)))
        self.bias = nnx.Param((bias_init or default)(rngs.params(), (out_dim,))) if use_bias else None

    def __call__(self, x: Float[Array, "*B I"], key: Key[Array, " b"] | None = None) -> Float[Array, "*B O"]:
        """Applies the layer in the dtype of `x`; `key` is for layers that take its place."""
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(x.dtype)
        # Broadcast by hand: tests raise on implicit rank promotion.
        return y + jnp.broadcast_to(bias, y.shape)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises over the last axis; the result has the dtype of `x`."""
        # Two passes over the centred values: the mean of squares less the squared mean cancels.
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centred = x32 - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (y * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(x.dtype)


class MLP(nnx.Module):
    """[norm ->] up -> tanh GELU -> down, without a norm where `norm_eps` is None (the codec's)."""

    def __init__(self, dim: int, hidden_dim: int, *, norm_eps: float | None, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, norm_eps) if norm_eps is not None else None
        self.up = Linear(dim, hidden_dim, rngs=rngs)
        self.down = Linear(hidden_dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], key: SampleKeys | None = None) -> Float[Array, "B L D"]:
        """Applies the layers; `key` turns LoRA dropout on."""
        up_key, down_key = split_key(key, 2)
        h = x if self.norm is None else self.norm(x)
        return self.down(jax.nn.gelu(self.up(h, up_key), approximate=True), down_key)


def drop_path(
    x: Float[Array, "B L D"], rate: float | Float[Array, ""], key: SampleKeys | None
) -> Float[Array, "B L D"]:
    """Drops a sample's whole residual branch with probability `rate`.

    Kept branches are scaled by 1/(1 - rate). Without a key nothing is dropped.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    return drop(x, rate, key, (1, 1))


def dropout(x: Float[Array, "*B"], rate: float, key: Key[Array, " b"] | None) -> Float[Array, "*B"]:
    """Drops every element with probability `rate`; returns `x` itself without a key or a rate."""
    return x if key is None or rate == 0.0 else drop(x, rate, key, x.shape[1:])


def drop(
    x: Float[Array, "*B"], rate: float | Float[Array, ""], key: Key[Array, " b"], mask_shape: tuple[int, ...]
) -> Float[Array, "*B"]:
    """Sets values to zero with probability `rate` and scales the rest by 1/(1 - rate).

    The scaling is in float32. Masks are [B, *mask_shape], every sample's drawn from its own key.
    """
    # An array: under a scan over blocks the rate is traced.
    keep = jnp.asarray(1 - rate, jnp.float32)
    kept = jax.vmap(lambda sample_key: jax.random.bernoulli(sample_key, keep, mask_shape))(key)
    return jnp.where(kept, (x.astype(jnp.float32) / keep).astype(x.dtype), jnp.zeros_like(x))


def split_key(key: SampleKeys | None, num: int) -> list[SampleKeys | None]:
    """Splits every sample's key into `num`; returns Nones for None.

    So evaluation needs no second code path.
    """
    if key is None:
        return [None] * num
    return list(jax.vmap(lambda sample_key: jax.random.split(sample_key, num), out_axes=1)(key))


def resample(x: Float[Array, "B A C"], num_frames: int) -> Float[Array, "B T C"]:
    """Resamples linearly over time with the ends aligned (PyTorch's align_corners).

    Frame i reads position i * (A - 1) / (T - 1), computed in float32 as PyTorch does, and position
    0 where T is 1.
    """
    # Positions are NumPy constants, and each frame mixes two: no matrix of all pairs is needed.
    last = x.shape[1] - 1
    scale = np.float32(last) / np.float32(num_frames - 1) if num_frames > 1 else np.float32(0)
    position = np.arange(num_frames, dtype=np.float32) * scale
    low = np.minimum(position.astype(np.int32), last)
    share = (position - low)[None, :, None].astype(x.dtype)
    return (1 - share) * x[:, low] + share * x[:, np.minimum(low + 1, last)]
