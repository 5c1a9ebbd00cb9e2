import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.face.flame import FlameAsset, vertices
from unils_jax.face.standin import standin_asset
from unils_jax.face.standin_mesh import build_mesh
from unils_jax.motion import EYES, JAW, STANDIN_SHAPES

NAMES = list(STANDIN_SHAPES)


@pytest.fixture(scope="module")
def asset() -> FlameAsset:
    return standin_asset()


def posed(asset, *, jaw=0.0, eyes=(0.0, 0.0, 0.0, 0.0), **shapes) -> np.ndarray:
    """Vertices with shapes at a fraction of fully expressed."""
    motion = np.zeros(108, np.float32)
    motion[JAW], motion[EYES] = jaw, eyes
    for name, amount in shapes.items():
        motion[NAMES.index(name)] = amount * STANDIN_SHAPES[name]
    return np.asarray(vertices(asset, jnp.asarray(motion), head_rotation=False))


def lip_gap(asset, points) -> float:
    """Height in metres between the lips in the middle: the upper belongs to the skull, the lower to the jaw."""
    middle = asset.lips[np.abs(asset.v_template[asset.lips, 0]) < 0.003]
    follows_jaw = asset.weights[middle, 2] > 0.5
    return points[middle[~follows_jaw], 1].min() - points[middle[follows_jaw], 1].max()


def test_arrays_have_the_ranks_units_and_types_of_flame(asset):
    num = len(asset.v_template)
    assert 2000 <= num <= 3000 and asset.name == "standin"
    assert asset.expression_basis.shape == (num, 3, 100) and asset.posedirs.shape == (num, 3, 36)
    assert asset.j_regressor.shape == (5, num) and asset.weights.shape == (num, 5)
    for name in ("v_template", "expression_basis", "posedirs", "j_regressor", "weights"):
        array = getattr(asset, name)
        assert array.dtype == np.float32 and np.isfinite(array).all(), name
    assert 0.2 < np.ptp(asset.v_template[:, 1]) < 0.35
    assert asset.faces.min() == 0 and asset.faces.max() == num - 1
    np.testing.assert_allclose(asset.weights.sum(axis=1), 1.0, atol=1e-6)
    assert (asset.weights >= 0).all()


def test_it_is_the_same_every_time_and_cannot_be_changed(asset):
    assert standin_asset() is asset
    first, second = build_mesh(), build_mesh()
    assert np.array_equal(first.points, second.points) and np.array_equal(first.faces, second.faces)
    with pytest.raises(ValueError, match="read-only"):
        asset.v_template[0] = 0


def test_every_named_shape_moves_some_millimetres_and_only_those(asset):
    assert len(NAMES) == 24
    for i, full in enumerate(STANDIN_SHAPES.values()):
        moved = np.linalg.norm(asset.expression_basis[:, :, i] * full, axis=1).max()
        assert 0.002 < moved < 0.02, NAMES[i]
    assert not asset.expression_basis[:, :, len(NAMES) :].any()
    assert asset.skinning.num_expression == len(NAMES) and asset.skinning.basis.shape[0] == len(NAMES)


def test_left_and_right_shapes_mirror_each_other(asset):
    for name in ("smile", "blink", "brow_up"):
        left, right = (asset.expression_basis[:, :, NAMES.index(f"{name}_{side}")] for side in ("left", "right"))
        moved = np.abs(left).sum(axis=1)
        assert (moved * asset.v_template[:, 0]).sum() / moved.sum() > 0.01, name
        assert np.isclose(np.abs(left).sum(), np.abs(right).sum(), rtol=1e-3), name


def test_regions_are_inside_and_disjoint(asset):
    for region in (asset.lips, asset.upper_face):
        assert region.size > 100 and 0 <= region.min() and region.max() < len(asset.v_template)
    assert not set(asset.lips) & set(asset.upper_face)
    assert asset.v_template[asset.lips, 1].max() < asset.v_template[asset.upper_face, 1].min()


def test_the_jaw_opens_the_mouth_and_leaves_the_upper_face(asset):
    closed, half, opened = (posed(asset, jaw=angle) for angle in (0.0, 0.15, 0.3))
    assert 0 <= lip_gap(asset, closed) < 0.001
    assert 0.008 < lip_gap(asset, half) < lip_gap(asset, opened) < 0.05
    assert np.array_equal(closed[asset.upper_face], opened[asset.upper_face])


def test_a_blink_brings_the_lids_together_outside_the_eyeball(asset):
    for side, joint in (("left", 3), ("right", 4)):
        lids = np.flatnonzero(np.abs(asset.expression_basis[:, :, NAMES.index(f"blink_{side}")]).max(axis=1) > 3e-4)
        falls = asset.expression_basis[lids, 1, NAMES.index(f"blink_{side}")] < 0
        centre = asset.j_regressor[joint] @ asset.v_template
        middle = np.abs(asset.v_template[lids, 0] - centre[0]) < 0.003

        def gap(points, upper=lids[falls & middle], lower=lids[~falls & middle]):
            return points[upper, 1].min() - points[lower, 1].max()

        assert gap(posed(asset)) > 0.008
        shut = posed(asset, **{f"blink_{side}": 1.0})
        assert abs(gap(shut)) < 0.001
        ball = np.flatnonzero(asset.weights[:, joint] == 1)
        radius = np.linalg.norm(asset.v_template[ball] - centre, axis=1).max()
        cover = lids[shut[lids, 2] > centre[2] + 0.7 * radius]  # without the rims inside and the corners beside it
        assert np.linalg.norm(shut[cover] - centre, axis=1).min() > radius


def test_eyeballs_turn_about_their_middle(asset):
    for joint, eyes in ((3, (0.0, 0.3, 0.0, 0.0)), (4, (0.0, 0.0, 0.0, 0.3))):
        still, turned = posed(asset), posed(asset, eyes=eyes)
        moved = np.abs(turned - still).max(axis=1) > 1e-6
        assert moved.any() and (asset.weights[moved, joint] == 1).all()
        centre = asset.j_regressor[joint] @ asset.v_template
        before, after = (np.linalg.norm(points[moved] - centre, axis=1) for points in (still, turned))
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_joints_do_not_move_with_expression(asset):
    moved = np.einsum("jv,vce->jce", asset.j_regressor, asset.expression_basis)
    assert np.abs(moved).max() < 1e-7
