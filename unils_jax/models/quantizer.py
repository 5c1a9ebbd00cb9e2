"""Multi-scale binary spherical quantisation: a latent window becomes bits, coarse to fine.

Nothing here has parameters. The resize matrices are NumPy constants. Source: the paper's codec section and the
release's quantiser; the binary form is binary spherical quantisation (BSQ).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.layers import RandomKey

INVERSE_TEMPERATURE = 100.0
COMMIT_WEIGHT = 0.2
ENTROPY_WEIGHT = 0.1

Scales = tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """`bits [B, L, C]` (targets), `flipped_bits` (what the inputs are made of), `features [B, T, C]` with
    straight-through gradients, and of every scale its loss, `losses [K]`, and the `means [K, 2, C]` of `bit_probabilities`."""

    bits: Array
    flipped_bits: Array
    features: Array
    losses: Array
    means: Array


jax.tree_util.register_dataclass(Quantized, ["bits", "flipped_bits", "features", "losses", "means"], [])


@lru_cache(maxsize=64)
def area_matrix(from_frames: int, to_frames: int) -> np.ndarray:
    """[to, from] adaptive average pooling: row j averages frames floor(j*T/n) .. ceil((j+1)*T/n) - 1."""
    matrix = np.zeros((to_frames, from_frames), np.float32)
    for row in range(to_frames):
        start = row * from_frames // to_frames
        stop = -(-(row + 1) * from_frames // to_frames)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


@lru_cache(maxsize=64)
def linear_matrix(from_frames: int, to_frames: int) -> np.ndarray:
    """[to, from] linear interpolation with half-pixel centres and clamped edges (`align_corners=False`)."""
    source = np.maximum((np.arange(to_frames) + 0.5) * from_frames / to_frames - 0.5, 0)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, from_frames - 1)
    weight = source - low
    matrix = np.zeros((to_frames, from_frames))
    np.add.at(matrix, (np.arange(to_frames), low), 1 - weight)
    np.add.at(matrix, (np.arange(to_frames), high), weight)
    return matrix.astype(np.float32)


def area_pool(x: Float[Array, "B T C"], to_frames: int) -> Float[Array, "B n C"]:
    """Adaptive average pooling over time; the identity where the length already fits."""
    return _resize(x, area_matrix, to_frames)


def upsample(x: Float[Array, "B n C"], to_frames: int) -> Float[Array, "B T C"]:
    """Linear interpolation over time; the identity where the length already fits."""
    return _resize(x, linear_matrix, to_frames)


def _resize(x, make_matrix, to_frames):
    if x.shape[1] == to_frames:
        return x
    return jnp.einsum("tn,Bnc->Btc", make_matrix(x.shape[1], to_frames).astype(x.dtype), x)


def scale_slices(scales: Scales) -> list[slice]:
    """Where each scale's tokens stand among the sum(scales) tokens of a window."""
    ends = list(accumulate(scales))
    return [slice(end - size, end) for end, size in zip(ends, scales, strict=True)]


def to_codes(bits: Array) -> Float[Array, "B L C"]:
    """Bits (0/1 or bool) as codes +-1/sqrt(C), float32."""
    return (bits.astype(jnp.float32) * 2 - 1) / math.sqrt(bits.shape[-1])


def quantize(
    latent: Float[Array, "B T C"],
    scales: Scales,
    flips: Bool[Array, "B F C"] | None = None,
    sample_weights: Float[Array, " B"] | None = None,
    whole_means: Float[Array, "K 2 C"] | None = None,
) -> Quantized:
    """Quantises residually over scales.

    `flips` (F = all tokens but the last scale's) inverts bits: the flipped codes feed the next residual and the
    features, while `bits` are what was quantised along that noisy path. `sample_weights` and `whole_means` matter to the losses
    alone, see `scale_loss`.
    """
    frames = latent.shape[1]
    residual, features = latent, jnp.zeros_like(latent)
    bits, flipped_bits, losses, means = [], [], [], []
    for index, (scale, tokens) in enumerate(zip(scales, scale_slices(scales), strict=True)):
        z = l2_normalize(area_pool(residual, scale))
        bit = z > 0
        flipped = bit if flips is None or scale == scales[-1] else bit ^ flips[:, tokens]
        code = to_codes(flipped).astype(z.dtype)
        features = features + upsample(z + jax.lax.stop_gradient(code - z), frames)
        residual = residual - upsample(code, frames)
        bits.append(bit)
        flipped_bits.append(flipped)
        mean = bit_probabilities(z, sample_weights)
        losses.append(
            scale_loss(
                z, to_codes(bit).astype(z.dtype), sample_weights, None if whole_means is None else whole_means[index]
            )
        )
        means.append(mean)
    bits, flipped_bits = (jnp.concatenate(parts, axis=1) for parts in (bits, flipped_bits))
    return Quantized(bits, flipped_bits, features, jnp.stack(losses), jnp.stack(means))


