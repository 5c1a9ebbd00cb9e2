"""Metrics against the values that the release's own code (UniLS) and the published script (DualTalk) computed."""

from functools import partial

import jax
import numpy as np
import pytest
from flame_golden import golden_flame_asset

from unils_jax.metrics import Mesh, unils_metrics
from unils_jax.models.flame import flame_regions, vertices

RELATIVE = 1e-5
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
        np.testing.assert_allclose(scores[role][name[-3:]], value, rtol=RELATIVE, err_msg=name)
