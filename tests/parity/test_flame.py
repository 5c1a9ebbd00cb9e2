import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_flame_asset

from unils_jax.face.flame import vertices


@pytest.fixture(scope="module")
def asset(golden):
    return golden_flame_asset(golden)


@pytest.mark.parametrize(("name", "head_rotation"), [("verts_headpose", True), ("verts_nohead", False)])
def test_vertices_equal_the_release_within_a_micrometre(golden, asset, name, head_rotation):
    case = golden("flame_metrics")
    expected = case.outputs[name]
    params = jnp.asarray(case.inputs["params"][:, : expected.shape[1]])
    np.testing.assert_allclose(vertices(asset, params, head_rotation=head_rotation), expected, atol=1e-6, rtol=0)


def test_vertex_gradient_equals_the_release(golden, asset):
    case = golden("flame_metrics")
    expected = case.outputs["grad_params_sum_sq_verts_headpose"]
    gradient = jax.grad(lambda m: (vertices(asset, m, head_rotation=True) ** 2).sum())(
        jnp.asarray(case.inputs["params"])
    )
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
