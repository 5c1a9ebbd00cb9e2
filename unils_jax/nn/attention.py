"""Rotary attention: one core, a self-attention and a cross-attention over audio."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.layers import LayerNorm, Linear, SampleKeys, dropout, split_key

# (cos, sin), each [L, K/2] float32: NumPy constants, one row per token.
Rotary = tuple[np.ndarray, np.ndarray]

# Keys (rotated) and values of tokens that later tokens attend to, [B, H, S, K] each.
KeyValues = tuple[Array, Array]


def rotary_table(positions: np.ndarray, head_dim: int) -> Rotary:
    """Returns cosine and sine [L, head_dim/2] of integer positions, base 10000.

    They are computed in float32, as the release does.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(10_000) ** exponents
    angles = positions.astype(np.float32)[:, None] * frequencies[None]
    return np.cos(angles), np.sin(angles)


def rotate(x_BLHK: Float[Array, "B L H K"], rotary: Rotary) -> Float[Array, "B L H K"]:
    """Rotates the channel pairs (2i, 2i+1) of every head by its token's angles, in float32."""
    cos, sin = (jnp.asarray(table)[None, :, None, :] for table in rotary)
    # Interleaved pairs, not halves: the release's layout, which its weights are trained for.
    pairs = x_BLHK.astype(jnp.float32).reshape(*x_BLHK.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = jnp.broadcast_to(cos, even.shape), jnp.broadcast_to(sin, even.shape)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BLHK.shape).astype(x_BLHK.dtype)


def attend(
    q_BLHK: Float[Array, "B L H K"],
    k_BSHK: Float[Array, "B S H K"],
    v_BSHK: Float[Array, "B S H K"],
    mask: Bool[np.ndarray, "L S"] | None = None,
    *,
    bias: Float[Array, "#B #H L S"] | Float[np.ndarray, "#B #H L S"] | None = None,
    dropout_rate: float = 0.0,
    key: SampleKeys | None = None,
) -> Float[Array, "B L D"]:
    """Computes softmax attention, scale 1/sqrt(K), softmax in float32.

    Args:
        q_BLHK: Queries.
        k_BSHK: Keys.
        v_BSHK: Values.
        mask: True where a query attends to a key; None: everywhere.
        bias: Added to the scaled scores; -inf hides a key.
        dropout_rate: Rate at which weights are dropped after the softmax.
        key: One random key for each sample; None: no dropout.
    """
    logits = _scores("BLHK,BSHK->BHLS", q_BLHK, k_BSHK)
    if bias is not None:
        logits = logits + jnp.asarray(bias, jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    weights = dropout(jax.nn.softmax(logits, axis=-1), dropout_rate, key).astype(v_BSHK.dtype)
    out_BLHK = jnp.einsum("BHLS,BSHK->BLHK", weights, v_BSHK)
    return out_BLHK.reshape(*out_BLHK.shape[:2], -1)


def _scores(spec: str, q: Array, k: Array) -> Array:
    """Returns q . k / sqrt(K) [B, H, L, S] in float32."""
    root = math.sqrt(q.shape[-1])
    # A power of two divides exactly anywhere: then K numbers a query are divided, not S.
    exact = math.frexp(root)[0] == 0.5
    # Products in the compute dtype, their sums in float32, as matrix units compute them anyway.
    logits = jnp.einsum(spec, q / root if exact else q, k, preferred_element_type=jnp.float32)
    return logits if exact else logits / root


def attend_cached(
    q_BLHK: Float[Array, "B L H K"], past: Sequence[KeyValues], mask: Bool[np.ndarray, "L S"] | None = None
) -> Float[Array, "B L D"]:
    """Computes `attend` on keys and values laid out by head, in the order of `past`."""
    # Laid out by head, so that only the new tokens are transposed and never the cache.
    k_BHSK, v_BHSK = (jnp.concatenate(parts, axis=2) for parts in zip(*past, strict=True))
    logits = _scores("BHLK,BHSK->BHLS", heads_first(q_BLHK), k_BHSK)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BHSK.dtype)
    out_BHLK = jnp.einsum("BHLS,BHSK->BHLK", weights, v_BHSK)
    return heads_first(out_BHLK).reshape(*q_BLHK.shape[:2], -1)


