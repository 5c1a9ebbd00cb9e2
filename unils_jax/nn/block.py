"""The transformer block of codec, prior and dialogue; its parameters tell them apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.attention import CrossAttention, KeyValues, Rotary, SelfAttention
from unils_jax.nn.layers import MLP, SampleKeys, drop_path, split_key


@dataclass(frozen=True)
class AudioContext:
    """Audio features of both people, [B, A, E], with the rotary table of their positions."""

    own: Array
    other: Array
    rotary: Rotary


@dataclass(frozen=True)
class Heard:
    """What a block needs of a window's audio: keys and values of `own` and `other` for the leading rows, and the
    constants [2, D] (own, other) that stand for silence of the features in all further rows."""

    own: KeyValues
    other: KeyValues
    constants: Array


jax.tree_util.register_dataclass(Heard, ["own", "other", "constants"], [])


class Block(nnx.Module):
    """Residual self-attention, then (with `audio_dim`) attention to own and to other audio, then the MLP.

    Each residual branch goes through drop-path with the block's rate.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        norm_eps: float,
        mlp_norm: bool,
        audio_dim: int | None = None,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.self_attn = SelfAttention(dim, num_heads, norm_eps=norm_eps, rngs=rngs)
        self.mlp = MLP(dim, hidden_dim, norm_eps=norm_eps if mlp_norm else None, rngs=rngs)
        if audio_dim is not None:
            self.own_audio_attn = CrossAttention(dim, audio_dim, num_heads, norm_eps=norm_eps, rngs=rngs)
            self.other_audio_attn = CrossAttention(dim, audio_dim, num_heads, norm_eps=norm_eps, rngs=rngs)
        self.drop_path_rate = drop_path_rate

    def __call__(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        mask: Bool[np.ndarray, "L L"] | None = None,
        audio: AudioContext | None = None,
        key: SampleKeys | None = None,
        rate: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """`rate` stands in for the block's own drop-path rate, where one traced body serves several blocks."""
        attn_key, mlp_key, *path_keys = split_key(key, 6)
        rate = self.drop_path_rate if rate is None else rate
        with jax.named_scope("self_attn"):
            x = x + drop_path(self.self_attn(x, rotary, mask, attn_key), rate, path_keys[0])
        if audio is not None:
            with jax.named_scope("audio_attn"):
                own = self.own_audio_attn(x, audio.own, rotary, audio.rotary)
                x = x + drop_path(own, rate, path_keys[1])
                other = self.other_audio_attn(x, audio.other, rotary, audio.rotary)
                x = x + drop_path(other, rate, path_keys[2])
        with jax.named_scope("mlp"):
            return x + drop_path(self.mlp(x, mlp_key), rate, path_keys[3])

    def extend(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        past: Sequence[KeyValues] = (),
        heard: Heard | None = None,
        mask: Bool[np.ndarray, "L S"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValues]:
        """The call in evaluation for tokens that follow those of `past`, and their own keys and values."""
        with jax.named_scope("self_attn"):
            attended, new = self.self_attn.extend(x, rotary, past, mask)
            x = x + attended
        if heard is not None:
            with jax.named_scope("audio_attn"):
                x = x + _look(self.own_audio_attn, x, rotary, heard.own, heard.constants[0])
                x = x + _look(self.other_audio_attn, x, rotary, heard.other, heard.constants[1])
        with jax.named_scope("mlp"):
            return x + self.mlp(x), new


def _look(attention: CrossAttention, x: Array, rotary: Rotary, keys: KeyValues, constant: Array) -> Array:
    hearing = keys[0].shape[0]
    looked = attention.look(x[:hearing], rotary, keys)
    deaf = jnp.broadcast_to(constant, (x.shape[0] - hearing, *x.shape[1:]))
    return jnp.concatenate([looked, deaf])
