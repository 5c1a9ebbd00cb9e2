"""Statistics of motion: moments, Fréchet distances, correlations and bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

LEVEL = 0.95  # of bootstrap intervals


@dataclass(frozen=True)
class Moments:
    """The moments of a set of frames, as a Fréchet distance needs them; `merge` unites sets.

    For a split, `expression_fid` (the paper's F-FID) is the Fréchet distance between the Gaussians
    of predicted and true per-frame expression (100 channels), `pose_fid` (P-FID) that of head
    rotation (3, radians), over all frames of the split that belong to a role, un-normalised, each
    frame weighing the same. Like every such distance it is too large on few frames: compare equal
    amounts.
    """

    count: int  # frames
    total: Float64[np.ndarray, " C"]  # their sum
    products: Float64[np.ndarray, "C C"]  # sum of x x^T, not centred, so that sets add up

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean and the unbiased covariance; it needs at least two frames."""
        mean = self.total / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


def moments(frames: Float[np.ndarray, "T C"]) -> Moments:
    """Returns the moments of frames, in float64."""
    frames = frames.astype(np.float64)
    return Moments(len(frames), frames.sum(axis=0), frames.T @ frames)


def merge(parts: Sequence[Moments], weights: Int[np.ndarray, " n"] | None = None) -> Moments:
    """Returns the moments of all parts together (at least one), part i taken `weights[i]` times."""
    weights = np.ones(len(parts), np.int64) if weights is None else weights
    counts, totals, products = (np.stack(values) for values in zip(*map(_fields, parts), strict=True))
    return Moments(int(weights @ counts), np.tensordot(weights, totals, 1), np.tensordot(weights, products, 1))


def _fields(part: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(part.count), part.total, part.products


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the Fréchet distance of two Gaussians in squared units of the channels, at least 0.

    It is |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). The root's trace is the sum of the
    roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), a symmetric matrix, so that singular
    covariances (constant channels, fewer frames than channels) need no special case. NaN where
    either side has fewer than two frames or holds NaN.
    """
    if min(a.count, b.count) < 2 or not all(np.isfinite(m.products).all() for m in (a, b)):
        return float("nan")
    (mean_a, cov_a), (mean_b, cov_b) = a.mean_and_covariance(), b.mean_and_covariance()
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross.clip(0)).sum()
    return float(max(distance, 0.0))


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Returns the Pearson correlation of two tracks.

    NaN below two values, and where either side is constant or holds NaN.
    """
    if len(a) < 2:
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def bootstrap_interval(values: Float[np.ndarray, " W"]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of `values`, resampled 2,000 times."""
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
