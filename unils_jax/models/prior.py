"""Stages 2 and 3: the motion prior over bits, autoregressive over scales.

With `PriorConfig.bit_chain` it is also autoregressive over the bits of a token.
Cross-attention to audio is optional: the prior has none, the dialogue has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.models.codec import CodecConfig
from unils_jax.models.quantizer import Scales
from unils_jax.motion import Window
from unils_jax.nn.attention import Rotary, rotary_table
from unils_jax.nn.block import AudioContext, Block, BlockSizes
from unils_jax.nn.layers import LayerNorm, Linear, SampleKeys, split_key, token_init
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks

# Every Linear that LoRA adapts in stage 3.
LORA_PATTERN = r"token_embed|head|blocks/\d+/self_attn/(to_qkv|to_out)|blocks/\d+/mlp/(up|down)"


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the prior; the defaults are the paper's."""

    width: int = 512  # of the tokens; width / num_heads must be even
    depth: int = 8  # blocks
    num_heads: int = 8  # of every attention
    audio_dim: int | None = None  # of the audio features; None: no cross-attention, as in stage 2
    # What the cross-attentions attend to, one of `motion.AUDIO_CONDITIONS`: "pair" (own and other
    # track, by two), "own" (own track alone) or "mixed" (the sum of both).
    audio_condition: str = "pair"
    # Windows of previous motion that condition it, and as many of style. 1 is the release's.
    context_windows: int = 1
    # Frames of audio before the window that the cross-attentions see besides those of the window. 0
    # is the release's.
    past_audio_frames: int = 0
    lookahead_frames: int = 0  # the same after the window; a stream waits for them
    # True: a bit's logit also depends, linearly, on the bits of its token before it. False: given
    # the lower scales, the bits of a token are independent, as in the paper.
    bit_chain: bool = False

    def without_audio(self) -> "PriorConfig":
        """Returns the sizes of the prior that a dialogue starts from."""
        return replace(self, audio_dim=None, audio_condition="pair", past_audio_frames=0, lookahead_frames=0)

    def window(self, frames: int) -> Window:
        """Returns what it decodes at a time, on a codec whose windows have so many frames."""
        return Window(frames, self.context_windows, self.past_audio_frames, self.lookahead_frames)


@lru_cache(maxsize=16)
def token_positions(scales: Scales, context_windows: int = 1) -> np.ndarray:
    """Returns rotary positions of the whole sequence: style and previous frames, then scales.

    Frames are counted from the oldest, 0..199 in the release. A scale of n tokens is at `200 +
    round(p)`, p the odd points of linspace(0, 99, 2n+1), half to even.
    """
    frames, prefix = scales[-1], 2 * context_windows * scales[-1]
    per_scale = [prefix + np.round(np.linspace(0, frames - 1, 2 * n + 1)[1::2]) for n in scales]
    return np.concatenate([np.arange(prefix), *per_scale]).astype(np.int64)


@lru_cache(maxsize=16)
def audio_positions(num_features: int, window: Window) -> np.ndarray:
    """Returns rotary positions of audio features, `200 + trunc(linspace(0, 100, A+1)[:-1])`.

    That is the release's; audio before the window continues downwards into the previous motion's
    positions.
    """
    points = np.linspace(0, window.audio_frames, num_features + 1, dtype=np.float32)[:-1]
    return 2 * window.context_frames - window.past_audio_frames + points.astype(np.int64)


@lru_cache(maxsize=16)
def attention_mask(scales: Scales, context_windows: int = 1) -> np.ndarray:
    """Returns the mask [prefix + L, prefix + L]: True where a row attends to a column.

    The prefix (style and previous motion) sees the prefix; a scale token sees the prefix and scales
    up to its own.
    """
    level = np.concatenate([np.full(2 * context_windows * scales[-1], -1), scale_levels(scales)])
    return level[None, :] <= level[:, None]


