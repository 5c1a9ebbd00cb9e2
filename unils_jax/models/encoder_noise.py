"""What acts on a speech encoder in training: dropout, skipped layers and masked frames.

wav2vec2 and WavLM share it, as transformers does. UniLS keeps its encoder frozen and without
noise; other systems train theirs.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.layers import RandomKey


@dataclass(frozen=True)
class EncoderRates:
    """How often noise acts; the defaults are wav2vec2-large-960h-lv60-self's, from memory."""

    # Dropout rates: of the blocks' outputs, of attention weights, inside the feed-forward layers,
    # and of the projected features.
    hidden: float = 0.1
    attention: float = 0.1
    activation: float = 0.1
    projection: float = 0.1
    layer_drop: float = 0.1  # probability that a layer is skipped, for the whole batch
    mask_prob: float = 0.05  # share of the frames that masked spans should cover; 0 masks nothing
    mask_frames: int = 10  # length of a span
    min_spans: int = 2  # in each sample, however short


DEFAULT_RATES = EncoderRates()


@dataclass(frozen=True)
class EncoderNoise:
    """One draw for a batch. All parts lie along the batch, so that it can be cut."""

    keys: Array  # [B] random keys, for dropout
    masked: Array  # [B, A] bool: frames that become the encoder's `masked_spec_embed`
    skipped: Array  # [B, depth] bool: layers that are skipped

    def mask(self, x: Float[Array, "B A E"], embed: Float[Array, " E"]) -> Float[Array, "B A E"]:
        """Replaces the masked frames of `x` by `embed`."""
        return jnp.where(self.masked[..., None], embed.astype(x.dtype)[None, None], x)


jax.tree_util.register_dataclass(EncoderNoise, ["keys", "masked", "skipped"], [])


def draw_encoder_noise(
    key: RandomKey, batch_size: int, num_frames: int, depth: int, rates: EncoderRates
) -> EncoderNoise:
    """Draws the noise of a whole batch.

    Args:
        key: The random key of the draw.
        batch_size: Samples of the batch.
        num_frames: Frames of each sample, at the transformer's rate.
        depth: Layers of the transformer.
        rates: How often noise acts.
    """
    layer_key, skip_key, mask_key = jax.random.split(key, 3)
    skipped = jax.random.bernoulli(skip_key, rates.layer_drop, (1, depth))
    masked = draw_time_mask(mask_key, batch_size, num_frames, rates)
    return EncoderNoise(jax.random.split(layer_key, batch_size), masked, jnp.broadcast_to(skipped, (batch_size, depth)))


def draw_time_mask(key: RandomKey, batch_size: int, num_frames: int, rates: EncoderRates) -> Bool[Array, "B A"]:
    """Draws which frames are masked; none where there are too few frames for it.

    The number of spans is rounded at random once a batch, and their starts are drawn without
    replacement. Rows with more masked frames than the fewest are thinned at random to as many.
    """
    length = rates.mask_frames
    mean_spans = rates.mask_prob * num_frames / length
    max_spans = max(rates.min_spans, int(mean_spans) + 1)
    if rates.mask_prob == 0 or num_frames - length < max_spans:
        return jnp.zeros((batch_size, num_frames), bool)
    count_key, start_key, thin_key = jax.random.split(key, 3)
    num_spans = jnp.maximum(rates.min_spans, jnp.floor(mean_spans + jax.random.uniform(count_key)).astype(jnp.int32))
    # The largest of random scores are starts without replacement. As many spans are always drawn,
    # for a static shape, and the surplus covers nothing.
    scores = jax.random.uniform(start_key, (batch_size, num_frames - length))
    _, starts = jax.lax.top_k(scores, max_spans)
    offsets = np.arange(num_frames)[None, None] - starts[..., None]
    covered = (offsets >= 0) & (offsets < length) & (jnp.arange(max_spans) < num_spans)[None, :, None]
    masked = covered.any(1)
    # Masked frames in a random order, then all others: the first so many of each row stay masked.
    order = jnp.argsort(jnp.where(masked, jax.random.uniform(thin_key, masked.shape), 2.0), axis=-1)
    ranks = jnp.argsort(order, axis=-1)
    return masked & (ranks < masked.sum(-1).min())
