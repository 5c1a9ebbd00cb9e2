"""Adam as PyTorch runs it where a step gives some tensors no gradient: they stay, and each counts its own updates."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Int

from unils_jax.nn.params import Params

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
