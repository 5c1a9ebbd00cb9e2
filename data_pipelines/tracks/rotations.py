"""Rotations of any kind as axis-angles that change without jumps. NumPy and SciPy only."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial.transform import Rotation

from unils_jax.errors import UserError

# Kind -> values of one rotation. `6d` are the first two rows of the matrix, as PyTorch3D has them;
# `camera` is the matrix of a camera that moves around a head at rest, in PyTorch3D's axes.
WIDTHS = {
    "axis-angle": 3,
    "degrees": 3,
    "euler-degrees": 3,
    "quaternion-xyzw": 4,
    "quaternion-wxyz": 4,
    "6d": 6,
    "6d-columns": 6,
    "matrix": 9,
    "camera": 9,
    "camera-6d": 6,
}
MAX_ANGLE = 2 * np.pi
# A matrix whose rows are not of length 1 and orthogonal within this is none of a rotation.
_ORTHOGONAL_WITHIN = 0.02
# The camera that looks at the face: half a turn about the vertical axis.
_FACING = np.diag([-1.0, 1.0, -1.0])


def to_axis_angle(values: Float[np.ndarray, "T W"], kind: str, name: str) -> Float64[np.ndarray, "T 3"]:
    """Returns rotation vectors in radians; rows that are not finite, or all zeros, are NaN.

    Axis-angles are returned as they are. Raises UserError, beginning with `name`, for matrices that
    are no rotations.
    """
    if kind == "axis-angle":
        return np.asarray(values, np.float64)
    if kind == "degrees":
        return np.deg2rad(np.asarray(values, np.float64))
    usable = np.isfinite(values).all(axis=1) & values.any(axis=1)
    turned = np.full((len(values), 3), np.nan)
    if usable.any():
        turned[usable] = _continuous(_READERS[kind](values[usable].astype(np.float64), name))
    return turned


def _from_matrices(matrices: Float64[np.ndarray, "T 3 3"], name: str) -> Float64[np.ndarray, "T 3"]:
    off = np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max()
    if off > _ORTHOGONAL_WITHIN or (np.linalg.det(matrices) < 0).any():
        raise UserError(f"{name} holds matrices that are no rotations (off by up to {off:.3g}); name its kind")
    return Rotation.from_matrix(matrices).as_rotvec()


def _matrices(values: Float64[np.ndarray, "T 6"]) -> Float64[np.ndarray, "T 3 3"]:
    first, second = values[:, :3], values[:, 3:]
    rows = [first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)]
    second = second - (rows[0] * second).sum(axis=1, keepdims=True) * rows[0]
    rows.append(second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-12))
    return np.stack([*rows, np.cross(*rows)], axis=1)


def _from_6d(values: Float64[np.ndarray, "T 6"], name: str) -> Float64[np.ndarray, "T 3"]:
    return _from_matrices(_matrices(values), name)


_READERS: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "euler-degrees": lambda v, _: Rotation.from_euler("xyz", v, degrees=True).as_rotvec(),
    "quaternion-xyzw": lambda v, _: Rotation.from_quat(v).as_rotvec(),
    "quaternion-wxyz": lambda v, _: Rotation.from_quat(v[:, [1, 2, 3, 0]]).as_rotvec(),
    "6d": _from_6d,
    # Columns instead of rows: the rotation is the inverse one.
    "6d-columns": lambda v, name: -_from_6d(v, name),
    "matrix": lambda v, name: _from_matrices(v.reshape(-1, 3, 3), name),
    # The head turns as the camera does not: the inverse, seen from where the camera begins.
    "camera": lambda v, name: _from_matrices(_FACING @ v.reshape(-1, 3, 3).transpose(0, 2, 1), name),
    "camera-6d": lambda v, name: _from_matrices(_FACING @ _matrices(v).transpose(0, 2, 1), name),
}


def _continuous(vectors: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
    """Returns the same rotations, each as the vector that is nearest to the one before.

    Half a turn is two vectors of opposite sign; without this a head near it would jump.
    """
    if len(vectors) < 2 or np.linalg.norm(np.diff(vectors, axis=0), axis=1).max() <= np.pi:
        return vectors
    out = vectors.copy()
    for i in range(1, len(out)):
        angle = np.linalg.norm(out[i])
        if angle > 1e-9:
            axis = out[i] / angle
            out[i] += 2 * np.pi * np.round(((out[i - 1] @ axis) - angle) / (2 * np.pi)) * axis
    return out


def compose(first: Float64[np.ndarray, "T 3"], second: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
    """Returns `first` after `second`, as a joint on the one before; NaN where either is."""
    usable = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    out = np.full_like(first, np.nan)
    if usable.any():
        product = Rotation.from_rotvec(first[usable]) * Rotation.from_rotvec(second[usable])
        out[usable] = _continuous(product.as_rotvec())
    return out


def quaternion_order(values: Float[np.ndarray, "T 4"]) -> str:
    """Returns the kind of quaternions by the place of their largest component.

    Heads and jaws turn by less than a right angle as a rule, so that the real part is the largest.
    """
    sizes = np.nan_to_num(np.abs(values)).mean(axis=0)
    return "quaternion-wxyz" if sizes[0] >= sizes[3] else "quaternion-xyzw"
