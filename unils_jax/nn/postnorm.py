"""Multi-head attention and post-norm transformer layers as in `torch.nn`.

They compute, draw and name parameters as there. Several systems are built of these. Dropout
acts where a key for each sample is given.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.nn.attention import attend
from unils_jax.nn.layers import LayerNorm, Linear, SampleKeys, dropout, split_key, uniform_init

NORM_EPS = 1e-5

# Added to attention scores of queries L and keys S; leading axes of one serve all samples or heads.
SelfBias = Float[Array, "#B #H L L"] | Float[np.ndarray, "#B #H L L"]
CrossBias = Float[Array, "#B #H L S"] | Float[np.ndarray, "#B #H L S"]


class MultiHeadAttention(nnx.Module):
    """Attention with one projection of [q | k | v], each cut into heads by slices.

    All parts have biases. `in_proj` is Xavier-uniform over its whole [3D, D] and starts without
    bias, as does `out_proj`.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        # The bound of the whole projection, not of each third, as torch draws it.
        xavier = uniform_init(math.sqrt(6 / (dim + 3 * dim)))
        self.in_proj = Linear(dim, 3 * dim, kernel_init=xavier, bias_init=zeros, rngs=rngs)
        self.out_proj = Linear(dim, dim, bias_init=zeros, rngs=rngs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B S D"] | None = None,
        bias: CrossBias | None = None,
        key: SampleKeys | None = None,
    ) -> Float[Array, "B L D"]:
        """Attends with queries of `x`, keys and values of `memory` (None: of `x`).

        Args:
            x: The tokens.
            memory: What they attend to; None: themselves.
            bias: Added to the scores, leading axes of one for all samples or heads; None: no mask.
            key: One random key for each sample, for dropout of the weights; None: no dropout.
        """
        # One product where queries, keys and values read the same tokens.
        if memory is None:
            q, k, v = jnp.split(self.in_proj(x), 3, axis=-1)
        else:
            dim = x.shape[-1]
            q, (k, v) = self._project(x, 0, dim), jnp.split(self._project(memory, dim, 3 * dim), 2, axis=-1)
        q, k, v = (part.reshape(*part.shape[:2], self.num_heads, -1) for part in (q, k, v))
        return self.out_proj(attend(q, k, v, bias=bias, dropout_rate=self.dropout_rate, key=key))

    def _project(self, x: Array, start: int, stop: int) -> Array:
        # Columns of the one projection: queries and memory have different lengths.
        y = x @ self.in_proj.kernel[:, start:stop].astype(x.dtype)
        return y + jnp.broadcast_to(self.in_proj.bias[start:stop].astype(x.dtype), y.shape)


class FeedForward(nnx.Module):
    """up -> ReLU -> dropout -> down."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        self.up = Linear(dim, hidden_dim, rngs=rngs)
        self.down = Linear(hidden_dim, dim, rngs=rngs)
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "B L D"], key: SampleKeys | None = None) -> Float[Array, "B L D"]:
        """Applies the layers; `key` turns dropout on."""
        return self.down(dropout(jax.nn.relu(self.up(x)), self.dropout_rate, key))


class EncoderLayer(nnx.Module):
    """`x = norm(x + attention(x))`, then `x = norm(x + feed-forward(x))`.

    Dropout acts on attention weights, inside the feed-forward and on either branch.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.self_norm = LayerNorm(dim, NORM_EPS)
        self.mlp = FeedForward(dim, hidden_dim, dropout_rate=dropout_rate, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, NORM_EPS)
        self.dropout_rate = dropout_rate

    def __call__(
        self, x: Float[Array, "B L D"], bias: SelfBias | None = None, key: SampleKeys | None = None
    ) -> Float[Array, "B L D"]:
        """Applies the layer; `bias` is added to the attention's scores, `key` turns dropout on."""
        attn_key, attn_drop, mlp_key, mlp_drop = split_key(key, 4)
        x = self.self_norm(x + dropout(self.self_attn(x, None, bias, attn_key), self.dropout_rate, attn_drop))
        return self.mlp_norm(x + dropout(self.mlp(x, mlp_key), self.dropout_rate, mlp_drop))


class DecoderLayer(nnx.Module):
    """An encoder layer with attention to `memory` between its halves; it brings no mask."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, *, dropout_rate: float = 0.0, rngs: nnx.Rngs):
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.self_norm = LayerNorm(dim, NORM_EPS)
        self.cross_attn = MultiHeadAttention(dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.cross_norm = LayerNorm(dim, NORM_EPS)
        self.mlp = FeedForward(dim, hidden_dim, dropout_rate=dropout_rate, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, NORM_EPS)
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B S D"],
        bias: SelfBias | None = None,
        memory_bias: CrossBias | None = None,
        key: SampleKeys | None = None,
    ) -> Float[Array, "B L D"]:
        """Applies the layer.

        Args:
            x: The tokens.
            memory: What the cross-attention attends to.
            bias: Added to the scores of the self-attention; None: no mask.
            memory_bias: Added to the scores of the cross-attention; None: no mask.
            key: One random key for each sample, for dropout; None: evaluation.
        """
        self_key, self_drop, cross_key, cross_drop, mlp_key, mlp_drop = split_key(key, 6)
        rate = self.dropout_rate
        x = self.self_norm(x + dropout(self.self_attn(x, None, bias, self_key), rate, self_drop))
        x = self.cross_norm(x + dropout(self.cross_attn(x, memory, memory_bias, cross_key), rate, cross_drop))
        return self.mlp_norm(x + dropout(self.mlp(x, mlp_key), rate, mlp_drop))
