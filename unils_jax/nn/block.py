"""The transformer block of codec, prior and dialogue; its parameters tell them apart."""

from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.attention import CrossAttention, Rotary, SelfAttention
from unils_jax.nn.layers import MLP, RandomKey, drop_path, split_key


@dataclass(frozen=True)
class AudioContext:
    """Audio features of both people, [B, A, E], with the rotary table of their positions."""

    own: Array
    other: Array
    rotary: Rotary


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
        key: RandomKey | None = None,
    ) -> Float[Array, "B L D"]:
        attn_key, mlp_key, *path_keys = split_key(key, 6)
        rate = self.drop_path_rate
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
