"""The codec's loss terms, on un-normalised motion. The quantiser's own loss stands beside the quantiser."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from unils_jax.motion import HEAD_AND_JAW


@dataclass(frozen=True)
class CodecLossWeights:
    """The paper's weights."""

    vq: float = 1.0
    motion: float = 1.0
    pose: float = 8.0
    velocity: float = 5.0
    smooth: float = 0.5
    mesh: float = 2.0
    lips: float = 0.1


def motion_losses(
    pred: Float[Array, "B T 108"], target: Float[Array, "B T 108"], weights: CodecLossWeights
) -> dict[str, Float[Array, ""]]:
    """Weighted terms: L1 of all channels, L1 of head and jaw, their velocity's MSE, and the smoothness term, which
    compares the predicted velocity with itself one frame later."""
    velocity = jnp.diff(pred[..., HEAD_AND_JAW], axis=1)
    target_velocity = jnp.diff(target[..., HEAD_AND_JAW], axis=1)
    pose_error = jnp.abs(pred[..., HEAD_AND_JAW] - target[..., HEAD_AND_JAW])
    return {
        "motion": weights.motion * jnp.mean(jnp.abs(pred - target)),
        "pose": weights.pose * jnp.mean(pose_error),
        "velocity": weights.velocity * jnp.mean(jnp.square(velocity - target_velocity)),
        "smooth": weights.smooth * jnp.mean(jnp.square(velocity[:, 1:] - velocity[:, :-1])),
    }


def vertex_losses(
    pred: Float[Array, "*B V 3"], target: Float[Array, "*B V 3"], lips: Int[np.ndarray, " n"], weights: CodecLossWeights
) -> dict[str, Float[Array, ""]]:
    """Weighted MSE in square millimetres between vertices in metres, over all of them and over the lips; repeats in
    the list of lip vertices count."""
    squared = jnp.square((pred - target) * 1000)
    return {"mesh": weights.mesh * jnp.mean(squared), "lips": weights.lips * jnp.mean(squared[..., lips, :])}