def heads_first(x: Float[Array, "B L H K"]) -> Float[Array, "B H L K"]:
    """Exchanges tokens and heads, either way."""
    return x.swapaxes(1, 2)


class SelfAttention(nnx.Module):
    """LayerNorm, one bias-free projection, rotary attention, output projection.

    The projection is split as (q, k, v), (head), (head width).
    """

    def __init__(self, dim: int, num_heads: int, *, norm_eps: float, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, norm_eps)
        self.to_qkv = Linear(dim, 3 * dim, use_bias=False, rngs=rngs)
        self.to_out = Linear(dim, dim, rngs=rngs)
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        mask: Bool[np.ndarray, "L L"] | None = None,
        key: SampleKeys | None = None,
    ) -> Float[Array, "B L D"]:
        """Lets every token attend to all tokens that `mask` (None: all) allows.

        `key` turns LoRA dropout on.
        """
        qkv_key, out_key = split_key(key, 2)
        qkv = self.to_qkv(self.norm(x), qkv_key)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.num_heads, -1), 2, 0)
        return self.to_out(attend(rotate(q, rotary), rotate(k, rotary), v, mask), out_key)

    def extend(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        past: Sequence[KeyValues],
        mask: Bool[np.ndarray, "L S"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValues]:
        """Lets new tokens attend to all of `past` and to each other, without dropout.

        Returns their outputs and their own keys and values, for tokens that follow.

        Args:
            x: The new tokens.
            rotary: Rotary table of their positions.
            past: Keys and values of all earlier tokens, in order.
            mask: True where a new token (L) attends to a token of past and new ones (S); None:
                everywhere.
        """
        qkv = self.to_qkv(self.norm(x)).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, part] for part in range(3))
        new = heads_first(rotate(k, rotary)), heads_first(v)
        return self.to_out(attend_cached(rotate(q, rotary), [*past, new], mask)), new


class CrossAttention(nnx.Module):
    """Attention of tokens to audio, without a mask.

    LayerNorm on both, projections with bias, rotary on queries and keys.
    """

    def __init__(self, dim: int, audio_dim: int, num_heads: int, *, norm_eps: float, rngs: nnx.Rngs):
        self.query_norm = LayerNorm(dim, norm_eps)
        self.audio_norm = LayerNorm(audio_dim, norm_eps)
        self.q_proj = Linear(dim, dim, rngs=rngs)
        self.k_proj = Linear(audio_dim, dim, rngs=rngs)
        self.v_proj = Linear(audio_dim, dim, rngs=rngs)
        self.out_proj = Linear(dim, dim, rngs=rngs)
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "B L D"],
        audio: Float[Array, "B A E"],
        rotary: Rotary,
        audio_rotary: Rotary,
    ) -> Float[Array, "B L D"]:
        """Lets every token attend to all frames of `audio`."""
        context = self.audio_norm(audio)
        q = self._heads(self.q_proj(self.query_norm(x)))
        k = self._heads(self.k_proj(context))
        v = self._heads(self.v_proj(context))
        return self.out_proj(attend(rotate(q, rotary), rotate(k, audio_rotary), v))

    def cache(self, audio: Float[Array, "B A E"], audio_rotary: Rotary) -> KeyValues:
        """Precomputes keys and values of the audio for `apply_cached`."""
        context = self.audio_norm(audio)
        k, v = (self._heads(layer(context)) for layer in (self.k_proj, self.v_proj))
        return heads_first(rotate(k, audio_rotary)), heads_first(v)

    def apply_cached(self, x: Float[Array, "B L D"], rotary: Rotary, cache: KeyValues) -> Float[Array, "B L D"]:
        """Attends to the audio of which `cache` was made, as the call itself would."""
        q = self._heads(self.q_proj(self.query_norm(x)))
        return self.out_proj(attend_cached(rotate(q, rotary), [cache]))

    def null_output(self, frame: Float[Array, "B 1 E"]) -> Float[Array, "B 1 D"]:
        """Returns the output for audio all of whose frames are equal to `frame`."""
        # Attention weights sum to one, so they leave that frame's value whatever the query is.
        return self.out_proj(self.v_proj(self.audio_norm(frame)))

    def _heads(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
