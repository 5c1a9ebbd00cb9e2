"""The DualTalk family of metrics on 56 channels: expression 50, jaw 3 and head 3, each alone.

Frames are those of one sequence, cut to equal length by the caller. An undefined value (too few
frames, a constant where a correlation is needed, NaN in the input) is NaN. Source: DualTalk's
published evaluation script and, for `sid`, TIMAR. Everything is float64.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from unils_jax.evaluation.statistics import correlation, frechet_distance, moments
from unils_jax.motion import MOTION_56_GROUPS

Frames = Float[np.ndarray, "T C"]

# Figures that are against the partner's motion, by their paths in a report.
WITH_PARTNER = ("dualtalk/paired_fd", "dualtalk/rpcc")
CLUSTERS = {"expression": 40, "jaw": 10, "head": 10}
STS_SCALE = 0.1  # the script's constant; it is not the frame time
NUM_PAIRS = 100
KMEANS_SEED, KMEANS_STEPS, KMEANS_TOLERANCE = 0, 300, 1e-4


def dualtalk_metrics(
    prediction: Float[np.ndarray, "T 56"],
    truth: Float[np.ndarray, "T 56"],
    partner: Float[np.ndarray, "T 56"],
    mask: Bool[np.ndarray, " T"] | None = None,
    *,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Returns all metrics of each group over the frames of `mask` (None: all frames).

    `partner` is the other person's true motion. Jaw components that a source lacks are zero and
    count as channels in the means of `mse`, `variance` and `rpcc`. `diversity` and `variance` are
    of the prediction, `true_diversity` and `true_variance` of the truth. `seed` draws the frames of
    `diversity`.
    """
    mask = np.ones(len(truth), bool) if mask is None else mask
    scores: dict[str, dict[str, float]] = {}
    for group, channels in MOTION_56_GROUPS.items():
        p, g, r = (x[:, channels].astype(np.float64) for x in (prediction, truth, partner))
        # A step belongs to the mask where both of its frames do.
        step_mask = mask[1:] & mask[:-1]
        sts = similarity_of_steps(np.diff(p, axis=0)[step_mask], np.diff(g, axis=0)[step_mask])
        p, g, r = p[mask], g[mask], r[mask]
        clusters = CLUSTERS[group]
        values = {
            "fd": frechet_distance(moments(p), moments(g)),
            "paired_fd": paired_fd(p, g, r),
            "mse": _mean((p - g) ** 2),
            "sid": sid(p, g, clusters),
            "sid_reversed": sid(g, p, clusters),
            "rpcc": rpcc(p, g, r),
            "sts": sts,
            "diversity": diversity(p, seed),
            "true_diversity": diversity(g, seed),
            "variance": variance(p),
            "true_variance": variance(g),
        }
        for name, value in values.items():
            scores.setdefault(name, {})[group] = value
    return scores


def paired_fd(prediction: Frames, truth: Frames, partner: Frames) -> float:
    """Returns the Fréchet distance of [partner | prediction] from [partner | truth].

    This is the published P-FD; it is not `pose_fid`.
    """
    return frechet_distance(*(moments(np.concatenate([partner, own], axis=1)) for own in (prediction, truth)))


def variance(frames: Frames) -> float:
    """Returns the mean over channels of the population variance over time."""
    return _mean(frames.astype(np.float64).var(axis=0)) if len(frames) else float("nan")


def similarity_of_steps(prediction: Frames, truth: Frames) -> float:
    """Returns STS: the root of the *sum* over frames and channels of squared difference / 0.1.

    The arguments are first differences over time. The value grows with length and channels. NaN
    without a step.
    """
    if not len(truth):
        return float("nan")
    return float(np.sqrt(((prediction.astype(np.float64) - truth) ** 2 / STS_SCALE).sum()))


def rpcc(prediction: Frames, truth: Frames, partner: Frames) -> float:
    """Returns |corr(truth, partner) - corr(prediction, partner)|.

    Each is one Pearson correlation over all frames and channels flattened together.
    """
    return abs(correlation(truth.ravel(), partner.ravel()) - correlation(prediction.ravel(), partner.ravel()))


def diversity(frames: Frames, seed: int = 0) -> float:
    """Returns the mean distance of 100 random pairs of frames; NaN below 100 frames.

    Each side of the pairs is drawn without replacement. The published script draws without a seed.
    """
    if len(frames) < NUM_PAIRS:
        return float("nan")
    rng = np.random.default_rng(seed)
    first, second = (rng.choice(len(frames), NUM_PAIRS, replace=False) for _ in range(2))
    return mean_pair_distance(frames, first, second)


