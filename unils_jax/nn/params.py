"""A model as a pure function of one flat dict: "prior/blocks/0/mlp/up/kernel" -> array.

Freezing, sharding, checkpoints, the torch table and the optimiser name parameters by these paths.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

# Values are arrays, or what stands for them: shapes, shardings, JAX's placeholders.
Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)
STACKED = "*"  # in a path, in the place of a layer's number


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a model into its static structure and its parameters by path."""
    graphdef, state = nnx.split(model)
    return graphdef, {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """Rebuilds the model that `split` took apart; `params` may be traced."""
    keys = {tuple(int(part) if part.isdigit() else part for part in path.split("/")): v for path, v in params.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(list(keys.items())))


def stack_layers(params: Params, prefix: str) -> Params:
    """Returns the parameters with those of the layers `prefix`/0, `prefix`/1, ... stacked by name.

    `prefix`/kernel of n layers is "prefix/*/kernel" [n, ...].
    """
    layers: dict[str, dict[int, Any]] = {}
    for path in [path for path in params if path.startswith(f"{prefix}/")]:
        number, _, rest = path.removeprefix(f"{prefix}/").partition("/")
        layers.setdefault(f"{prefix}/{STACKED}/{rest}", {})[int(number)] = params[path]
    kept = {path: value for path, value in params.items() if not path.startswith(f"{prefix}/")}
    return kept | {path: jnp.stack([found[i] for i in sorted(found)]) for path, found in layers.items()}


def has_stacked(params: Params) -> bool:
    """Returns whether some layers are stacked, see `stack_layers`."""
    return any(f"/{STACKED}/" in path for path in params)


def unstack_layers(params: Params) -> Params:
    """Returns what `stack_layers` was given."""
    mark = f"/{STACKED}/"
    single = {path: value for path, value in params.items() if mark not in path}
    layers = {
        path.replace(mark, f"/{i}/"): value[i]
        for path, value in params.items()
        if mark in path
        for i in range(len(value))
    }
    return single | layers


def abstract(build: Callable[[nnx.Rngs], Module]) -> tuple[nnx.GraphDef, Params]:
    """Returns `split` of `build(rngs)` without allocating.

    The values are `jax.ShapeDtypeStruct`s.
    """
    return split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def as_float32(params: Mapping[str, np.ndarray]) -> Params:
    """Returns the parameters as float32 host arrays."""
    return {path: np.asarray(value, np.float32) for path, value in params.items()}
