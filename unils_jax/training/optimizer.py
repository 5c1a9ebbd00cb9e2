"""AdamW with the releases' schedules, gradient clipping and the moving average of the weights."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from unils_jax.nn.params import Params


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, the clipping and the average; the defaults are the paper's."""

    learning_rate: float = 1e-4  # at its peak, which update `warmup_steps` has
    warmup_steps: int = 1000  # updates of the linear rise; 0 starts at the peak
    decay_steps: int = 200_000  # the update by which the learning rate has fallen; the number of steps
    final_factor: float = 0.1  # learning rate of the first and the last update, as a factor of the peak
    weight_decay: float = 0.01  # on every tensor; 0: Adam
    max_grad_norm: float = 1.0  # global norm that gradients are scaled down to; 0 clips nothing
    ema_decay: float = 0.9999  # of the moving average of the weights, per update
    release_devices: int = 1  # n: steps, learning rate and EMA decay as the release has them on n devices
    lr_decay_every_steps: int = 0  # multiplies the learning rate by `stair_factor` every so many steps; 0: never
    stair_factor: float = 1.0  # used where `lr_decay_every_steps` is above 0
    lr_decay_every_epochs: int = 0  # sets `lr_decay_every_steps` by the size of the data; 0 leaves it
    per_tensor: bool = False  # every tensor counts its own updates, see `scale_by_per_tensor_adam`


def for_release_devices(config: OptimizerConfig) -> OptimizerConfig:
    """Returns the settings with which the release trains on `release_devices` devices.

    Step counts are divided by their number (down to whole steps), the learning rate is multiplied
    by it, the EMA decay is raised to its power. The caller scales the batch size, which the release
    counts by device; the settings that come back count as one device.
    """
    n = config.release_devices
    return replace(
        config,
        learning_rate=config.learning_rate * n,
        warmup_steps=config.warmup_steps // n,
        decay_steps=config.decay_steps // n,
        lr_decay_every_steps=config.lr_decay_every_steps // n,
        ema_decay=config.ema_decay**n,
        release_devices=1,
    )


def learning_rate(config: OptimizerConfig, step: int | Int[Array, ""]) -> Float[Array, ""]:
    """Returns the learning rate of update `step`, counted from 0.

    It rises linearly to its peak at `warmup_steps` and falls linearly; both are multiplied by the
    stairs.
    """
    peak, low = config.learning_rate, config.learning_rate * config.final_factor
    rise = optax.linear_schedule(low, peak, max(config.warmup_steps, 1))
    fall = optax.linear_schedule(peak, low, max(config.decay_steps - config.warmup_steps, 1))
    step = jnp.asarray(step, jnp.float32)
    rate = optax.join_schedules([rise, fall], [config.warmup_steps])(step)
    if not config.lr_decay_every_steps:
        return rate
    return rate * optax.exponential_decay(1.0, config.lr_decay_every_steps, config.stair_factor, staircase=True)(step)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns AdamW for all tensors, biases, norms and embeddings included; it does not clip."""
    adam = scale_by_per_tensor_adam if config.per_tensor else scale_by_adam
    return optax.chain(
        adam(0.9, 0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(lambda count: learning_rate(config, count)),
    )


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns the transformation to Adam's direction, with exact bias corrections.

    optax's own has `1 - b**t` in float32, which is off by 1e-5 in the first updates where PyTorch
    counts in float64, and raises under strict dtype promotion. `-expm1(t * log(b))` is good to the
    last digits.
    """

    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return optax.ScaleByAdamState(jnp.int32(0), *zeros)

    def update(
        grads: Params, state: optax.ScaleByAdamState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        direction = jax.tree.map(lambda m, v: adam_direction(count, m, v, b1, b2, eps), mu, nu)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def clip_gradients(grads: Params, max_norm: float) -> tuple[Params, Float[Array, ""]]:
    """Returns gradients of a global norm of at most `max_norm` (0: any), and the norm before."""
    clip = optax.clip_by_global_norm(max_norm) if max_norm else optax.identity()
    return clip.update(grads, optax.EmptyState())[0], optax.tree.norm(grads)


def update_ema(ema: Params, params: Params, decay: float) -> Params:
    """Returns `decay * ema + (1 - decay) * params` for floating tensors; integers are copied."""

    def update(average: Array, value: Array) -> Array:
        is_float = jnp.issubdtype(value.dtype, jnp.floating)
        return optax.incremental_update(value, average, 1 - decay) if is_float else value

    return jax.tree.map(update, ema, params)


# Which paths have a gradient; paths that are not named have one.
GradientMask = dict[str, bool | Bool[Array, ""]]


class PerTensorState(NamedTuple):
    """The moments, and how many updates all tensors (`count`) and each (`counts`) have had."""

    count: Int[Array, ""]
    counts: dict[str, Int[Array, ""]]
    mu: Params
    nu: Params


def adam_direction(count: Int[Array, ""], mu: Array, nu: Array, b1: float, b2: float, eps: float) -> Array:
    """Returns the direction of update `count` (from 1), whose gradient the moments include."""
    correction1, correction2 = (-jnp.expm1(count.astype(jnp.float32) * math.log(b)) for b in (b1, b2))
    return mu / correction1 / (jnp.sqrt(nu / correction2) + eps)


def init_per_tensor(params: Params) -> PerTensorState:
    """Returns the state before the first update: no updates counted, zero moments."""
    zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    return PerTensorState(jnp.int32(0), {path: jnp.int32(0) for path in params}, *zeros)


def scale_by_per_tensor_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns `scale_by_adam` with a count for every tensor.

    `present` says of a path whether the step gave it a gradient (yes for absent paths); where it
    did not, moments, count and parameter stay. A zero gradient is a gradient. `rebuild` (bool)
    resets the state before this update, as a newly made optimiser would.
    """

    def update(
        grads: Params,
        state: PerTensorState,
        params: Params | None = None,
        *,
        present: GradientMask | None = None,
        rebuild: bool | Array = False,
    ) -> tuple[Params, PerTensorState]:
        state = jax.tree.map(lambda x: jnp.where(rebuild, jnp.zeros_like(x), x), state)._replace(count=state.count)
        present = {path: (present or {}).get(path, True) for path in grads}
        direction, counts, mu, nu = {}, {}, {}, {}
        for path, grad in grads.items():
            old = state.counts[path], state.mu[path], state.nu[path]
            new = old[0] + 1, b1 * old[1] + (1 - b1) * grad, b2 * old[2] + (1 - b2) * jnp.square(grad)
            step = adam_direction(*new, b1, b2, eps)
            keep = [jnp.where(present[path], n, o) for n, o in zip(new, old, strict=True)]
            counts[path], mu[path], nu[path] = keep
            direction[path] = jnp.where(present[path], step, jnp.zeros_like(step))
        return direction, PerTensorState(state.count + 1, counts, mu, nu)

    return optax.GradientTransformationExtraArgs(init_per_tensor, update)
