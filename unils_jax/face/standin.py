"""The stand-in head: a procedural FlameAsset of the `standin` basis, for use without a FLAME file.

Same array names, ranks and units as FLAME; its leading expression columns are the named shapes of
`motion.STANDIN_SHAPES`, its own lip and upper-face lists stand where FLAME's do. NumPy and SciPy
only, the same on every call.
"""

import functools

import numpy as np
from jaxtyping import Float

from unils_jax.face import standin_mesh as sm
from unils_jax.face.flame import NUM_EXPRESSION, NUM_POSE, FlameAsset
from unils_jax.motion import STANDIN_SHAPES

JAW_HINGE = (0.0, -0.025, 0.0)
ROOT, NECK = (0.0, -0.11, -0.025), (0.0, -0.08, -0.025)


@functools.cache
def standin_asset() -> FlameAsset:
    """Returns the stand-in head, built once. Its arrays are shared and read-only."""
    mesh = sm.build_mesh()
    basis = np.zeros((len(mesh.points), 3, NUM_EXPRESSION))
    shapes = _shapes(mesh)
    for i, (name, full) in enumerate(STANDIN_SHAPES.items()):
        basis[:, :, i] = shapes[name] / full
    weights = _weights(mesh)
    lips, upper_face = _regions(mesh)
    joints = np.array([ROOT, NECK, JAW_HINGE, sm.eye_centre(1.0), sm.eye_centre(-1.0)])
    asset = FlameAsset(
        v_template=mesh.points.astype(np.float32),
        expression_basis=basis.astype(np.float32),
        posedirs=np.zeros((len(mesh.points), 3, NUM_POSE), np.float32),
        j_regressor=joint_regressor(mesh.points, basis, weights, joints).astype(np.float32),
        weights=weights.astype(np.float32),
        faces=mesh.faces.astype(np.int32),
        lips=lips,
        upper_face=upper_face,
        name="standin",
    )
    for array in vars(asset).values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return asset


def _weights(mesh: sm.Mesh) -> np.ndarray:
    """Returns skinning weights [V, 5].

    Eyeballs follow the eyes, chin and lower lip the jaw (half at the mouth's corners), the rest the
    neck.
    """
    x, y, z = np.abs(mesh.points[:, 0]), mesh.domain_y, mesh.points[:, 2]
    border = sm.MOUTH_Y + 0.036 * sm.smoothstep((x - 0.024) / 0.045)
    width = 0.006 + 0.6 * np.clip(x - 0.012, 0.0, None)  # wider to the sides: an open mouth is round
    jaw = np.clip((border - y) / width + 0.5, 0.0, 1.0) * sm.smoothstep((z + 0.015) / 0.05)
    jaw[~np.isin(mesh.part, (sm.SKIN, sm.LIPS, sm.BAG))] = 0.0
    jaw[mesh.part == sm.TEETH_LOWER] = 1.0
    weights = np.zeros((len(mesh.points), 5))
    weights[:, 2] = jaw
    weights[mesh.part == sm.EYE_LEFT, 3] = 1.0
    weights[mesh.part == sm.EYE_RIGHT, 4] = 1.0
    weights[:, 1] = 1.0 - weights.sum(axis=1)
    low = np.where(mesh.part == sm.NECK, sm.smoothstep((-mesh.points[:, 1] - 0.09) / 0.08), 0.0)
    weights[:, 0], weights[:, 1] = low * weights[:, 1], (1.0 - low) * weights[:, 1]
    return weights


def joint_regressor(
    points: Float[np.ndarray, "V 3"],
    basis: Float[np.ndarray, "V 3 K"],
    weights: Float[np.ndarray, "V 5"],
    joints: Float[np.ndarray, "5 3"],
) -> Float[np.ndarray, "5 V"]:
    """Returns the smallest weights that give the `joints` from vertices that no expression moves.

    The eyes use their eyeballs, the other joints the vertices that follow neither jaw nor eyes.
    """
    unmoved = np.abs(basis).max(axis=(1, 2)) < 1e-6
    regressor = np.zeros((5, len(points)))
    for joint, place in enumerate(joints):
        part = weights[:, joint] == 1.0 if joint in (3, 4) else weights[:, 2:].sum(axis=1) == 0
        still = np.flatnonzero(unmoved & part)
        system = np.vstack([points[still].T, np.ones(len(still))])
        regressor[joint, still] = np.linalg.lstsq(system, np.array([*place, 1.0]), rcond=None)[0]
    return regressor


