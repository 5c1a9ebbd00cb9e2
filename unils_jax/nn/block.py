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
    """Audio features [B, A, E] for each of a block's cross-attentions, with the rotary table of their positions."""

    tracks: tuple[Array, ...]
    rotary: Rotary


@dataclass(frozen=True)
class AudioCache:
    """Cross-attention keys and values of one window, of which the leading rows of a batch have one each."""

    tracks: tuple[KeyValues, ...]  # for each of the block's J cross-attentions
    # [J, D]: what each cross-attention adds for all further rows, which are unconditional.
    null_outputs: Array


jax.tree_util.register_dataclass(AudioCache, ["tracks", "null_outputs"], [])


class Block(nnx.Module):
    """Residual self-attention, then (with `audio_dim`) attention to own and to other audio, then the MLP.

    With `one_audio` there is one attention to audio instead of the two. Each residual branch goes through drop-path
    with the block's rate.
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
        one_audio: bool = False,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.self_attn = SelfAttention(dim, num_heads, norm_eps=norm_eps, rngs=rngs)
        self.mlp = MLP(dim, hidden_dim, norm_eps=norm_eps if mlp_norm else None, rngs=rngs)
        if audio_dim is not None and one_audio:
            self.audio_attn = CrossAttention(dim, audio_dim, num_heads, norm_eps=norm_eps, rngs=rngs)
        elif audio_dim is not None:
            self.own_audio_attn = CrossAttention(dim, audio_dim, num_heads, norm_eps=norm_eps, rngs=rngs)
            self.other_audio_attn = CrossAttention(dim, audio_dim, num_heads, norm_eps=norm_eps, rngs=rngs)
        self.one_audio = one_audio
        self.drop_path_rate = drop_path_rate

    @property
    def audio_attns(self) -> tuple[CrossAttention, ...]:
        """The attentions to audio in the order of their work: own and other, or the one; of a block that hears."""
        return (self.audio_attn,) if self.one_audio else (self.own_audio_attn, self.other_audio_attn)

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
                for attention, track, path_key in zip(self.audio_attns, audio.tracks, path_keys[1:], strict=False):
                    x = x + drop_path(attention(x, track, rotary, audio.rotary), rate, path_key)
        with jax.named_scope("mlp"):
            return x + drop_path(self.mlp(x, mlp_key), rate, path_keys[3])

    def extend(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        past: Sequence[KeyValues] = (),
        audio_cache: AudioCache | None = None,
        mask: Bool[np.ndarray, "L S"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValues]:
        """Applies the block to tokens that follow those of `past`, without dropout.

        Returns their outputs and their own keys and values.

        Args:
            x: The new tokens.
            rotary: Rotary table of their positions.
            past: Keys and values of all earlier tokens, in order.
            audio_cache: The window's audio; None for a block without cross-attention.
            mask: True where a new token (L) attends to a token of past and new ones (S); None:
                everywhere.
        """
        with jax.named_scope("self_attn"):
            attended, new = self.self_attn.extend(x, rotary, past, mask)
            x = x + attended
        if audio_cache is not None:
            with jax.named_scope("audio_attn"):
                for i, (attention, track) in enumerate(zip(self.audio_attns, audio_cache.tracks, strict=True)):
                    x = x + _attend_audio(attention, x, rotary, track, audio_cache.null_outputs[i])
        with jax.named_scope("mlp"):
            return x + self.mlp(x), new


def _attend_audio(attention: CrossAttention, x: Array, rotary: Rotary, cache: KeyValues, null_output: Array) -> Array:
    """Attends to cached audio; rows beyond the cache are unconditional and get `null_output`."""
    num_conditional = cache[0].shape[0]
    conditional = attention.apply_cached(x[:num_conditional], rotary, cache)
    unconditional = jnp.broadcast_to(null_output, x[num_conditional:].shape)
    return jnp.concatenate([conditional, unconditional])
