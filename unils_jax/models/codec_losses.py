"""The codec's loss terms, on un-normalised motion; the quantiser's own is in `quantizer`."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from unils_jax.motion import EYES, HEAD_AND_JAW


@dataclass(frozen=True)
class CodecLossWeights:
    """Weights of the codec's loss terms; the defaults are the paper's, and 0 leaves a term out."""

    vq: float = 1.0  # the quantiser's own loss, averaged over scales
    motion: float = 1.0  # L1 of all channels
    pose: float = 8.0  # L1 of head and jaw
    velocity: float = 5.0  # MSE between velocities of head and jaw
    smooth: float = 0.5  # MSE between the predicted velocity of head and jaw and its next frame
    mesh: float = 2.0  # MSE of all vertices, in square millimetres; needs a head
    lips: float = 0.1  # MSE of the lip vertices, in square millimetres; needs a head
    # ARTalk's two terms on vertices in metres.
    mesh_velocity: float = 0.0  # MSE between their velocities
    mesh_smooth: float = 0.0  # MSE between the predicted velocity and its next frame
    # Ours, for what is small or rare: eyes are four channels of 108 in `motion` and none in `pose`,
    # and an L1 settles for the median, in which there is no blink.
    eyes: float = 0.0  # L1 of the eyes
    motion_square: float = 0.0  # MSE of all channels
    motion_velocity: float = 0.0  # MSE between velocities of all channels
    # Ours, so that what is rare is decided by few tokens: the terms on motion once more, of what is
    # decoded from the first scales alone.
    coarse: float = 0.0  # a factor of all these terms
    coarse_scales: int = 3  # how many scales; fewer than the codec has


@dataclass(frozen=True)
class SampleWeights:
    """The weights of a batch's items in means over the batch.

    Each array sums to one over the *whole* batch, so that the losses of its parts sum to its loss.
    What was not observed has weight 0.
    """

    items: Array  # [B], or [B, P] for people
    channels: Array  # [B, 108]
    pose: Array  # [B, 4], head and jaw; as `eyes`, meaningful for our 108 channels only
    eyes: Array  # [B, 4]


jax.tree_util.register_dataclass(SampleWeights, ["items", "channels", "pose", "eyes"], [])


def observed_sample_weights(observed: Float[Array, "*B M"]) -> SampleWeights:
    """Gives equal weights to all that was observed (1, else 0).

    Items count where any of their channels was observed; each channel counts over all items.
    """
    items = observed.any(-1).astype(jnp.float32)
    parts = (items, observed, observed[..., HEAD_AND_JAW], observed[..., EYES])
    return SampleWeights(*(part / jnp.maximum(part.sum(), 1.0) for part in parts))


def motion_losses(
    pred: Float[Array, "B T 108"],
    target: Float[Array, "B T 108"],
    weights: CodecLossWeights,
    sample_weights: SampleWeights,
) -> dict[str, Float[Array, ""]]:
    """Computes the weighted loss terms on motion.

    They are L1 of all channels, L1 of head and jaw, MSE of the velocity of head and jaw, and the
    smoothness term, which compares the predicted velocity with itself one frame later. Those of
    our own (`eyes`, `motion_square`, `motion_velocity`) are there where they have a weight. Each is
    a mean over time, weighted over the rest.

    Args:
        pred: Predicted motion.
        target: True motion.
        weights: Weights of the terms.
        sample_weights: Weights of items and channels.
    """
    error = jnp.abs(pred - target)
    velocity = jnp.diff(pred[..., HEAD_AND_JAW], axis=1)
    target_velocity = jnp.diff(target[..., HEAD_AND_JAW], axis=1)
    jerk = velocity[:, 1:] - velocity[:, :-1]
    squares = {"motion_square": pred - target, "motion_velocity": jnp.diff(pred - target, axis=1)}
    ours = {
        name: getattr(weights, name) * jnp.sum(sample_weights.channels * jnp.square(difference).mean(1))
        for name, difference in squares.items()
        if getattr(weights, name)
    }
    if weights.eyes:
        ours["eyes"] = weights.eyes * jnp.sum(sample_weights.eyes * error[..., EYES].mean(1))
    return ours | {
        "motion": weights.motion * jnp.sum(sample_weights.channels * error.mean(1)),
        "pose": weights.pose * jnp.sum(sample_weights.pose * error[..., HEAD_AND_JAW].mean(1)),
        "velocity": weights.velocity * jnp.sum(sample_weights.pose * jnp.square(velocity - target_velocity).mean(1)),
        "smooth": weights.smooth * jnp.sum(sample_weights.pose * jnp.square(jerk).mean(1)),
    }


def vertex_losses(
    pred: Float[Array, "*B V 3"], target: Float[Array, "*B V 3"], lips: Int[np.ndarray, " n"], weights: CodecLossWeights
) -> dict[str, Float[Array, "*B"]]:
    """Computes weighted MSE in square millimetres between vertices in metres.

    One term is over all vertices, one over the lips. Repeats in the list of lip vertices count.

    Args:
        pred: Predicted vertices.
        target: True vertices.
        lips: Numbers of the lip vertices.
        weights: Weights of the terms.
    """
    squared = jnp.square((pred - target) * 1000).mean(-1)
    # A weight for every vertex, not a gather: its gradient would be a scatter over all frames.
    lip_weights = (np.bincount(lips, minlength=squared.shape[-1]) / len(lips)).astype(np.float32)
    return {"mesh": weights.mesh * squared.mean(-1), "lips": weights.lips * (squared @ lip_weights)}


def mesh_losses(
    vertices: Callable[[Array], Array],
    lips: Int[np.ndarray, " n"],
    pred: Float[Array, "B T 108"],
    target: Float[Array, "B T 108"],
    weights: CodecLossWeights,
    sample_weights: Float[Array, " B"],
    chunk_frames: int,
) -> dict[str, Float[Array, ""]]:
    """Computes `vertex_losses` of motion, weighted over the batch, averaged over time.

    At most `chunk_frames` frames of every window have their vertices in memory at once, in the
    backward pass too, where they are computed again. The cut is over time and not over the batch,
    which lies spread over the devices. From T frames on, and with ARTalk's terms (`mesh_velocity`,
    `mesh_smooth`), all vertices are computed at once and kept.

    Args:
        vertices: Computes vertices [B, t, V, 3] in metres from motion [B, t, 108].
        lips: Numbers of the lip vertices.
        pred: Predicted motion.
        target: True motion.
        weights: Weights of the terms.
        sample_weights: Weights of the items.
        chunk_frames: Frames of each window whose vertices are computed at a time.
    """

    def losses(pred: Array, target: Array) -> dict[str, Array]:
        pred, target = vertices(pred), vertices(target)
        terms = vertex_losses(pred, target, lips, weights)
        terms = {name: jnp.einsum("b,bt->", sample_weights, term) / num_frames for name, term in terms.items()}
        if not has_velocity_terms:
            return terms
        moved, jerk = jnp.diff(pred, axis=1), jnp.diff(pred, n=2, axis=1)
        velocity = weights.mesh_velocity * jnp.square(moved - jnp.diff(target, axis=1)).mean((1, 2, 3))
        smooth = weights.mesh_smooth * jnp.square(jerk).mean((1, 2, 3))
        return terms | {"mesh_velocity": sample_weights @ velocity, "mesh_smooth": sample_weights @ smooth}

    num_frames = pred.shape[1]
    # Velocities need neighbouring frames, which chunks would part.
    has_velocity_terms = weights.mesh_velocity > 0 or weights.mesh_smooth > 0
    if has_velocity_terms or chunk_frames >= num_frames:
        return losses(pred, target)
    # The largest chunk that divides the window; 100 frames have divisors enough.
    chunk = max(size for size in range(1, chunk_frames + 1) if num_frames % size == 0)
    chunks = [jnp.moveaxis(x.reshape(x.shape[0], num_frames // chunk, chunk, -1), 1, 0) for x in (pred, target)]
    of_chunks = jax.lax.map(jax.checkpoint(lambda pair: losses(*pair), prevent_cse=False), tuple(chunks))
    return {name: value.sum() for name, value in of_chunks.items()}
