"""Multi-scale binary spherical quantisation: a latent window becomes bits, coarse to fine.

Nothing here has parameters. The resize matrices are NumPy constants. Source: the paper's codec
section and the release's quantiser; the binary form is binary spherical quantisation (BSQ).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.nn.layers import RandomKey

# Constants of the quantiser's loss.
INVERSE_TEMPERATURE = 100.0  # of the soft assignment of a latent to its codes
COMMIT_WEIGHT = 0.2
ENTROPY_WEIGHT = 0.1

# Tokens of each scale, rising; the last number is the window's frames.
Scales = tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """A quantised batch of windows."""

    bits: Array  # [B, L, C], the generator's targets
    flipped_bits: Array  # [B, L, C], with noise; the generator's inputs are made of them
    features: Array  # [B, T, C], with straight-through gradients
    partial: tuple[Array, ...]  # K times [B, T, C]: the features of each scale and all coarser ones
    losses: Array  # [K], one a scale
    means: Array  # [K, 2, C], `bit_probabilities` of each scale


jax.tree_util.register_dataclass(Quantized, ["bits", "flipped_bits", "features", "partial", "losses", "means"], [])


@lru_cache(maxsize=64)
def area_matrix(from_frames: int, to_frames: int) -> np.ndarray:
    """Returns the [to, from] matrix of adaptive average pooling.

    Row j averages frames floor(j*T/n) .. ceil((j+1)*T/n) - 1.
    """
    matrix = np.zeros((to_frames, from_frames), np.float32)
    for row in range(to_frames):
        start = row * from_frames // to_frames
        stop = -(-(row + 1) * from_frames // to_frames)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


@lru_cache(maxsize=64)
def linear_matrix(from_frames: int, to_frames: int) -> np.ndarray:
    """Returns the [to, from] matrix of linear interpolation with half-pixel centres.

    Edges are clamped (`align_corners=False`).
    """
    source = np.maximum((np.arange(to_frames) + 0.5) * from_frames / to_frames - 0.5, 0)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, from_frames - 1)
    weight = source - low
    matrix = np.zeros((to_frames, from_frames))
    np.add.at(matrix, (np.arange(to_frames), low), 1 - weight)
    np.add.at(matrix, (np.arange(to_frames), high), weight)
    return matrix.astype(np.float32)


def area_pool(x: Float[Array, "B T C"], to_frames: int) -> Float[Array, "B n C"]:
    """Pools over time by adaptive averages; the identity where the length already fits."""
    return _resize(x, area_matrix, to_frames)


def upsample(x: Float[Array, "B n C"], to_frames: int) -> Float[Array, "B T C"]:
    """Interpolates linearly over time; the identity where the length already fits."""
    return _resize(x, linear_matrix, to_frames)


def _resize(x: Array, make_matrix: Callable[[int, int], np.ndarray], to_frames: int) -> Array:
    if x.shape[1] == to_frames:
        return x
    # Exact: a residual's sign is a bit.
    matrix = make_matrix(x.shape[1], to_frames).astype(x.dtype)
    return jnp.einsum("tn,Bnc->Btc", matrix, x, precision="highest")


def scale_slices(scales: Scales) -> list[slice]:
    """Returns the slice of each scale among the sum(scales) tokens of a window."""
    ends = list(accumulate(scales))
    return [slice(end - size, end) for end, size in zip(ends, scales, strict=True)]


def to_codes(bits: Array) -> Float[Array, "B L C"]:
    """Converts bits (0/1 or bool) to codes +-1/sqrt(C), float32."""
    return (bits.astype(jnp.float32) * 2 - 1) / math.sqrt(bits.shape[-1])


def quantize(
    latent: Float[Array, "B T C"],
    scales: Scales,
    flips: Bool[Array, "B F C"] | None = None,
    sample_weights: Float[Array, " B"] | None = None,
    global_means: Float[Array, "K 2 C"] | None = None,
) -> Quantized:
    """Quantises residually over scales.

    Args:
        latent: The encoder's output of a window.
        scales: Tokens of each scale.
        flips: Bits to invert as noise, for all F tokens but the last scale's. The flipped codes
            feed the next residual and the features; the returned `bits` are what was quantised
            along that noisy path. None: no noise.
        sample_weights: As in `scale_loss`; they matter to the losses alone.
        global_means: As in `scale_loss`; they matter to the losses alone.
    """
    frames = latent.shape[1]
    residual, features = latent, jnp.zeros_like(latent)
    bits, flipped_bits, partial, losses, means = [], [], [], [], []
    for index, (scale, tokens) in enumerate(zip(scales, scale_slices(scales), strict=True)):
        z = l2_normalize(area_pool(residual, scale))
        bit = z > 0
        # The last scale has no next one to mislead: it is never flipped.
        flipped = bit if flips is None or scale == scales[-1] else bit ^ flips[:, tokens]
        code = to_codes(flipped).astype(z.dtype)
        # Straight-through: the value of the code, the gradient of z.
        features = features + upsample(z + jax.lax.stop_gradient(code - z), frames)
        residual = residual - upsample(code, frames)
        partial.append(features)
        bits.append(bit)
        flipped_bits.append(flipped)
        scale_means = None if global_means is None else global_means[index]
        losses.append(scale_loss(z, to_codes(bit).astype(z.dtype), sample_weights, scale_means))
        means.append(bit_probabilities(z, sample_weights))
    bits, flipped_bits = (jnp.concatenate(parts, axis=1) for parts in (bits, flipped_bits))
    return Quantized(bits, flipped_bits, features, tuple(partial), jnp.stack(losses), jnp.stack(means))


def l2_normalize(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Computes `x / max(|x|, 1e-12)` over channels; the gradient at zero is finite."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))


def scale_loss(
    z: Float[Array, "B n C"],
    code: Float[Array, "B n C"],
    sample_weights: Float[Array, " B"] | None = None,
    global_means: Float[Array, "2 C"] | None = None,
) -> Float[Array, ""]:
    """Computes commitment plus entropy of one scale.

    A code should be unambiguous, and codes should differ from each other: the entropy of each
    sample is low and that of the batch high. The entropy of the batch is no mean over samples, so a
    batch that is processed in parts needs `bit_probabilities` of the whole: with `global_means` the
    losses of all parts sum to the loss of the whole batch, and so do their gradients.

    Args:
        z: Normalised residuals.
        code: Their codes.
        sample_weights: Weights of the samples; None: all equal.
        global_means: `bit_probabilities` of the whole batch; None: this is the whole batch.
    """
    sample_weights = _weights(z, sample_weights)
    commit = jnp.sum(jnp.square(jax.lax.stop_gradient(code) - z), axis=-1).mean(1)
    sample_entropy = jnp.sum(_binary_entropy(*_bit_probabilities(z)), axis=-1).mean(1)
    means = bit_probabilities(z, sample_weights)
    if global_means is None:
        batch_entropy = jnp.sum(_binary_entropy(*means))
    else:
        # The value of the whole batch's means, the gradient of this part's.
        means = means + jax.lax.stop_gradient(global_means - means)
        batch_entropy = jnp.sum(_binary_entropy(*means))
        # The parts' values sum to the whole's, while each has the full gradient of its samples.
        batch_entropy = batch_entropy - jax.lax.stop_gradient((1 - sample_weights.sum()) * batch_entropy)
    entropy = jnp.sum(sample_weights * sample_entropy) - batch_entropy
    return COMMIT_WEIGHT * jnp.sum(sample_weights * commit) + ENTROPY_WEIGHT * entropy / INVERSE_TEMPERATURE


def bit_probabilities(
    z: Float[Array, "B n C"], sample_weights: Float[Array, " B"] | None = None
) -> Float[Array, "2 C"]:
    """Returns the mean probabilities p and q of one scale's bits.

    They are means over its tokens and, by `sample_weights` (None: all equal), over the samples.
    """
    p, q = _bit_probabilities(z)
    means = jnp.stack([p.mean(1), q.mean(1)])
    return jnp.einsum("B,xBC->xC", _weights(z, sample_weights), means, precision="highest")


def _bit_probabilities(z: Array) -> tuple[Array, Array]:
    logit = 4 * z / math.sqrt(z.shape[-1]) * INVERSE_TEMPERATURE
    # q is never `1 - p`: compilers fold `1 - p + 1e-8` into `1 - p`, whose logarithm is -inf for
    # saturated tokens.
    return jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)


def _weights(z: Array, sample_weights: Array | None) -> Array:
    return jnp.full(z.shape[0], 1 / z.shape[0], z.dtype) if sample_weights is None else sample_weights


def _binary_entropy(p: Array, q: Array) -> Array:
    return -(p * jnp.log(p + 1e-8) + q * jnp.log(q + 1e-8))


def full_features(bits: Array, scales: Scales) -> Float[Array, "B T C"]:
    """Sums the up-sampled codes of `bits [B, L, C]` over all scales.

    The result conditions generators, and it decodes to motion.
    """
    codes = to_codes(bits)
    return sum(upsample(codes[:, tokens], scales[-1]) for tokens in scale_slices(scales))


def next_scale_inputs(bits: Array, scales: Scales) -> Float[Array, "B I C"]:
    """Computes what the generator reads at scales 1..K-1.

    For each scale these are the features of all lower scales, pooled to the scale's length. `bits`
    may hold the lower scales only; as many inputs come back as follow from them.
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
    """Draws bit-flip noise for all scales but the last.

    Each scale draws one rate from {0, 0.01, ..., max_percent / 100} for the whole batch.
    """
    masks = []
    for scale, scale_key in zip(scales[:-1], jax.random.split(key, len(scales) - 1), strict=True):
        rate_key, bit_key = jax.random.split(scale_key)
        rate = jax.random.randint(rate_key, (), 0, max_percent + 1).astype(jnp.float32) / 100
        masks.append(jax.random.bernoulli(bit_key, rate, (*batch, scale, code_dim)))
    return jnp.concatenate(masks, axis=-2)
