"""The UniLS family and the Fréchet distances: known values, the order of known damage, and what is not defined."""

import jax
import numpy as np
import pytest
import scipy.linalg

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.evaluation.statistics import correlation, frechet_distance, merge, moments
from unils_jax.evaluation.unils_metrics import (
    CHUNK_FRAMES,
    ROLES,
    Mesh,
    role_masks,
    unils_metrics,
)
from unils_jax.face.standin import standin_asset
from unils_jax.motion import EXPRESSION, HEAD, center_head

BASIS = np.random.default_rng(7).normal(size=(108, 20, 3)).astype(np.float32) / 1000
LIPS, UPPER = np.array([1, 2, 5, 5]), np.array([0, 3, 3, 9, 11])


def linear_vertices(motion: np.ndarray) -> np.ndarray:
    """A head of 20 vertices without rotations."""
    return np.einsum("tc,cvx->tvx", motion, BASIS)


LINEAR = Mesh(linear_vertices, LIPS, UPPER)


def random_motion(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 108)).astype(np.float32)


def fid(channels: slice, prediction: np.ndarray, truth: np.ndarray) -> float:
    return frechet_distance(moments(prediction[:, channels]), moments(truth[:, channels]))


def alternating(frames: int) -> np.ndarray:
    return np.arange(frames) // 7 % 2 == 0


@pytest.fixture(scope="module")
def conversation():
    """A synthetic person: true motion, centred, and when they speak."""
    record = make_conversation(SynthConfig(minutes=1.0), 3, 0)
    return center_head(record.motion[0].astype(np.float32)), record.speech_mask[0]


def test_metrics_are_their_formulas_over_all_frames_at_once():
    frames = 2 * CHUNK_FRAMES + 37
    prediction, truth, speaking = random_motion(frames), random_motion(frames, 1), alternating(frames)
    scores = unils_metrics(prediction, truth, speaking, LINEAR)
    p, t = (1000 * linear_vertices(x).astype(np.float64) for x in (prediction, truth))
    for role, mask in role_masks(speaking).items():
        squared = ((p - t)[mask] ** 2).sum(-1)
        sums = [x[mask][:, UPPER].sum(-1).std(axis=0, ddof=1) for x in (p, t)]
        expected = {
            "LVE": np.sqrt(squared[:, LIPS].max(1).mean()),
            "MHD": np.sqrt(squared.mean()),
            "FDD": 100 * np.abs(sums[0] - sums[1]).mean(),
        }
        for name, channels in (("PDD", slice(100, 103)), ("JDD", slice(103, 104))):
            deviations = [x[mask, channels].astype(np.float64).std(axis=0, ddof=1) for x in (prediction, truth)]
            expected[name] = 100 * np.abs(deviations[0] - deviations[1]).mean()
        assert scores[role] == pytest.approx(expected, rel=1e-5)


def test_vertices_are_asked_for_in_pieces_of_one_length():
    asked = []

    def vertices(motion: np.ndarray) -> np.ndarray:
        asked.append(len(motion))
        return linear_vertices(motion)

    truth = random_motion(5 * CHUNK_FRAMES + 3)
    unils_metrics(truth, truth, alternating(len(truth)), Mesh(vertices, LIPS, UPPER))
    assert set(asked) == {CHUNK_FRAMES}


def test_truth_against_itself_is_zero():
    truth, speaking = random_motion(150), alternating(150)
    scores = unils_metrics(truth, truth, speaking, LINEAR)
    assert all(value == 0 for values in scores.values() for value in values.values())
    assert fid(EXPRESSION, truth, truth) == pytest.approx(0, abs=1e-6)
    assert fid(HEAD, truth, truth) == pytest.approx(0, abs=1e-12)


def test_more_damage_scores_worse_in_every_role(conversation):
    truth, speaking = conversation
    mean, std = truth.mean(axis=0), truth.std(axis=0)
    noise = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    damaged = [truth, truth + 0.05 * std * noise, mean + 0.5 * (truth - mean), np.tile(mean, (len(truth), 1))]
    mesh = mesh_of(standin_asset())
    masks = role_masks(speaking)
    scores = [unils_metrics(motion, truth, speaking, mesh) for motion in damaged]
    for role, mask in masks.items():
        for name in ("FDD", "PDD", "JDD"):
            values = [score[role][name] for score in scores]
            assert values == sorted(values) and len(set(values)) == 4, (role, name, values)
        for channels in (EXPRESSION, HEAD):
            values = [fid(channels, motion[mask], truth[mask]) for motion in damaged]
            assert values == sorted(values) and len(set(values)) == 4, (role, channels, values)


