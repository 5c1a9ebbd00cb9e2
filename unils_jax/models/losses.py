"""The codec's loss terms, on un-normalised motion. The quantiser's own loss stands beside the quantiser."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from unils_jax.motion import HEAD_AND_JAW


@dataclass(frozen=True)
class CodecLossWeights:
    """The paper's weights. The last two are ARTalk's, on vertices in metres: velocity against the truth's, and against
    itself one frame later."""

    vq: float = 1.0
    motion: float = 1.0
    pose: float = 8.0
    velocity: float = 5.0
    smooth: float = 0.5
    mesh: float = 2.0
    lips: float = 0.1
    mesh_velocity: float = 0.0
    mesh_smooth: float = 0.0


@dataclass(frozen=True)
class SampleWeights:
    """What every item of a batch counts for in the means over it: `items [B]` (or [B, P], people) and, by channel,
    `channels [B, 108]` and `pose [B, 4]` (head and jaw; of use in our 108 channels only). Each sums to one over the
    *whole* batch, so that the losses of its parts sum to its loss; what was not observed has no share."""

    items: Array
    channels: Array
    pose: Array


jax.tree_util.register_dataclass(SampleWeights, ["items", "channels", "pose"], [])


def observed_sample_weights(observed: Float[Array, "*B M"]) -> SampleWeights:
    """Equal shares for whatever was observed (1, else 0): items with any channel, and channels over all items."""
    items = observed.any(-1).astype(jnp.float32)
    return SampleWeights(
        *(part / jnp.maximum(part.sum(), 1.0) for part in (items, observed, observed[..., HEAD_AND_JAW]))
    )


def motion_losses(
    pred: Float[Array, "B T 108"],
    target: Float[Array, "B T 108"],
    weights: CodecLossWeights,
    sample_weights: SampleWeights,
) -> dict[str, Float[Array, ""]]:
    """Weighted terms: L1 of all channels, L1 of head and jaw, their velocity's MSE, and the smoothness term, which
    compares the predicted velocity with itself one frame later. Means over time, and by shares over the rest."""
    error = jnp.abs(pred - target)
    velocity = jnp.diff(pred[..., HEAD_AND_JAW], axis=1)
    target_velocity = jnp.diff(target[..., HEAD_AND_JAW], axis=1)
    jerk = velocity[:, 1:] - velocity[:, :-1]
    return {
        "motion": weights.motion * jnp.sum(sample_weights.channels * error.mean(1)),
        "pose": weights.pose * jnp.sum(sample_weights.pose * error[..., HEAD_AND_JAW].mean(1)),
        "velocity": weights.velocity * jnp.sum(sample_weights.pose * jnp.square(velocity - target_velocity).mean(1)),
        "smooth": weights.smooth * jnp.sum(sample_weights.pose * jnp.square(jerk).mean(1)),
    }


def vertex_losses(
    pred: Float[Array, "*B V 3"], target: Float[Array, "*B V 3"], lips: Int[np.ndarray, " n"], weights: CodecLossWeights
) -> dict[str, Float[Array, "*B"]]:
    """Weighted MSE in square millimetres between vertices in metres, over all of them and over the lips; repeats in
    the list of lip vertices count."""
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
    """`vertex_losses` of motion, by shares over the batch and the mean over time; `vertices` makes [B, t, V, 3] metres
    of [B, t, 108].

    Vertices of at most `chunk_frames` frames of every window stand in memory at once, in the backward pass too, where
    they are computed again: cut over time and not over the batch, which lies spread over the devices. From T frames on,
    and with ARTalk's terms (`mesh_velocity`, `mesh_smooth`), all are computed at once and kept.
    """

    def losses(pred: Array, target: Array) -> dict[str, Array]:
        pred, target = vertices(pred), vertices(target)
        terms = vertex_losses(pred, target, lips, weights)
        terms = {name: jnp.einsum("b,bt->", sample_weights, term) / num_frames for name, term in terms.items()}
        if not moving:
            return terms
        moved, jerk = jnp.diff(pred, axis=1), jnp.diff(pred, n=2, axis=1)
        velocity = weights.mesh_velocity * jnp.square(moved - jnp.diff(target, axis=1)).mean((1, 2, 3))
        smooth = weights.mesh_smooth * jnp.square(jerk).mean((1, 2, 3))
        return terms | {"mesh_velocity": sample_weights @ velocity, "mesh_smooth": sample_weights @ smooth}

    num_frames, moving = pred.shape[1], weights.mesh_velocity > 0 or weights.mesh_smooth > 0
    if moving or chunk_frames >= num_frames:
        return losses(pred, target)
    # The largest chunk that divides the window; 100 frames have divisors enough.
    chunk = max(size for size in range(1, chunk_frames + 1) if num_frames % size == 0)
    chunks = [jnp.moveaxis(x.reshape(x.shape[0], num_frames // chunk, chunk, -1), 1, 0) for x in (pred, target)]
    of_chunks = jax.lax.map(jax.checkpoint(lambda pair: losses(*pair), prevent_cse=False), tuple(chunks))
    return {name: value.sum() for name, value in of_chunks.items()}
