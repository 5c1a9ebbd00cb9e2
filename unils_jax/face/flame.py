"""The FLAME head in JAX: vertices from motion.

Source: Li et al. 2017 (FLAME), the published model file's layout, and the release's use of it:
identity zero, neck zero, jaw and eyes padded to axis-angle. The joint regressor, blend shapes and
skinning are folded into fewer, equal terms; see `Skinning` and `vertices`.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW

NUM_VERTICES, NUM_FACES, NUM_EXPRESSION, NUM_IDENTITY, NUM_POSE = 5023, 9976, 100, 300, 36
PARENTS = (-1, 0, 1, 1, 1)  # root, neck, jaw, left eye, right eye


@dataclass(frozen=True, eq=False)
class FlameAsset:
    """A head: float32 arrays in metres, y up, z towards the viewer, x to the head's left.

    It is hashable by identity. `lips` and `upper_face` list vertices; FLAME's lists repeat some,
    and the repeats count in means over them.
    """

    v_template: Float[np.ndarray, "V 3"]
    expression_basis: Float[np.ndarray, "V 3 100"]
    posedirs: Float[np.ndarray, "V 3 36"]
    j_regressor: Float[np.ndarray, "5 V"]
    weights: Float[np.ndarray, "V 5"]
    faces: Int[np.ndarray, "F 3"]
    lips: Int[np.ndarray, " n"]
    upper_face: Int[np.ndarray, " m"]
    name: str

    @functools.cached_property
    def skinning(self) -> "Skinning":
        """The folded arrays that `vertices` uses, made once per asset."""
        return fold(self.v_template, self.expression_basis, self.posedirs, self.j_regressor, self.weights)


@dataclass(frozen=True, eq=False)
class Skinning:
    """The constants of the forward pass.

    The neck is never rotated, so it moves as the root does and its pose correctives stay zero. Pose
    columns and trailing expression columns that are all zero are left out.
    """

    num_expression: int
    pose_columns: Int[np.ndarray, " q"]  # of the 27 of jaw, left eye, right eye
    basis: Float[np.ndarray, "k W"]  # expression columns, then pose columns; W = 3V: all x, all y, all z
    template: Float[np.ndarray, " W"]
    joint_template: Float[np.ndarray, "4 3"]  # root, jaw, left eye, right eye
    joint_basis: Float[np.ndarray, "e 4 3"]
    total_weight: Float[np.ndarray, " V"]
    weights: Float[np.ndarray, "3 V"]  # jaw, left eye, right eye
    spans: tuple[tuple[int, int], ...]  # first and last + 1 vertex that each of them moves


def fold(
    v_template: Float[np.ndarray, "V 3"],
    basis: Float[np.ndarray, "V 3 e"],
    posedirs: Float[np.ndarray, "V 3 36"],
    j_regressor: Float[np.ndarray, "5 V"],
    weights: Float[np.ndarray, "V 5"],
) -> Skinning:
    """Folds a head of any size, in metres, into its constants.

    Args:
        v_template: Vertices at rest.
        basis: Displacements of the vertices per unit of each coefficient.
        posedirs: Displacements per entry of the rotations, less identity, of neck, jaw and eyes.
        j_regressor: Weights that give the joints from the vertices.
        weights: Skinning weights of root, neck, jaw, left eye and right eye.
    """
    expression = basis.astype(np.float64)
    used = np.flatnonzero(np.abs(expression).max(axis=(0, 1)))
    num_expression = int(used[-1]) + 1 if used.size else 1
    expression = expression[:, :, :num_expression]
    pose = posedirs[:, :, 9:].astype(np.float64)
    pose_columns = np.flatnonzero(np.abs(pose).max(axis=(0, 1)))
    joints = j_regressor[[0, 2, 3, 4]].astype(np.float64)
    stacked = np.concatenate([expression, pose[:, :, pose_columns]], axis=2)  # [V, 3, k]
    return Skinning(
        num_expression=num_expression,
        pose_columns=pose_columns,
        basis=np.ascontiguousarray(stacked.transpose(2, 1, 0).reshape(stacked.shape[2], -1), np.float32),
        template=np.ascontiguousarray(v_template.T).reshape(-1),
        joint_template=(joints @ v_template.astype(np.float64)).astype(np.float32),
        joint_basis=np.einsum("jv,vce->ejc", joints, expression).astype(np.float32),
        total_weight=weights.astype(np.float64).sum(axis=1).astype(np.float32),
        weights=np.ascontiguousarray(weights[:, 2:].T),
        spans=tuple(_span(weight) for weight in weights[:, 2:].T),
    )


def _span(weights: Float[np.ndarray, " V"]) -> tuple[int, int]:
    moved = np.flatnonzero(weights)
    return (int(moved[0]), int(moved[-1]) + 1) if len(moved) else (0, 0)


def rotation_matrices(axis_angle: Float[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """Returns rotations by Rodrigues' formula with the release's angle, ||r + 1e-8||.

    They and their gradients are finite at zero.
    """
    angle = jnp.linalg.norm(axis_angle + 1e-8, axis=-1, keepdims=True)
    x, y, z = jnp.moveaxis(axis_angle / angle, -1, 0)
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    sin, cos = jnp.sin(angle)[..., None], jnp.cos(angle)[..., None]
    identity = jnp.broadcast_to(jnp.eye(3, dtype=axis_angle.dtype), cross.shape)
    return identity + sin * cross + (1.0 - cos) * (cross @ cross)


def vertices(asset: FlameAsset, motion: Float[Array, "*b 108"], *, head_rotation: bool) -> Float[Array, "*b V 3"]:
    """Returns vertices in metres from un-normalised motion, with identity and neck zero.

    Without `head_rotation` the root stays unrotated. With R_j the joint rotations, J_j the joints
    (they follow expression) and s the sum of a vertex's weights, linear blend skinning of v is
    R_root [s (v - J_root) + sum_j w_j (R_j - I)(v - J_j)] + s J_root over jaw and eyes.
    Differentiable; float32 throughout.
    """
    s = asset.skinning
    batch = motion.shape[:-1]
    motion = motion.reshape(-1, motion.shape[-1]).astype(jnp.float32)
    expression = motion[:, EXPRESSION][:, : s.num_expression]
    zero = jnp.zeros_like(motion[:, :1])
    eyes = motion[:, EYES]
    padded = jnp.concatenate([motion[:, JAW], zero, zero, eyes[:, :2], zero, eyes[:, 2:], zero], axis=1)
    posed, root_joint = _pose(s, expression, padded.reshape(-1, 3, 3))
    if head_rotation:
        root = [root_joint[:, c, None] * s.total_weight[None] for c in range(3)]
        centred = tuple(p - r for p, r in zip(posed, root, strict=True))
        moved = _rotate(rotation_matrices(motion[:, HEAD]), centred)
        posed = [m + r for m, r in zip(moved, root, strict=True)]
    return jnp.stack(posed, axis=-1).reshape(*batch, *asset.v_template.shape)


def parameter_vertices(
    skinning: Skinning, coefficients: Float[Array, "*b n"], jaw: Float[Array, "*b 3"]
) -> Float[Array, "*b V 3"]:
    """Returns vertices in metres from coefficients of the folded basis and the jaw's axis-angle.

    Root, neck and eyes are zero.
    """
    batch, joints = jaw.shape[:-1], jnp.pad(jaw.reshape(-1, 1, 3), ((0, 0), (0, 2), (0, 0)))
    used = coefficients.reshape(len(joints), -1)[:, : skinning.num_expression].astype(jnp.float32)
    posed, _ = _pose(skinning, used, joints.astype(jnp.float32))
    return jnp.stack(posed, axis=-1).reshape(*batch, -1, 3)


def _pose(s: Skinning, expression: Array, axis_angles: Array) -> tuple[list[Array], Array]:
    """Poses a head by axis-angles [B, joint, 3] of jaw and eyes, with the root unrotated.

    Returns the coordinate planes [B, V] and the root joint's position [B, 3].
    """
    turn = rotation_matrices(axis_angles) - jnp.eye(3)[None, None]  # [B, joint, 3, 3], less identity
    features = jnp.concatenate([expression, turn.reshape(-1, 27)[:, s.pose_columns]], axis=1)
    shaped = (features @ s.basis + s.template[None]).reshape(-1, 3, s.total_weight.size)
    joints = jnp.einsum("be,ejc->bjc", expression, s.joint_basis) + s.joint_template[None]

    # Coordinate planes [B, V] and sums over them, not 3x3 products per vertex: XLA fuses the planes
    # into one pass, and its sums over V are more exact in the gradient than a contraction (2e-6
    # against 1e-5 of the largest entry).
    planes = (shaped[:, 0], shaped[:, 1], shaped[:, 2])
    shift = -jnp.einsum("bjck,bjk->bjc", turn, joints[:, 1:])  # (R_j - I)(v - J_j) = (R_j - I) v + shift_j
    posed = [s.total_weight[None] * plane for plane in planes]
    for j, (first, end) in enumerate(s.spans):
        moved = _rotate(turn[:, j], tuple(plane[:, first:end] for plane in planes))
        added = (s.weights[j][None, first:end] * (m + shift[:, j, c, None]) for c, m in enumerate(moved))
        around = ((0, 0), (first, s.total_weight.size - end))
        posed = [p + jnp.pad(a, around) for p, a in zip(posed, added, strict=True)]
    return posed, joints[:, 0]


def _rotate(matrix: Array, planes: tuple[Array, Array, Array]) -> list[Array]:
    """Rotates coordinate planes [B, V] by matrices [B, 3, 3]."""
    x, y, z = planes
    return [matrix[:, c, 0, None] * x + matrix[:, c, 1, None] * y + matrix[:, c, 2, None] * z for c in range(3)]
