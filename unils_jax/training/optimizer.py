"""AdamW with the releases' schedules, gradient clipping and the moving average of the weights."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from unils_jax.nn.params import Params


@dataclass(frozen=True)
class OptimizerConfig:
    """The paper's settings. `decay_steps` is D, by which the rate has fallen to a tenth; it is the number of steps.

    `release_devices` n above 1 asks for the release's rule for n devices, see `for_release_devices`. A `max_grad_norm`
    of 0 clips nothing, a `lr_decay_every_steps` above 0 multiplies the rate by `stair_factor` every so many steps;
    `lr_decay_every_epochs` above 0 sets it, see `config.count_epochs`. `per_tensor`: every tensor counts its own updates, see
    `per_tensor`.
    """

    rate: float = 1e-4
    warmup_steps: int = 1000
    decay_steps: int = 200_000
    final_factor: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    release_devices: int = 1
    lr_decay_every_steps: int = 0
    stair_factor: float = 1.0
    lr_decay_every_epochs: int = 0
    per_tensor: bool = False


def for_release_devices(config: OptimizerConfig) -> OptimizerConfig:
    """The settings that the release trains with on `release_devices` devices: step counts divided by their number (down
    to whole steps), the rate times it, the EMA decay to its power. The batch size, which the release counts by device,
    is the caller's; what comes back counts as one device."""
    n = config.release_devices
    return replace(
        config,
        rate=config.rate * n,
        warmup_steps=config.warmup_steps // n,
        decay_steps=config.decay_steps // n,
        lr_decay_every_steps=config.lr_decay_every_steps // n,
        ema_decay=config.ema_decay**n,
        release_devices=1,
    )


def learning_rate(config: OptimizerConfig, step: int | Int[Array, ""]) -> Float[Array, ""]:
    """The rate of update `step` (from 0): a linear rise, the full rate at `warmup_steps`, a linear fall; times the
    stairs."""
    step = jnp.asarray(step, jnp.float32)
    warmup, decay, low = config.warmup_steps, config.decay_steps, config.final_factor
    rise = low + (1 - low) * step / max(warmup, 1)
    fall = 1 - (1 - low) * (step - warmup) / max(decay - warmup, 1)
    rate = config.rate * jnp.where(step < warmup, rise, jnp.maximum(fall, low))
    return rate * config.stair_factor ** (step // config.lr_decay_every_steps) if config.lr_decay_every_steps else rate


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW on every tensor it is given, biases, norms and embeddings included. Gradients arrive clipped."""
    adam = scale_by_per_tensor_adam if config.per_tensor else scale_by_adam
    return optax.chain(
        adam(0.9, 0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(lambda count: learning_rate(config, count)),
    )


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction with exact bias corrections.

    `1 - b**t` in float32, as optax has it, is off by 1e-5 in the first updates; PyTorch counts in float64. Written as
    `-expm1(t * log(b))` it is good to the last digits.
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
    """Gradients scaled to a global norm of at most `max_norm` (0: any), and the norm before (PyTorch's formula)."""
    norm = optax.tree.norm(grads)
    if max_norm == 0:
        return grads, norm
    factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), norm


def update_ema(ema: Params, params: Params, decay: float) -> Params:
    """`decay * ema + (1 - decay) * params` for floating tensors; integers are copied."""

    def update(average: Array, value: Array) -> Array:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return decay * average + (1 - decay) * value

    return jax.tree.map(update, ema, params)


# Which paths have a gradient; those that are not named have one.
GradientMask = dict[str, bool | Bool[Array, ""]]


class PerTensorState(NamedTuple):
    """`count` is the number of updates of any tensor, `counts` that of each."""

    count: Int[Array, ""]
    counts: dict[str, Any]
    mu: Params
    nu: Params


def adam_direction(count: Int[Array, ""], mu: Array, nu: Array, b1: float, b2: float, eps: float) -> Array:
    """The direction of update `count` (from 1) of moments that have taken its gradient in."""
    correction1, correction2 = (-jnp.expm1(count.astype(jnp.float32) * math.log(b)) for b in (b1, b2))
    return mu / correction1 / (jnp.sqrt(nu / correction2) + eps)


def init_per_tensor(params: Params) -> PerTensorState:
    """Nothing counted, no moments."""
    zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    return PerTensorState(jnp.int32(0), {path: jnp.int32(0) for path in params}, *zeros)


def scale_by_per_tensor_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`scale_by_adam` with a count for every tensor.

    `present` says of a path whether the step gave it a gradient (absent paths: yes); where it did not, moments, count
    and parameter stay. A gradient that is zero is one all the same. `rebuild` (bool) starts anew before this update, as
    an optimiser that is made again does.
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
