"""The transformer block that codec, prior and dialogue share."""

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
    """The audio that the cross-attentions of one block attend to."""

    tracks: tuple[Array, ...]  # features [B, A, E] for each cross-attention
    rotary: Rotary  # of the positions of their frames


@dataclass(frozen=True)
class AudioCache:
    """Cross-attention keys and values of one window, one of each for the batch's leading rows."""

    tracks: tuple[KeyValues, ...]  # for each of the block's J cross-attentions
    # [J, D]: what each cross-attention adds for all further rows, which are unconditional.
    null_outputs: Array


jax.tree_util.register_dataclass(AudioCache, ["tracks", "null_outputs"], [])


@dataclass(frozen=True)
class BlockSizes:
    """What one block consists of."""

    dim: int  # of the tokens, a multiple of num_heads
    num_heads: int
    hidden_dim: int  # of the MLP
    norm_eps: float
    mlp_norm: bool  # whether the MLP begins with a layer norm; the codec's does not
    audio_dim: int | None = None  # of audio features; None: no cross-attention
    num_tracks: int = 2  # cross-attentions where there is audio: 2, own and other, or 1


class Block(nnx.Module):
    """Residual self-attention, then attention to audio where there is any, then the MLP.

    Attention to audio is attention to the own and then to the other track, or to one track alone.
    Each residual branch goes through drop-path with the block's rate.
    """

    def __init__(self, sizes: BlockSizes, *, drop_path_rate: float = 0.0, rngs: nnx.Rngs):
        dim, num_heads, eps = sizes.dim, sizes.num_heads, sizes.norm_eps
        self.self_attn = SelfAttention(dim, num_heads, norm_eps=eps, rngs=rngs)
        self.mlp = MLP(dim, sizes.hidden_dim, norm_eps=eps if sizes.mlp_norm else None, rngs=rngs)
        if sizes.audio_dim is not None and sizes.num_tracks == 1:
            self.audio_attn = CrossAttention(dim, sizes.audio_dim, num_heads, norm_eps=eps, rngs=rngs)
        elif sizes.audio_dim is not None:
            self.own_audio_attn = CrossAttention(dim, sizes.audio_dim, num_heads, norm_eps=eps, rngs=rngs)
            self.other_audio_attn = CrossAttention(dim, sizes.audio_dim, num_heads, norm_eps=eps, rngs=rngs)
        self.num_tracks = sizes.num_tracks
        self.drop_path_rate = drop_path_rate

    @property
    def audio_attns(self) -> tuple[CrossAttention, ...]:
        """The cross-attentions in the order of their work: own and other, or the one.

        Only a block with audio has them.
        """
        return (self.audio_attn,) if self.num_tracks == 1 else (self.own_audio_attn, self.other_audio_attn)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        rotary: Rotary,
        mask: Bool[np.ndarray, "L L"] | None = None,
        audio: AudioContext | None = None,
        key: SampleKeys | None = None,
        rate: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """Applies the block to whole sequences.

        Args:
            x: The tokens.
            rotary: Rotary table of their positions.
            mask: True where a token attends to another one; None: everywhere.
            audio: What the cross-attentions attend to; None skips them.
            key: One random key for each sample, which turns drop-path and LoRA dropout on; None:
                evaluation.
            rate: Drop-path rate instead of the block's, where one traced body serves several
                blocks.
        """
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
    if num_conditional == x.shape[0]:
        return conditional
    # Not a concatenation: XLA's softmax fusion for CUDA (jax 0.10.2) fails on one before a norm.
    return jnp.broadcast_to(null_output, x.shape).at[:num_conditional].set(conditional)
