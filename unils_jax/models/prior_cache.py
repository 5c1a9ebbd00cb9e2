"""The prior scale by scale: every token passes the blocks once, its keys and values are kept.

The mask makes this exact: the prefix does not see the scales, a scale does not see higher ones,
and a window's audio does not change. `MotionPrior.__call__` computes the same over the whole
sequence at once, as training needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from unils_jax.models.prior import MotionPrior, attention_mask, token_positions
from unils_jax.models.quantizer import scale_slices
from unils_jax.nn.attention import KeyValues, rotary_table
from unils_jax.nn.block import AudioCache

# Per block the keys and values of the finished parts: prefix with first scale, second scale, ...
Cache = list[list[KeyValues]]


def null_outputs(prior: MotionPrior, dtype: str = "float32") -> Float[Array, "Z J D"]:
    """Returns what each block's cross-attentions add where all audio features are zero.

    The J cross-attentions are own and other, or the one. These are constants of a model.
    """
    embeds = [embed[...].astype(dtype) for embed in prior.audio_embeds]
    rows = [
        jnp.concatenate([a.null_output(embed)[0] for a, embed in zip(block.audio_attns, embeds, strict=True)])
        for block in prior.blocks
    ]
    return jnp.stack(rows)


def cache_audio(
    prior: MotionPrior, tracks: Sequence[Float[Array, "B A E"]], null_outputs: Float[Array, "Z J D"]
) -> list[AudioCache]:
    """Precomputes for each block what all tokens of a window need of its audio.

    Args:
        prior: The generator.
        tracks: Audio features for each cross-attention.
        null_outputs: Of the function of this name.
    """
    marked, rotary = prior.mark(tracks)
    with jax.named_scope("audio_keys"):
        return [
            AudioCache(
                tuple(a.cache(x, rotary) for a, x in zip(block.audio_attns, marked, strict=True)), null_outputs[i]
            )
            for i, block in enumerate(prior.blocks)
        ]


def begin(
    prior: MotionPrior,
    style: Float[Array, "B T C"],
    prev: Float[Array, "B T C"],
    audio_cache: Sequence[AudioCache | None],
) -> tuple[Float[Array, "B 1 C 2"], Cache]:
    """Returns the logits of the first scale, float32, and the cache.

    The computation is in the dtype of `style`. The start token needs no bits, so it travels with
    the prefix: one pass over the weights instead of two.
    """
    embed = prior.token_embed(jnp.concatenate([style, prev], axis=1))
    dtype, (batch, num_frames) = embed.dtype, style.shape[:2]
    added = jnp.concatenate(
        [jnp.broadcast_to(p[...][0], (num_frames, embed.shape[-1])) for p in (prior.style_embed, prior.prev_embed)]
    )
    start = prior.start_token[...][0] + prior.scale_embed[...][:1]
    x = jnp.concatenate(
        [embed + added.astype(dtype)[None], jnp.broadcast_to(start.astype(dtype), (batch, 1, embed.shape[-1]))], axis=1
    )
    step = _Step(slice(0, 2 * num_frames + 1), audio_cache, num_logits=1)
    return _run(prior, x, step, [[] for _ in prior.blocks])


def extend(
    prior: MotionPrior,
    inputs: Float[Array, "B n C"],
    scale: int,
    audio_cache: Sequence[AudioCache | None],
    cache: Cache,
) -> tuple[Float[Array, "B n C 2"], Cache]:
    """Returns the logits of one more scale, float32, and the cache with its tokens.

    Args:
        prior: The generator.
        inputs: Next-scale inputs of the scale.
        scale: Its number, from 1.
        audio_cache: One cached window of audio for each block; Nones for a prior without audio.
        cache: Keys and values of all lower scales.
    """
    embed = prior.token_embed(inputs)
    x = embed + jnp.broadcast_to(prior.scale_embed[...][scale].astype(embed.dtype), embed.shape)
    tokens, prefix = scale_slices(prior.scales)[scale], 2 * prior.scales[-1]
    positions = slice(prefix + tokens.start, prefix + tokens.stop)
    return _run(prior, x, _Step(positions, audio_cache, num_logits=inputs.shape[1]), cache)


@dataclass(frozen=True)
class _Step:
    """New tokens of the sequence, and the audio that they attend to."""

    positions: slice  # their places in the whole sequence
    audio_cache: Sequence[AudioCache | None]  # for each block
    num_logits: int  # of the last tokens, the others only leave keys and values


def _run(prior: MotionPrior, x: Array, step: _Step, cache: Cache) -> tuple[Array, Cache]:
    rotary = rotary_table(token_positions(prior.scales)[step.positions], prior.head_dim)
    # A later scale sees all of the past and all of itself: only the first step needs a mask.
    mask = attention_mask(prior.scales)[step.positions, step.positions] if step.positions.start == 0 else None
    grown = []
    for block, past, audio in zip(prior.blocks, cache, step.audio_cache, strict=True):
        x, new = block.extend(x, rotary, past, audio, mask)
        grown.append([*past, new])
    last = x[:, x.shape[1] - step.num_logits :].astype(jnp.float32)
    # The bits are chosen from these: in float32 on every device.
    with jax.named_scope("head"), jax.default_matmul_precision("highest"):
        logits = prior.head(prior.head_norm(last))
    return logits.reshape(*logits.shape[:2], prior.code_dim, 2), grown