def mean_pair_distance(frames: Frames, first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> float:
    """Returns the mean Euclidean distance of the frames `first[i]` and `second[i]`."""
    frames = frames.astype(np.float64)
    return _mean(np.linalg.norm(frames[first] - frames[second], axis=1))


def sid(prediction: Frames, truth: Frames, num_clusters: int) -> float:
    """Returns the Shannon index of diversity in bits, over clusters fitted on the truth.

    It is the entropy of the prediction's histogram over the clusters, `-sum p log2(p + 1e-6)`: at
    most log2(num_clusters), higher is more diverse, about 0 for a constant prediction. With the
    arguments swapped it is `sid_reversed`, which the published script computes. NaN below
    `num_clusters` frames of the truth, and where either side holds NaN or infinity.
    """
    if len(truth) < num_clusters or not (np.isfinite(truth).all() and np.isfinite(prediction).all()):
        return float("nan")
    labels = nearest(prediction.astype(np.float64), kmeans(truth, num_clusters))
    p = np.bincount(labels, minlength=num_clusters) / len(labels)
    return float(-(p * np.log2(p + 1e-6)).sum())


def kmeans(frames: Frames, num_clusters: int) -> Float[np.ndarray, "K C"]:
    """Returns cluster centres: greedy k-means++ drawn once, then Lloyd's steps until convergence.

    Deterministic, and meant to be reproduced: the draws are those of scikit-learn's
    KMeans(random_state=0), which the published script uses, in its order. A cluster that loses all
    its frames gets the frame farthest from its centre.
    """
    frames = frames.astype(np.float64)
    # scikit-learn centres the data and scales its tolerance: its centres come out to rounding.
    mean = frames.mean(axis=0)
    x = frames - mean
    tolerance = KMEANS_TOLERANCE * x.var(axis=0).mean()
    centres = _plus_plus(x, num_clusters, np.random.RandomState(KMEANS_SEED))
    labels = np.full(len(x), -1)
    for _ in range(KMEANS_STEPS):
        new_labels = nearest(x, centres)
        moved = _cluster_means(x, new_labels, centres)
        shift = ((moved - centres) ** 2).sum()
        centres, same, labels = moved, np.array_equal(new_labels, labels), new_labels
        if same or shift <= tolerance:
            break
    return centres + mean


def nearest(frames: Frames, centres: Float[np.ndarray, "K C"]) -> Int[np.ndarray, " T"]:
    """Returns the index of each frame's nearest centre; the first one where several are equal."""
    return _squared_distances(frames, centres).argmin(axis=1)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ y.T + (y**2).sum(axis=1)[None]
    return np.maximum(squared, 0)  # the expanded square may round below zero


def _plus_plus(x: np.ndarray, num_clusters: int, rng: np.random.RandomState) -> np.ndarray:
    """Returns the first centres of greedy k-means++.

    Each centre is the best, by the distances it leaves, of 2 + log(K) frames drawn by squared
    distance.
    """
    num_trials = 2 + int(np.log(num_clusters))
    chosen = [int(rng.choice(len(x), p=np.full(len(x), 1 / len(x))))]
    left = _squared_distances(x, x[chosen])[:, 0]
    # `left` is each frame's squared distance to its nearest centre so far.
    for _ in range(num_clusters - 1):
        draws = rng.uniform(size=num_trials) * left.sum()
        tried = np.searchsorted(np.cumsum(left), draws).clip(max=len(x) - 1)
        after = np.minimum(left[:, None], _squared_distances(x, x[tried]))
        best = after.sum(axis=0).argmin()
        chosen.append(int(tried[best]))
        left = after[:, best]
    return x[chosen]


def _cluster_means(x: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels, minlength=len(centres)).astype(np.float64)
    sums = np.zeros_like(centres)
    np.add.at(sums, labels, x)
    empty = np.flatnonzero(counts == 0)
    sums[empty], counts[empty] = centres[empty], 1  # an empty cluster stays where no frame can be spared
    # A frame may move only out of a cluster that keeps another.
    distances = ((x - centres[labels]) ** 2).sum(axis=1)
    spare = (f for f in distances.argsort()[::-1] if distances[f] > 0 and counts[labels[f]] > 1)
    for cluster, frame in zip(empty, spare, strict=False):
        sums[labels[frame]] -= x[frame]
        counts[labels[frame]] -= 1
        sums[cluster] = x[frame]
    return sums / counts[:, None]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