def l2_normalize(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """`x / max(|x|, 1e-12)` over channels; the gradient at zero is finite."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))


def scale_loss(
    z: Float[Array, "B n C"],
    code: Float[Array, "B n C"],
    sample_weights: Float[Array, " B"] | None = None,
    whole_means: Float[Array, "2 C"] | None = None,
) -> Float[Array, ""]:
    """Commitment plus entropy of one scale: codes should be sure of themselves and differ from each other.

    `sample_weights` weigh the samples (default: all alike). The entropy of the batch is no mean over samples, so a batch that
    is worked off in parts needs `bit_probabilities` of the whole: with `whole_means` the losses of all parts sum to the loss
    of the whole batch, and so do their gradients.

    q is the sigmoid of the negated logit and never `1 - p`: compilers fold `1 - p + 1e-8` into `1 - p`, whose
    logarithm is -inf for saturated tokens.
    """
    sample_weights = _shares(z, sample_weights)
    commit = jnp.sum(jnp.square(jax.lax.stop_gradient(code) - z), axis=-1).mean(1)
    sample_entropy = jnp.sum(_binary_entropy(*_bit_probabilities(z)), axis=-1).mean(1)
    means = bit_probabilities(z, sample_weights)
    if whole_means is None:
        batch_entropy = jnp.sum(_binary_entropy(*means))
    else:
        means = means + jax.lax.stop_gradient(whole_means - means)
        batch_entropy = jnp.sum(_binary_entropy(*means))
        # The parts' values sum to the whole's, while each has the gradient of its own samples in full.
        batch_entropy = batch_entropy - jax.lax.stop_gradient((1 - sample_weights.sum()) * batch_entropy)
    entropy = jnp.sum(sample_weights * sample_entropy) - batch_entropy
    return COMMIT_WEIGHT * jnp.sum(sample_weights * commit) + ENTROPY_WEIGHT * entropy / INVERSE_TEMPERATURE


def bit_probabilities(
    z: Float[Array, "B n C"], sample_weights: Float[Array, " B"] | None = None
) -> Float[Array, "2 C"]:
    """The mean probabilities p and q of one scale's bits, over its tokens and, by their shares, the samples."""
    p, q = _bit_probabilities(z)
    return jnp.einsum("B,xBC->xC", _shares(z, sample_weights), jnp.stack([p.mean(1), q.mean(1)]))


def _bit_probabilities(z: Array) -> tuple[Array, Array]:
    logit = 4 * z / math.sqrt(z.shape[-1]) * INVERSE_TEMPERATURE
    return jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)


def _shares(z: Array, sample_weights: Array | None) -> Array:
    return jnp.full(z.shape[0], 1 / z.shape[0], z.dtype) if sample_weights is None else sample_weights


def _binary_entropy(p: Array, q: Array) -> Array:
    return -(p * jnp.log(p + 1e-8) + q * jnp.log(q + 1e-8))


def full_features(bits: Array, scales: Scales) -> Float[Array, "B T C"]:
    """The sum over scales of the up-sampled codes of `bits [B, L, C]`: it conditions, and it decodes to motion."""
    codes = to_codes(bits)
    return sum(upsample(codes[:, tokens], scales[-1]) for tokens in scale_slices(scales))


def next_scale_inputs(bits: Array, scales: Scales) -> Float[Array, "B I C"]:
    """What the generator reads at scales 1..K-1: the features of all lower scales, pooled to the scale's length.

    `bits` may hold the lower scales only; as many inputs come back as follow from them.
    """
    codes = to_codes(bits)
    features = jnp.zeros((bits.shape[0], scales[-1], bits.shape[-1]))
    inputs = []
    for tokens, next_scale in zip(scale_slices(scales), scales[1:], strict=False):
        if tokens.stop > bits.shape[1]:
            break
        features = features + upsample(codes[:, tokens], scales[-1])
        inputs.append(area_pool(features, next_scale))
    return jnp.concatenate(inputs, axis=1)


def draw_flips(
    key: RandomKey, batch: tuple[int, ...], code_dim: int, scales: Scales, max_percent: int = 30
) -> Bool[Array, "*B F C"]:
    """Bit-flip noise: each scale but the last draws one rate from {0, 0.01, ..., max} for the whole batch."""
    masks = []
    for scale, scale_key in zip(scales[:-1], jax.random.split(key, len(scales) - 1), strict=True):
        rate_key, bit_key = jax.random.split(scale_key)
        rate = jax.random.randint(rate_key, (), 0, max_percent + 1).astype(jnp.float32) / 100
        masks.append(jax.random.bernoulli(bit_key, rate, (*batch, scale, code_dim)))
    return jnp.concatenate(masks, axis=-2)
