"""The codec's mesh losses at the paper's batch size, within the memory that `train.mesh_frames` promises."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flame_golden import golden_flame_asset
from jax import Array

from unils_jax.face import flame
from unils_jax.models.codec_losses import CodecLossWeights, mesh_losses

BATCH, FRAMES, NUM_VERTICES, ARRAYS_HELD = 64, 100, 5023, 9


@pytest.mark.slow
def test_vertices_of_a_full_batch_stay_within_the_stated_memory(golden):
    """Compiles the mesh losses of a full batch; nothing runs.

    Nine arrays [64, mesh_frames, 5023, 3] of float32 at once take 0.35 GB for ten frames, forward
    and backward; all 100 frames at once take more than eight times as much.
    """
    head = golden_flame_asset(golden)
    assert len(head.v_template) == NUM_VERTICES
    vertices = partial(flame.vertices, head, head_rotation=False)

    def temporary_bytes(mesh_frames: int) -> int:
        def loss(pred: Array, target: Array, sample_weights: Array) -> Array:
            terms = mesh_losses(vertices, head.lips, pred, target, CodecLossWeights(), sample_weights, mesh_frames)
            return terms["mesh"] + terms["lips"]

        motion = jax.ShapeDtypeStruct((BATCH, FRAMES, 108), jnp.float32)
        sample_weights = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(motion, motion, sample_weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    found = {frames: temporary_bytes(frames) for frames in (5, 10, FRAMES)}
    for frames in (5, 10):
        assert found[frames] <= ARRAYS_HELD * BATCH * frames * NUM_VERTICES * 3 * 4, found
    assert found[FRAMES] > 8 * found[10], found