def _regions(mesh: sm.Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lips, and the upper face: brows, lids, forehead and bridge of the nose."""
    x, y, z = mesh.points.T
    facial = (
        np.isin(mesh.part, (sm.SKIN, sm.BROW, sm.LASHES)) & (z > 0.03) & (y > -0.018) & (y < 0.07) & (np.abs(x) < 0.065)
    )
    return np.flatnonzero(mesh.part == sm.LIPS).astype(np.int32), np.flatnonzero(facial).astype(np.int32)


def _shapes(mesh: sm.Mesh) -> dict[str, np.ndarray]:
    """Returns displacements [V, 3] in metres of every named shape, fully expressed."""
    moving = np.isin(mesh.part, (sm.SKIN, sm.LIPS, sm.BAG, sm.BROW, sm.LASHES)) & (mesh.points[:, 2] > 0.02)
    shapes = {**_mouth_shapes(mesh), **_face_shapes(mesh)}
    shapes = {name: np.where(moving[:, None], shape, 0.0) for name, shape in shapes.items()}
    return {**shapes, **_lid_shapes(mesh, shapes["cheek_raise"])}


def _vector(amount: np.ndarray, x, y, z) -> np.ndarray:
    """Returns `amount` [V] times a displacement in millimetres, constant or [V]."""
    return amount[:, None] * np.stack(np.broadcast_arrays(x, y, z, amount)[:3], axis=-1) * 1e-3


def _mouth_shapes(mesh: sm.Mesh) -> dict[str, np.ndarray]:
    x, y, _ = mesh.points.T
    ax, side, rise = np.abs(x), np.sign(x), y - sm.MOUTH_Y
    left = sm.smoothstep(x / 0.012 + 0.5)
    mouth = sm.bump(x, 0.034) * sm.bump(rise, 0.022)
    corner = sm.bump(ax - 0.025, 0.013) * sm.bump(rise, 0.014)
    upper = sm.smoothstep((mesh.domain_y - sm.MOUTH_Y) / 0.005 + 0.5)
    inside = np.isin(mesh.part, (sm.LIPS, sm.BAG)).astype(np.float64)
    lip_rise = np.where(mesh.part == sm.LIPS, rise * 1e3, 0.0)
    cheek = sm.bump(ax - 0.040, 0.018) * sm.bump(y + 0.034, 0.016)
    smile = _vector(corner, 6 * side, 6.5, -3) + _vector(cheek, 0, 2.5, 2)
    sneer = sm.bump(ax - 0.012, 0.010) * sm.bump(y + 0.055, 0.014) * upper
    return {
        "smile_left": smile * left[:, None],
        "smile_right": smile * (1.0 - left)[:, None],
        "lip_pucker": _vector(mouth, -420 * x, 0, 8),
        "lip_stretch": _vector(corner, 7 * side, -1, -3),
        "upper_lip_raise": _vector(mouth * upper * sm.bump(x, 0.026), 0, 6, 0.5),
        "lower_lip_drop": _vector(mouth * (1 - upper) * sm.bump(x, 0.026), 0, -7, 0.5),
        "lip_press": _vector(sm.bump(x, 0.030), 0, -0.35 * lip_rise, -1.5 * inside),
        "lip_roll": _vector(sm.bump(x, 0.030), 0, -0.5 * lip_rise, -4.0 * inside),
        "mouth_corner_down": _vector(corner, 0, -6, -1),
        "mouth_left": _vector(mouth, 8, 0, 0),
        "mouth_right": _vector(mouth, -8, 0, 0),
        "chin_raise": _vector(sm.bump(x, 0.028) * sm.bump(y + 0.100, 0.020), 0, 5, 2)
        + _vector(mouth * (1 - upper), 0, 1.5, 0.5),
        "sneer": _vector(sneer, 0, 5, 0.5) + _vector(sm.bump(ax - 0.012, 0.006) * sm.bump(y + 0.04, 0.008), 0, 2, 0),
        "cheek_puff": _vector(sm.bump(ax - 0.040, 0.018) * sm.bump(y + 0.066, 0.022), 7 * side, 0, 6),
    }


def _face_shapes(mesh: sm.Mesh) -> dict[str, np.ndarray]:
    x, y, _ = mesh.points.T
    ax, side = np.abs(x), np.sign(x)
    left = sm.smoothstep(x / 0.012 + 0.5)
    brow = sm.bump(y - 0.028, 0.017)
    brow_up = _vector(brow * sm.bump(ax - 0.032, 0.024), 0, 9, 1)
    brow_down = _vector(brow * sm.bump(ax - 0.022, 0.022), -2.5 * side, -6, 0.5)
    return {
        "brow_up_left": brow_up * left[:, None],
        "brow_up_right": brow_up * (1.0 - left)[:, None],
        "brow_inner_up": _vector(brow * sm.bump(x, 0.022), 0, 8, 0.5),
        "brow_down": brow_down,
        "cheek_raise": _vector(sm.bump(ax - 0.040, 0.018) * sm.bump(y + 0.026, 0.013), 0, 5, 3),
        "nose_wrinkle": _vector(sm.bump(x, 0.018) * sm.bump(y + 0.024, 0.018), 0, 3, 0.5) + 0.3 * brow_down,
    }


def _lid_shapes(mesh: sm.Mesh, cheek_raise: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the lids' shapes.

    Blinks move both margins to the line where they meet; the others are parts of that, or its
    reverse.
    """
    shut = mesh.closed - mesh.points
    left = (mesh.points[:, 0] > 0)[:, None]
    upper = (shut[:, 1] < 0)[:, None]
    return {
        "blink_left": np.where(left, shut, 0.0),
        "blink_right": np.where(left, 0.0, shut),
        "squint": np.where(upper, 0.35, 0.7) * shut + 0.5 * cheek_raise,
        "eye_wide": np.where(upper, -0.28, -0.1) * shut,
    }