def scale_levels(scales: Scales) -> np.ndarray:
    """Returns the scale index of each of the L tokens."""
    return np.repeat(np.arange(len(scales)), scales)


class MotionPrior(nnx.Module):
    """Logits of every bit of a window, given style, previous motion and the lower scales.

    With audio they also depend on the tracks that `PriorConfig.audio_condition` names.
    """

    def __init__(self, config: PriorConfig, codec: CodecConfig, *, rngs: nnx.Rngs):
        width = config.width

        def learned(shape: tuple[int, ...]) -> nnx.Param:
            return nnx.Param(token_init(shape[-1])(rngs.params(), shape))

        self.start_token = learned((1, 1, width))
        self.token_embed = Linear(codec.code_dim, width, rngs=rngs)
        self.scale_embed = nnx.Param(token_init(width)(rngs.params(), (len(codec.scales), width)))
        self.style_embed = learned((1, 1, width))
        self.prev_embed = learned((1, 1, width))
        num_tracks = 2 if config.audio_condition == "pair" else 1
        if config.audio_dim is not None and num_tracks == 1:
            self.audio_embed = learned((1, 1, config.audio_dim))
        elif config.audio_dim is not None:
            self.own_audio_embed = learned((1, 1, config.audio_dim))
            self.other_audio_embed = learned((1, 1, config.audio_dim))
        sizes = BlockSizes(width, config.num_heads, 4 * width, 1e-6, True, config.audio_dim, num_tracks)
        # Drop-path rises with depth, to a rate that itself depends on the number of blocks.
        rates = np.linspace(0, 0.1 * config.depth / 24, config.depth)
        self.blocks = nnx.List(Block(sizes, drop_path_rate=float(rate), rngs=rngs) for rate in rates)
        self.head_norm = LayerNorm(width, 1e-5)
        self.head = Linear(width, 2 * codec.code_dim, rngs=rngs)
        if config.bit_chain:
            # At zero the bits are independent: training starts as it does without the chain.
            self.bit_chain = nnx.Param(jnp.zeros((len(codec.scales), codec.code_dim, codec.code_dim)))
        self.has_bit_chain = config.bit_chain
        self.scales = codec.scales
        self.window = config.window(codec.window_frames)
        self.code_dim = codec.code_dim
        self.head_dim = width // config.num_heads
        self.has_audio = config.audio_dim is not None
        self.audio_condition = config.audio_condition

    @property
    def audio_embeds(self) -> tuple[nnx.Param, ...]:
        """The learned vectors that mark the audio of each of a block's `audio_attns`.

        Only a prior with audio has them.
        """
        return (self.own_audio_embed, self.other_audio_embed) if self.audio_condition == "pair" else (self.audio_embed,)

    def __call__(
        self,
        style: Float[Array, "B F C"],
        prev: Float[Array, "B F C"],
        inputs: Float[Array, "B I C"],
        own_audio: Float[Array, "B A E"] | None = None,
        other_audio: Float[Array, "B A E"] | None = None,
        key: SampleKeys | None = None,
        compute: Compute = FLOAT32,
    ) -> Float[Array, "B L C 2"]:
        """Returns logits [B, L, C, 2] (bit = 0, bit = 1) of the scales that the inputs reach.

        They have the dtype of `compute`.

        Args:
            style: Full features of the style windows.
            prev: Full features of the previous windows, the oldest first.
            inputs: Next-scale inputs of the first scales, I = L - 1; an empty axis gives the first
                scale alone.
            own_audio: Features in the dtype of `compute`; the one track where there is one
                cross-attention; None without audio.
            other_audio: Features of the other track, where there are two cross-attentions.
            key: One random key for each sample: turns drop-path and LoRA dropout on. None:
                evaluation.
            compute: How the blocks are run.
        """
        embed_key, head_key, *block_keys = split_key(key, 2 + len(self.blocks))
        frames = self.window.context_frames
        features = jnp.concatenate([style, prev, inputs], axis=1).astype(compute.dtype)
        # Style, previous motion and lower scales are of one kind: one embedding serves all.
        tokens = self.token_embed(features, embed_key)
        batch, num_tokens = tokens.shape[0], inputs.shape[1] + 1

        def learned(param: nnx.Param, num: int) -> Array:
            value = param[...].astype(tokens.dtype)
            return jnp.broadcast_to(value, (batch, num, value.shape[-1]))

        levels = scale_levels(self.scales)[:num_tokens]
        # The first scale has no lower one to read: a learned token is its input.
        start = learned(self.start_token, 1)
        scale_tokens = jnp.concatenate([start, tokens[:, 2 * frames :]], axis=1)
        x = jnp.concatenate(
            [
                tokens[:, :frames] + learned(self.style_embed, frames),
                tokens[:, frames : 2 * frames] + learned(self.prev_embed, frames),
                scale_tokens + self.scale_embed[...].astype(tokens.dtype)[levels][None],
            ],
            axis=1,
        )
        rotary = rotary_table(token_positions(self.scales, self.window.context_windows)[: x.shape[1]], self.head_dim)
        mask = attention_mask(self.scales, self.window.context_windows)[: x.shape[1], : x.shape[1]]
        audio = self._audio_context([track for track in (own_audio, other_audio) if track is not None])
        rates = [block.drop_path_rate for block in self.blocks]
        values = list(zip(block_keys, rates, strict=True))
        x = run_blocks(
            self.blocks, x, lambda block, x, key, rate: block(x, rotary, mask, audio, key, rate), values, compute
        )
        logits = self.head(self.head_norm(x[:, 2 * frames :]), head_key)
        return logits.reshape(batch, num_tokens, self.code_dim, 2)

    def chain(self, scale: int) -> Float[Array, "C C"] | None:
        """Returns what the bits of a token add to each other's logits at a scale.

        Row c holds the weights of the bits (+-1) before bit c; None where bits are independent.
        """
        return jnp.tril(self.bit_chain[...][scale], -1) if self.has_bit_chain else None

    def chained(self, logits: Float[Array, "B L C 2"], bits: Array) -> Float[Array, "B L C 2"]:
        """Adds to the call's logits what follows from the bits before each in its token.

        `bits` are [B, L, C]. Without a chain the logits stay as they are.
        """
        if not self.has_bit_chain:
            return logits
        chains = jnp.tril(self.bit_chain[...], -1)[scale_levels(self.scales)[: logits.shape[1]]]
        # In float32 also where parameters are of the compute dtype.
        added = jnp.einsum("lcd,bld->blc", chains.astype(jnp.float32), bits.astype(jnp.float32) * 2 - 1)
        return logits.at[..., 1].add(added.astype(logits.dtype))

    def _audio_context(self, tracks: Sequence[Array]) -> AudioContext | None:
        """Marks the tracks for the cross-attentions; None for a prior without audio."""
        return AudioContext(*self.mark(tracks)) if self.has_audio else None

    def mark(self, tracks: Sequence[Float[Array, "B A E"]]) -> tuple[tuple[Float[Array, "B A E"], ...], Rotary]:
        """Adds each cross-attention's learned vector to its audio features.

        Also returns the rotary table of the frames' positions.
        """
        positions = audio_positions(tracks[0].shape[1], self.window)
        marked = tuple(
            track + jnp.broadcast_to(embed[...].astype(track.dtype), track.shape)
            for track, embed in zip(tracks, self.audio_embeds, strict=True)
        )
        return marked, rotary_table(positions, self.head_dim)


def bit_cross_entropy(logits: Float[Array, "*B L C 2"], bits: Array) -> Float[Array, "*B L C"]:
    """Returns the cross-entropy of every bit in nats, float32.

    Its mean over all bits is the training loss of stages 2 and 3.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.where(bits.astype(bool), log_probs[..., 1], log_probs[..., 0])
