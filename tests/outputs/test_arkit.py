import numpy as np
import pytest

from unils_jax.errors import UserError
from unils_jax.face.standin import standin_asset
from unils_jax.motion import EYES, JAW, STANDIN_SHAPES
from unils_jax.outputs import arkit

NAMES = list(STANDIN_SHAPES)


def column(name: str) -> int:
    return arkit.ARKIT_NAMES.index(name)


def face(num_frames: int = 1, **shapes: float) -> np.ndarray:
    """One person with shapes at a fraction of fully expressed."""
    motion = np.zeros((1, num_frames, 108), np.float32)
    for name, amount in shapes.items():
        motion[..., NAMES.index(name)] = amount * STANDIN_SHAPES[name]
    return motion


def test_there_are_52_names_and_every_shape_of_ours_has_one_of_them():
    assert len(set(arkit.ARKIT_NAMES)) == len(arkit.ARKIT_NAMES) == 52
    assert list(arkit.STANDIN_TO_ARKIT) == NAMES
    assert {name for names in arkit.STANDIN_TO_ARKIT.values() for name in names} <= set(arkit.ARKIT_NAMES)


def test_shapes_go_by_name_with_their_side_and_size():
    motion = face(smile_left=0.5, blink_right=1.0, lip_press=0.25, sneer=-0.4, cheek_puff=1.7)
    motion[..., JAW] = 0.175
    found = arkit.by_name(motion).coefficients[0, 0]
    expected = np.zeros(52)
    for name, value in (
        ("mouthSmileLeft", 0.5),
        ("eyeBlinkRight", 1.0),
        ("mouthPressLeft", 0.25),
        ("mouthPressRight", 0.25),
        ("cheekPuff", 1.0),
        ("jawOpen", 0.5),
    ):
        expected[column(name)] = value
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gaze_has_the_persons_sides():
    """A positive yaw turns both eyes to the head's left: the left one outwards, the right one inwards."""
    motion = face()
    motion[..., EYES] = [0.1, 0.2, -0.1, 0.2]
    found = arkit.by_name(motion).coefficients[0, 0]
    for name, value in (
        ("eyeLookOutLeft", 0.4),
        ("eyeLookInRight", 0.4),
        ("eyeLookDownLeft", 0.2),
        ("eyeLookUpRight", 0.2),
        ("eyeLookInLeft", 0.0),
        ("eyeLookUpLeft", 0.0),
    ):
        assert found[column(name)] == pytest.approx(value, abs=1e-6), name


def basis_of(*names: str) -> tuple[list[str], np.ndarray]:
    """ARKit shapes that are the stand-in's own, fully expressed."""
    asset = standin_asset()
    shapes = [asset.expression_basis[:, :, NAMES.index(name)] * STANDIN_SHAPES[name] for name in names]
    return [arkit.STANDIN_TO_ARKIT[name][0] for name in names], np.stack(shapes)


def test_a_fit_finds_the_coefficients_that_made_the_face():
    motion = np.concatenate(
        [face(smile_left=0.3, blink_left=0.9, lip_pucker=0.0), face(smile_left=1.0, lip_pucker=0.6)], 1
    )
    names, shapes = basis_of("smile_left", "blink_left", "lip_pucker")
    found = arkit.by_fit(motion, standin_asset(), names, shapes)
    columns = [column(name) for name in names]
    np.testing.assert_allclose(found.coefficients[0][:, columns], [[0.3, 0.9, 0.0], [1.0, 0.0, 0.6]], atol=1e-4)
    assert not np.delete(found.coefficients, columns, axis=-1).any()
    assert found.residual_mm < 1e-3 < 0.1 < found.motion_mm


def test_what_a_fit_cannot_show_is_reported_and_bounds_hold():
    motion = face(smile_left=-0.5, brow_down=1.0, blink_left=1.4)
    names, shapes = basis_of("smile_left", "blink_left")
    found = arkit.by_fit(motion, standin_asset(), names, shapes)
    assert found.coefficients[0, 0, column("mouthSmileLeft")] == 0.0
    assert found.coefficients[0, 0, column("eyeBlinkLeft")] == 1.0
    assert 0.1 < found.residual_mm < found.motion_mm


def test_bounded_least_squares_meets_the_conditions_of_an_optimum():
    """At 0 the gradient may not fall, at 1 it may not rise, between it is nought."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((40, 6))
    gram, projected = basis.T @ basis, 3 * rng.standard_normal((9, 40)) @ basis
    x = arkit.bounded_least_squares(gram, projected)
    gradient = x @ gram - projected
    low, high = x <= 0, x >= 1
    assert low.any() and high.any() and (~low & ~high).any()
    assert (gradient[low] > -1e-5).all() and (gradient[high] < 1e-5).all()
    assert np.abs(gradient[~low & ~high]).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": np.array(["smile"])}, "names must be ARKit's"),
        ({"shapes": np.zeros((1, 5, 3))}, "one displacement for each vertex"),
        ({"shapes": np.full((1, 2, 3), np.nan)}, "shapes must be"),
        ({"names": np.array(["jawOpen", "jawOpen"])}, "differ"),
        ({"scale": 1000.0}, "metres"),
    ],
)
def test_a_basis_that_does_not_fit_the_head_is_refused_by_name(tmp_path, change, message):
    asset = standin_asset()
    arrays = {"names": np.array(["jawOpen"]), "shapes": np.full((1, len(asset.v_template), 3), 1e-3), **change}
    arrays["shapes"] = arrays["shapes"] * arrays.pop("scale", 1.0)
    np.savez(tmp_path / "basis.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        arkit.read_basis(tmp_path / "basis.npz", asset)
    assert "basis.npz" in str(error.value)
