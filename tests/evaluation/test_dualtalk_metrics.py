"""The DualTalk family against direct computations on random data; the goldens are in tests/parity."""

import numpy as np
import pytest
import scipy.linalg
from scipy.cluster.vq import kmeans2

from unils_jax.evaluation.dualtalk_metrics import CLUSTERS, diversity, dualtalk_metrics, kmeans, nearest, sid
from unils_jax.motion import MOTION_56_DIM, MOTION_56_GROUPS, to_56_channels

FRAMES = 240


def frames(seed: int, num: int = FRAMES) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, MOTION_56_DIM)).cumsum(axis=0) * 0.2).astype(np.float32)


@pytest.fixture(scope="module")
def three():
    return frames(0), frames(1), frames(2)


@pytest.fixture(scope="module")
def scores(three):
    return dualtalk_metrics(*three)


def direct_fd(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)


@pytest.mark.parametrize("group", MOTION_56_GROUPS)
def test_metrics_are_their_formulas(three, scores, group):
    p, g, r = (x[:, MOTION_56_GROUPS[group]].astype(np.float64) for x in three)
    corr = [np.corrcoef(x.ravel(), r.ravel())[0, 1] for x in (g, p)]
    expected = {
        "fd": direct_fd(p, g),
        "paired_fd": direct_fd(np.hstack([r, p]), np.hstack([r, g])),
        "mse": np.mean((p - g) ** 2),
        "sts": np.sqrt(np.sum((np.diff(p, axis=0) - np.diff(g, axis=0)) ** 2 / 0.1)),
        "rpcc": abs(corr[0] - corr[1]),
        "variance": p.var(axis=0).mean(),
        "true_variance": g.var(axis=0).mean(),
    }
    for name, value in expected.items():
        assert scores[name][group] == pytest.approx(value, rel=1e-7), name


@pytest.mark.parametrize("group", MOTION_56_GROUPS)
def test_sid_is_the_entropy_over_clusters_that_lloyd_would_leave_as_they_are(three, scores, group):
    p, g, _ = (x[:, MOTION_56_GROUPS[group]].astype(np.float64) for x in three)
    k = CLUSTERS[group]
    for name, clustered, counted in (("sid", g, p), ("sid_reversed", p, g)):
        centres = kmeans(clustered, k)
        settled, _ = kmeans2(clustered, centres, iter=1, minit="matrix")
        np.testing.assert_allclose(centres, settled, atol=0.05 * clustered.std())
        share = np.bincount(np.argmin(((counted[:, None] - centres[None]) ** 2).sum(-1), axis=1), minlength=k) / FRAMES
        assert scores[name][group] == pytest.approx(-(share * np.log2(share + 1e-6)).sum(), rel=1e-9)


def test_truth_against_itself_has_its_known_values(three):
    _, truth, partner = three
    scores = dualtalk_metrics(truth, truth, partner)
    for name in ("fd", "paired_fd", "mse", "sts", "rpcc"):
        assert list(scores[name].values()) == pytest.approx([0, 0, 0], abs=1e-5), name
    assert scores["sid"] == scores["sid_reversed"]
    assert scores["diversity"] == scores["true_diversity"]
    assert scores["variance"] == scores["true_variance"]


def test_clusters_that_stand_apart_are_found():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 4)) * 100
    x = np.concatenate([centre + rng.normal(size=(20, 4)) for centre in centres])
    found = kmeans(x, 6)
    assert sorted(np.bincount(nearest(x, found))) == [20] * 6
    np.testing.assert_allclose(sorted(found[:, 0]), sorted(x.reshape(6, 20, 4).mean(1)[:, 0]))


def test_evenly_used_clusters_give_the_logarithm_of_their_number():
    x = np.repeat(np.arange(8.0)[:, None] * 10, 5, axis=0) + np.tile([[0.0], [0.1], [0.2], [0.3], [0.4]], (8, 1))
    assert sid(x, x, 8) == pytest.approx(3, abs=1e-4)


def test_a_constant_prediction_has_no_diversity(three):
    _, truth, partner = three
    scores = dualtalk_metrics(np.zeros_like(truth), truth, partner)
    for group in MOTION_56_GROUPS:
        assert scores["sid"][group] == pytest.approx(0, abs=1e-5)
        assert scores["diversity"][group] == scores["variance"][group] == 0
        assert np.isnan(scores["rpcc"][group])
        # The clusters of a constant are all one: the truth falls into it whole.
        assert scores["sid_reversed"][group] == pytest.approx(0, abs=1e-5)


def test_fewer_distinct_frames_than_clusters_are_clustered_all_the_same():
    x = np.repeat(np.eye(3), 20, axis=0)
    centres = kmeans(x, 10)
    assert np.isfinite(centres).all()
    assert sid(x, x, 10) == pytest.approx(np.log2(3), abs=1e-4)


def test_too_few_frames_leave_what_needs_more_undefined(three):
    p, g, r = (x[:30] for x in three)
    scores = dualtalk_metrics(p, g, r)
    assert np.isnan(scores["sid"]["expression"]) and np.isfinite(scores["sid"]["jaw"])  # 40 clusters, 10
    assert np.isnan(scores["diversity"]["jaw"])  # 100 pairs
    one = dualtalk_metrics(p[:1], g[:1], r[:1])
    for name in ("fd", "paired_fd", "sid", "sts", "diversity"):
        assert np.isnan(one[name]["head"]), name


def test_nan_in_a_prediction_is_undefined_and_no_error(three):
    p, g, r = three
    broken = p.copy()
    broken[3] = np.nan
    scores = dualtalk_metrics(broken, g, r)
    for name, groups in scores.items():
        assert np.isnan(groups["jaw"]) != name.startswith("true_"), name


def test_a_mask_looks_at_its_frames_alone(three):
    p, g, r = three
    mask = np.arange(FRAMES) < 150
    spoiled = [np.where(mask[:, None], x, 99).astype(np.float32) for x in (p, g, r)]
    assert dualtalk_metrics(*spoiled, mask) == dualtalk_metrics(p[:150], g[:150], r[:150])


def test_diversity_is_seeded(three):
    x = three[0][:, MOTION_56_GROUPS["head"]]
    assert diversity(x, 1) == diversity(x, 1) != diversity(x, 2)


def test_our_108_channels_become_56_with_a_padded_jaw():
    motion = np.arange(3 * 108, dtype=np.float32).reshape(3, 108)
    x = to_56_channels(motion)
    assert x.shape == (3, MOTION_56_DIM)
    np.testing.assert_array_equal(x[0], [*range(50), 103, 0, 0, 100, 101, 102])
