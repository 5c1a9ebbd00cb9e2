"""The prior scale by scale: every token passes the blocks once, its keys and values stay for the scales that follow.

The mask makes this exact: the prefix does not see the scales, a scale does not see higher ones, and a window's audio
does not change. `MotionPrior.__call__` is the same over the whole sequence at once, as training needs it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from unils_jax.models.prior import MotionPrior, attention_mask, token_positions
from unils_jax.models.quantizer import scale_slices
from unils_jax.nn.attention import KeyValues, rotary_table
from unils_jax.nn.block import AudioCache

# Per block the keys and values of the finished parts: prefix with the first scale, second scale, ...
Cache = list[list[KeyValues]]


def silent_constants(prior: MotionPrior, dtype: str = "float32") -> Float[Array, "Z J D"]:
    """Per block what the cross-attentions (own and other, or the one) add where all audio features are zero: constants
    of a model."""
    embeds = [embed[...].astype(dtype) for embed in prior.audio_embeds]
    rows = [
        jnp.concatenate([a.constant(embed)[0] for a, embed in zip(block.audio_attns, embeds, strict=True)])
        for block in prior.blocks
    ]
    return jnp.stack(rows)


def hear(
    prior: MotionPrior, tracks: Sequence[Float[Array, "B A E"]], constants: Float[Array, "Z J D"]
) -> list[AudioCache]:
    """Per block what all tokens of a window need of its audio, given as features for each cross-attention."""
    marked, rotary = prior.mark(tracks)
    with jax.named_scope("audio_keys"):
        return [
            AudioCache(tuple(a.keys(x, rotary) for a, x in zip(block.audio_attns, marked, strict=True)), constants[i])
            for i, block in enumerate(prior.blocks)
        ]


def begin(
    prior: MotionPrior, style: Float[Array, "B T C"], prev: Float[Array, "B T C"], heard: Sequence[AudioCache | None]
) -> tuple[Float[Array, "B 1 C 2"], Cache]:
    """Logits of the first scale, float32, and the cache. The computation is in the dtype of `style`.

    The start token needs no bits, so it travels with the prefix: one pass over the weights instead of two.
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
    positions = slice(0, 2 * num_frames + 1)
    mask = attention_mask(prior.scales)[positions, positions]
    return _run(prior, x, positions, [[] for _ in prior.blocks], heard, mask, num_logits=1)


def extend(
    prior: MotionPrior, inputs: Float[Array, "B n C"], scale: int, heard: Sequence[AudioCache | None], cache: Cache
) -> tuple[Float[Array, "B n C 2"], Cache]:
    """Logits of scale number `scale` (from 1), float32, from its next-scale inputs, and the cache with its tokens."""
    embed = prior.token_embed(inputs)
    x = embed + jnp.broadcast_to(prior.scale_embed[...][scale].astype(embed.dtype), embed.shape)
    tokens, prefix = scale_slices(prior.scales)[scale], 2 * prior.scales[-1]
    positions = slice(prefix + tokens.start, prefix + tokens.stop)
    return _run(prior, x, positions, cache, heard, None, num_logits=inputs.shape[1])


def _run(
    prior: MotionPrior,
    x: Array,
    positions: slice,
    cache: Cache,
    heard: Sequence[AudioCache | None],
    mask: np.ndarray | None,
    *,
    num_logits: int,
) -> tuple[Array, Cache]:
    rotary = rotary_table(token_positions(prior.scales)[positions], prior.head_dim)
    grown = []
    for block, past, audio in zip(prior.blocks, cache, heard, strict=True):
        x, new = block.extend(x, rotary, past, audio, mask)
        grown.append([*past, new])
    last = x[:, x.shape[1] - num_logits :].astype(jnp.float32)
    logits = prior.head(prior.head_norm(last))
    return logits.reshape(*logits.shape[:2], prior.code_dim, 2), grown
