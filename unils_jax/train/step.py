"""One pure training step for all three stages."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params, merge
from unils_jax.stages import Batch, Metrics, Objective, Stage
from unils_jax.train.optimizer import OptimizerConfig, clip_gradients, learning_rate, make_optimizer, update_ema


@dataclass(frozen=True)
class TrainState:
    """What training changes: the number of updates done, the trainable parameters, their average, the moments."""

    step: Array | jax.ShapeDtypeStruct  # shapes where a dry run traces the step
    params: Params
    ema: Params
    opt_state: optax.OptState


jax.tree_util.register_dataclass(TrainState, ["step", "params", "ema", "opt_state"], [])


def init_state(params: Params, config: OptimizerConfig) -> TrainState:
    """The state before the first update of `params`, the trainable ones."""
    params = {path: jnp.array(value) for path, value in params.items()}
    ema = {path: jnp.array(value) for path, value in params.items()}
    return TrainState(jnp.int32(0), params, ema, make_optimizer(config).init(params))


def make_train_step(
    stage: Stage, graphdef: nnx.GraphDef, objective: Objective, config: OptimizerConfig
) -> Callable[[TrainState, Params, Batch, RandomKey], tuple[TrainState, Metrics]]:
    """The jitted `step(state, frozen, batch, key) -> (state, metrics)`; the state is donated, frozen only read.

    The step's randomness is `fold_in(key, state.step)`: a resumed run draws what the uninterrupted one would have.
    """
    optimizer = make_optimizer(config)

    def step(state: TrainState, frozen: Params, batch: Batch, key: RandomKey) -> tuple[TrainState, Metrics]:
        def loss(params: Params) -> tuple[Array, Metrics]:
            model = merge(graphdef, {**frozen, **params})
            return stage.loss(model, batch, jax.random.fold_in(key, state.step), objective)

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        grads, norm = clip_gradients(grads, config.max_grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, config.ema_decay)
        metrics |= {"grad_norm": norm, "learning_rate": learning_rate(config, state.step)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    stage: Stage, graphdef: nnx.GraphDef, objective: Objective
) -> Callable[[Params, Params, Batch], Metrics]:
    """The jitted `evaluate(params, frozen, batch) -> metrics`, without noise and dropout."""

    def evaluate(params: Params, frozen: Params, batch: Batch) -> Metrics:
        return stage.loss(merge(graphdef, {**frozen, **params}), batch, None, objective)[1]

    return jax.jit(evaluate)
