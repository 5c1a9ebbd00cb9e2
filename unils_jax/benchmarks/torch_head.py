"""Vertices of a head in PyTorch, without head rotation: what the codec's mesh losses see, for the twin.

The same folded arrays and the same sums over coordinate planes as `models.flame.vertices`, which has the reasons.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unils_jax.face.flame import FlameAsset
from unils_jax.motion import EXPRESSION, EYES, JAW


class Head:
    """A head's constants on a device; called with motion [B, T, 108] it gives vertices [B, T, V, 3] in metres."""

    def __init__(self, asset: FlameAsset, device: torch.device):
        def tensor(array: np.ndarray) -> Tensor:
            return torch.tensor(np.asarray(array), device=device)

        s = asset.skinning
        self.num_expression, self.pose_columns = s.num_expression, tensor(s.pose_columns)
        self.basis, self.template = tensor(s.basis), tensor(s.template)
        self.joint_template, self.joint_basis = tensor(s.joint_template[1:]), tensor(s.joint_basis[:, 1:])
        self.total_weight, self.weights = tensor(s.total_weight), tensor(s.weights)
        self.lips = tensor(asset.lips)

    def __call__(self, motion: Float[Tensor, "B T 108"]) -> Float[Tensor, "B T V 3"]:
        flat = motion.flatten(0, 1)
        expression = flat[:, EXPRESSION][:, : self.num_expression]
        zero, eyes = torch.zeros_like(flat[:, :1]), flat[:, EYES]
        padded = torch.cat([flat[:, JAW], zero, zero, eyes[:, :2], zero, eyes[:, 2:], zero], 1)
        turn = rotation_matrices(padded.unflatten(1, (3, 3))) - torch.eye(3, device=flat.device)
        features = torch.cat([expression, turn.flatten(1)[:, self.pose_columns]], 1)
        shaped = (features @ self.basis + self.template).unflatten(1, (3, -1))
        joints = torch.einsum("be,ejc->bjc", expression, self.joint_basis) + self.joint_template
        shift = -torch.einsum("bjck,bjk->bjc", turn, joints)
        posed = self.total_weight * shaped
        for joint in range(3):
            moved = torch.einsum("bck,bkv->bcv", turn[:, joint], shaped) + shift[:, joint, :, None]
            posed = posed + self.weights[joint] * moved
        return posed.transpose(1, 2).unflatten(0, motion.shape[:2])


def rotation_matrices(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rodrigues with angle = ||r + 1e-8||."""
    angle = torch.linalg.vector_norm(axis_angle + 1e-8, dim=-1, keepdim=True)
    x, y, z = (axis_angle / angle).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sin, cos = angle.sin()[..., None], angle.cos()[..., None]
    return torch.eye(3, device=axis_angle.device) + sin * cross + (1 - cos) * (cross @ cross)
