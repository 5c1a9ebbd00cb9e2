"""The pure training step, one for all stages."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike
from jaxtyping import Int, PyTree

from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params, merge
from unils_jax.systems.base import Arrays, GlobalBatch, Metrics, Objective, Stage, batch_sample_weights
from unils_jax.training.optimizer import OptimizerConfig, clip_gradients, learning_rate, make_optimizer, update_ema
from unils_jax.training.sharding import batch_sharding, replicated, shardings

# Paths that, where they are frozen, are used in the compute dtype only: all of prior and audio
# encoder except norms and the weight norm of the positional convolution. The codec stays float32:
# its bits must not change.
HELD_IN_COMPUTE_DTYPE = r"(prior|audio_encoder)/(?!.*norm/|.*/weight_[gv]).*"


@dataclass(frozen=True)
class TrainState:
    """What training changes.

    A batch whose loss or gradient is not finite counts as a step and changes nothing else:
    randomness and data position follow `step`, so that a resumed run is where the uninterrupted one
    would be; schedule and moments follow `updates_done`.
    """

    # Batches taken: int32 [], or a shape, a sharding or a placeholder of JAX where the step is
    # traced or laid out.
    step: PyTree
    params: Params  # those that train
    ema: Params  # their moving average
    opt_state: optax.OptState


jax.tree_util.register_dataclass(TrainState, ["step", "params", "ema", "opt_state"], [])


@dataclass(frozen=True)
class TrainTask:
    """What a step trains: a stage's loss on a model."""

    stage: Stage
    graphdef: nnx.GraphDef  # the model's static structure
    objective: Objective

    def model(self, params: Params, frozen: Params) -> nnx.Module:
        """Builds the model from its trainable and its frozen parameters."""
        return merge(self.graphdef, {**frozen, **params})


def init_state(params: Params, config: OptimizerConfig, *, mesh: Mesh | None = None) -> TrainState:
    """Returns the state before the first update of `params`, the trainable ones.

    They lie on the `mesh` if there is one; the average and the moments lie as they do.
    """
    params, ema = ({path: jnp.array(value) for path, value in params.items()} for _ in range(2))
    init = make_optimizer(config).init
    if mesh is None:
        return TrainState(jnp.int32(0), params, ema, init(params))
    moments = jax.jit(init, out_shardings=shardings(mesh, jax.eval_shape(init, params)))(params)
    return TrainState(jax.device_put(np.int32(0), replicated(mesh)), params, ema, moments)


def updates_done(state: TrainState) -> Int[Array, ""]:
    """Returns how many updates were made: batches taken without those that were skipped."""
    return state.opt_state[0].count  # Adam's


def hold_frozen(frozen: Params, compute_dtype: DTypeLike) -> Params:
    """Casts frozen parameters to what the step holds on its devices.

    What is used in the compute dtype alone is held in it, which changes no result. The parameters
    this is made from are those that are saved.
    """
    return {
        path: value.astype(compute_dtype) if re.fullmatch(HELD_IN_COMPUTE_DTYPE, path) else value
        for path, value in frozen.items()
    }