def test_a_frozen_face_scores_the_deviation_of_the_truth():
    truth = random_motion(80)
    frozen = np.zeros_like(truth)
    scores = unils_metrics(frozen, truth, alternating(80), LINEAR)
    assert scores["both"]["PDD"] == pytest.approx(100 * truth[:, HEAD].std(axis=0, ddof=1).mean(), rel=1e-6)
    assert np.isfinite(list(scores["both"].values())).all()


def test_two_frames_of_a_role_are_enough_and_one_is_not():
    truth = random_motion(10)
    speaking = np.zeros(10, bool)
    speaking[:2] = True
    scores = unils_metrics(truth + 1, truth, speaking, LINEAR)
    assert np.isfinite(list(scores["speaking"].values())).all()
    speaking[1] = False
    scores = unils_metrics(truth + 1, truth, speaking, LINEAR)
    assert np.isnan(list(scores["speaking"].values())).all()
    assert np.isfinite(list(scores["listening"].values())).all()


def test_someone_who_always_speaks_has_no_listening_scores():
    truth = random_motion(30)
    scores = unils_metrics(truth, truth, np.ones(30, bool), LINEAR)
    assert np.isnan(list(scores["listening"].values())).all()
    assert scores["speaking"] == scores["both"]


def test_nan_in_the_motion_gives_nan_and_no_error():
    truth, broken = random_motion(30), random_motion(30, 1)
    broken[4] = np.nan
    scores = unils_metrics(broken, truth, np.ones(30, bool), LINEAR)
    assert np.isnan(list(scores["both"].values())).all()
    assert np.isnan(fid(EXPRESSION, broken, truth)) and np.isnan(fid(HEAD, truth, broken))


def test_without_a_mesh_there_are_the_pose_metrics_alone():
    truth = random_motion(30)
    assert {role: set(v) for role, v in unils_metrics(truth, truth, alternating(30)).items()} == {
        role: {"PDD", "JDD"} for role in ROLES
    }


def test_vertices_leave_the_head_rotation_out(conversation):
    truth, speaking = conversation
    turned = truth.copy()
    turned[:, HEAD] += 0.5
    scores = unils_metrics(turned[:200], truth[:200], speaking[:200], mesh_of(standin_asset()))
    assert scores["both"]["LVE"] == 0 and scores["both"]["FDD"] == 0


@pytest.mark.parametrize("channels", [3, 40])
def test_frechet_distance_is_the_textbook_formula(channels):
    rng = np.random.default_rng(channels)
    a, b = (rng.normal(size=(300, channels)) @ rng.normal(size=(channels, channels)) + rng.normal() for _ in range(2))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_takes_singular_covariances():
    frames = random_motion(20)[:, :100].astype(np.float64)  # fewer frames than channels
    constant = np.tile(frames.mean(axis=0), (20, 1))
    expected = np.trace(np.cov(frames, rowvar=False))
    assert frechet_distance(moments(frames), moments(constant)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_needs_two_frames():
    frames = random_motion(5)[:, :3]
    assert np.isnan(frechet_distance(moments(frames[:1]), moments(frames)))
    assert np.isfinite(frechet_distance(moments(frames[:2]), moments(frames)))


def test_merged_moments_are_those_of_all_frames():
    parts = [random_motion(n, n)[:, :6].astype(np.float64) for n in (4, 9, 0, 2)]
    weights = np.array([2, 1, 5, 0])
    merged = merge([moments(part) for part in parts], weights)
    together = moments(np.concatenate([parts[0], parts[0], parts[1]]))
    assert merged.count == together.count == 17
    np.testing.assert_allclose(merged.total, together.total)
    np.testing.assert_allclose(merged.products, together.products)


def test_correlation_of_a_constant_is_not_defined():
    x = np.arange(5.0)
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert np.isnan(correlation(x, np.ones(5)))
    assert np.isnan(correlation(x[:1], x[:1]))
    assert np.isnan(correlation(x, np.array([0, 1, np.nan, 2, 3])))


def test_the_jitted_mesh_of_a_head_compiles_once():
    mesh = mesh_of(standin_asset())
    truth = random_motion(130) * np.float32(0.01)
    with jax.log_compiles(False):
        unils_metrics(truth, truth, alternating(130), mesh)
        unils_metrics(truth[:90], truth[:90], alternating(90), mesh)
    assert mesh.vertices._cache_size() == 1
