"""Metrics against the values that the release's own code (UniLS) and the published script (DualTalk) computed."""

import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from flame_golden import golden_flame_asset
from scipy.cluster.vq import kmeans2

from unils_jax.evaluation.dualtalk_metrics import CLUSTERS, dualtalk_metrics, kmeans, mean_pair_distance, nearest
from unils_jax.evaluation.unils_metrics import Mesh, unils_metrics
from unils_jax.face.flame import vertices
from unils_jax.face.flame_file import flame_regions
from unils_jax.motion import MOTION_56_GROUPS

RELATIVE = 1e-5
# The published code computes in float32. A deviation near 1 has a rounding error of 6e-8; a metric that is a difference
# of two, like JDD, may itself be 0.002, of which that is 3e-5. Below 1e-6 of its unit a metric says nothing.
FLOOR = 1e-6
ROLES = {"": "both", "S_": "speaking", "L_": "listening"}


@pytest.fixture(scope="module", params=["synidx", "officialidx"])
def regions(request, golden):
    """The prefix of the golden's names and the mesh with those region lists."""
    lists = {"lips": None, "upper_face": None}
    if request.param == "officialidx":
        lists = {name: flame_regions()[name] for name in lists}
    asset = golden_flame_asset(golden, **lists)
    return request.param, Mesh(jax.jit(partial(vertices, asset, head_rotation=False)), asset.lips, asset.upper_face)


@pytest.mark.parametrize("all_speaking", [False, True])
def test_every_unils_metric_equals_the_release(golden, regions, all_speaking):
    case, (prefix, mesh) = golden("flame_metrics"), regions
    mask = case.inputs["speech_mask"] | all_speaking
    prefix += ".allspeak." if all_speaking else "."
    expected = {
        name.removeprefix(prefix): value
        for name, value in case.outputs.items()
        if name.startswith(prefix) and "loss" not in name and name.count(".") == prefix.count(".")
    }
    scores = unils_metrics(case.inputs["pred_motion"][0], case.inputs["gt_motion"][0], mask, mesh)
    assert len(expected) == 8 + 3 * (not all_speaking)
    for name, value in expected.items():
        role = next(role for start, role in reversed(ROLES.items()) if name.startswith(start))
        np.testing.assert_allclose(scores[role][name[-3:]], value, rtol=RELATIVE, atol=FLOOR, err_msg=name)


@pytest.fixture(scope="module")
def dualtalk(golden):
    """The published script's inputs, cut as it cuts them, its outputs, and our metrics of them."""
    folder = golden("flame_metrics").folder.parent / "dualtalk"
    inputs, outputs = (
        dict(np.load(folder / f"metrics_{kind}.npz", allow_pickle=False)) for kind in ("inputs", "outputs")
    )
    frames = int(outputs["frames_used"])
    arrays = [inputs[name][:frames].astype(np.float32) for name in ("pred", "gt", "partner")]
    return arrays, outputs, dualtalk_metrics(*arrays)


@pytest.mark.parametrize(("group", "published"), [("expression", "exp"), ("jaw", "jaw"), ("head", "pose")])
def test_every_dualtalk_metric_equals_the_published_script(dualtalk, group, published):
    arrays, outputs, scores = dualtalk
    ours = {name: values[group] for name, values in scores.items()}
    ours |= {"variance_pred": ours["variance"], "variance_gt": ours["true_variance"]}
    for side, array in (("pred", arrays[0]), ("gt", arrays[1])):
        pairs = [outputs[f"diversity_{side}_{which}.{published}"] for which in ("first", "second")]
        ours[f"diversity_{side}"] = mean_pair_distance(array[:, MOTION_56_GROUPS[group]], *pairs)
    names = ("fd", "paired_fd", "mse", "sid", "sid_reversed", "rpcc", "sts")
    for name in (*names, "variance_pred", "variance_gt", "diversity_pred", "diversity_gt"):
        exact = outputs.get(f"f64.{name}.{published}", outputs[f"{name}.{published}"] if "sid" in name else None)
        np.testing.assert_allclose(ours[name], outputs[f"{name}.{published}"], rtol=RELATIVE, atol=FLOOR, err_msg=name)
        if exact is not None:
            np.testing.assert_allclose(ours[name], exact, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(("group", "published"), [("expression", "exp"), ("jaw", "jaw"), ("head", "pose")])
def test_clusters_are_those_that_the_published_script_found(dualtalk, group, published):
    arrays, outputs, _ = dualtalk
    prediction, truth = (array[:, MOTION_56_GROUPS[group]] for array in arrays[:2])
    for name, clustered, counted in (("sid", truth, prediction), ("sid_reversed", prediction, truth)):
        centres = kmeans(clustered, CLUSTERS[group])
        np.testing.assert_allclose(centres, outputs[f"{name}_centres.{published}"], atol=1e-5)
        labels = nearest(counted.astype(np.float64), centres)
        np.testing.assert_array_equal(labels, outputs[f"{name}_labels.{published}"])


def test_the_real_clip_agrees_with_direct_computations():
    """A person of a real recording as truth, the same a second later as prediction."""
    folder = os.environ.get("UNILS_REAL_DATA")
    if not folder:
        pytest.skip("needs outside data: set UNILS_REAL_DATA to a folder with dialogue_speaker2.npz")
    with np.load(Path(folder) / "dialogue_speaker2.npz", allow_pickle=False) as clip:
        pose = clip["pose"]
        frames = np.concatenate([clip["exp"], pose[:, 3:], pose[:, :3]], axis=1).astype(np.float32)
    prediction, truth, partner = frames[25:-25], frames[:-50], frames[50:]
    scores = dualtalk_metrics(prediction, truth, partner)
    for group, channels in MOTION_56_GROUPS.items():
        p, g, r = (x[:, channels].astype(np.float64) for x in (prediction, truth, partner))
        covariances = [np.cov(x, rowvar=False) for x in (p, g)]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        fd = ((p.mean(0) - g.mean(0)) ** 2).sum() + np.trace(sum(covariances)) - 2 * np.trace(root)
        np.testing.assert_allclose(scores["fd"][group], fd, rtol=1e-6, atol=1e-9)
        corr = [np.corrcoef(x.ravel(), r.ravel())[0, 1] for x in (g, p)]
        np.testing.assert_allclose(scores["rpcc"][group], abs(corr[0] - corr[1]), rtol=1e-9)
        sts = np.sqrt(((np.diff(p, axis=0) - np.diff(g, axis=0)) ** 2 / 0.1).sum())
        np.testing.assert_allclose(scores["sts"][group], sts, rtol=1e-9)
        settled, labels = kmeans2(g, kmeans(g, CLUSTERS[group]), iter=1, minit="matrix")
        assert np.isfinite(settled).all() and len(set(labels)) == CLUSTERS[group]
        share = np.bincount(nearest(p, kmeans(g, CLUSTERS[group])), minlength=CLUSTERS[group]) / len(p)
        np.testing.assert_allclose(scores["sid"][group], -(share * np.log2(share + 1e-6)).sum(), rtol=1e-9)