def make_train_step(
    stage: Stage,
    graphdef: nnx.GraphDef,
    objective: Objective,
    config: OptimizerConfig,
    *,
    accumulate_steps: int = 1,
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[[TrainState, Params, Arrays, RandomKey], tuple[TrainState, Metrics]]:
    """Builds the jitted `step(state, frozen, batch, key) -> (state, metrics)`.

    The state is donated, `frozen` only read. The step's randomness is `fold_in(key, state.step)`,
    drawn for the whole batch: a resumed run draws what the uninterrupted one would have, and
    neither the mesh nor `accumulate_steps` changes what a sample draws. In addition to the stage's
    metrics there are `grad_norm`, `learning_rate`, `finite` (0: loss or gradient is not, nothing
    was updated) and `skipped`, the number of such batches so far.

    Args:
        stage: What trains, and its loss.
        graphdef: The model's static structure.
        objective: Settings of the loss.
        config: Settings of the optimiser.
        accumulate_steps: Parts that a batch is processed in, one after another.
        mesh: Devices on which all arguments must lie; the new state lies as the old. None: one
            device.
    """
    optimizer = make_optimizer(config)
    task = TrainTask(stage, graphdef, _on_mesh(objective, mesh))

    def step(state: TrainState, frozen: Params, batch: Arrays, key: RandomKey) -> tuple[TrainState, Metrics]:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
        key = jax.random.fold_in(key, state.step)
        grads, metrics = gradients(task, state.params, frozen, batch, key, accumulate_steps)
        grads, norm = clip_gradients(grads, config.max_grad_norm)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        done = updates_done(state)
        extra = {}
        if config.per_tensor and stage.gradient_mask is not None:
            # The mask depends on the noise: from the same key, it is the noise of the loss.
            noise = sample_noise(task, state.params, frozen, batch, key)
            extra["present"], extra["rebuild"] = stage.gradient_mask(state.params, batch, noise, done, objective)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, config.ema_decay)
        new, old = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
        # A step that is not finite keeps the old values, so that one bad batch ruins no run.
        new_state = TrainState(state.step + 1, *jax.tree.map(functools.partial(jnp.where, finite), new, old))
        metrics |= {
            "grad_norm": norm,
            "learning_rate": learning_rate(config, done),
            "finite": finite.astype(jnp.float32),
            "skipped": new_state.step - updates_done(new_state),
        }
        if mesh is not None:
            new_state = jax.lax.with_sharding_constraint(new_state, shardings(mesh, new_state))
            metrics = jax.lax.with_sharding_constraint(metrics, replicated(mesh))
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def _on_mesh(objective: Objective, mesh: Mesh | AbstractMesh | None) -> Objective:
    """Says how activations lie, which is as the batch does."""
    if mesh is None:
        return objective
    return replace(objective, compute=replace(objective.compute, rows=batch_sharding(mesh)))


def gradients(
    task: TrainTask, params: Params, frozen: Params, batch: Arrays, key: RandomKey, num_parts: int
) -> tuple[Params, Metrics]:
    """Computes gradients and metrics of a batch, in `num_parts` parts one after another.

    They are those of the whole batch up to rounding, the codec's too: its entropy over the batch
    needs the whole batch's code probabilities, which parts gather in a first pass of the encoder,
    without gradient.
    """
    stage, objective = task.stage, task.objective

    def part_gradients(batch: Arrays, noise: PyTree, global_batch: GlobalBatch) -> tuple[Params, Metrics]:
        def loss(params: Params) -> tuple[Array, Metrics]:
            return stage.loss(task.model(params, frozen), batch, noise, objective, global_batch)

        return jax.grad(loss, has_aux=True)(params)

    noise = sample_noise(task, params, frozen, batch, key)
    sample_weights = batch_sample_weights(batch)
    if num_parts == 1:
        return part_gradients(batch, noise, GlobalBatch(sample_weights))
    parts = jax.tree.map(functools.partial(_cut_batch, num_parts), (batch, noise, sample_weights))
    means = None
    if stage.bit_probabilities is not None:
        # Known before any part's loss, so the parts pass the encoder twice.
        means = _sum_over(
            lambda part: stage.bit_probabilities(task.model(params, frozen), part[0], objective, part[2]), parts
        )
    return _sum_over(lambda part: part_gradients(part[0], part[1], GlobalBatch(part[2], means)), parts)


def sample_noise(task: TrainTask, params: Params, frozen: Params, batch: Arrays, key: RandomKey) -> PyTree:
    """Draws the noise of a whole batch; None where the stage has none.

    The same key gives the same noise.
    """
    if task.stage.draw is None:
        return None
    return task.stage.draw(key, batch, task.model(params, frozen), task.objective)


def _cut_batch(num_parts: int, x: Array) -> Array:
    """Reshapes [B, ...] to [num_parts, B / num_parts, ...].

    Part i takes every num_parts-th item: every device processes its own items, where contiguous
    parts would lie on few devices.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]), 0, 1)


def _sum_over(function: Callable[[PyTree], PyTree], parts: PyTree) -> PyTree:
    """Sums `function(part)` over the leading axis of `parts`, one at a time."""
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(function, first))

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def make_eval_step(
    stage: Stage, graphdef: nnx.GraphDef, objective: Objective, *, mesh: Mesh | None = None
) -> Callable[[Params, Params, Arrays], Metrics]:
    """Builds the jitted `evaluate(params, frozen, batch) -> metrics`, without noise."""
    objective = _on_mesh(objective, mesh)

    def evaluate(params: Params, frozen: Params, batch: Arrays) -> Metrics:
        metrics = stage.loss(merge(graphdef, {**frozen, **params}), batch, None, objective, None)[1]
        return metrics if mesh is None else jax.lax.with_sharding_constraint(metrics, replicated(mesh))

    return jax.jit(evaluate)
