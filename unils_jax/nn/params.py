"""A model as a pure function of one flat dict: "prior/blocks/0/mlp/up/kernel" -> array.

Freezing, sharding, checkpoints, the torch table and the optimiser name parameters by these paths.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from flax import nnx

# Values are arrays, or what stands for them: shapes, shardings, JAX's placeholders.
Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a model into its static structure and its parameters by path."""
    graphdef, state = nnx.split(model)
    return graphdef, {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """Rebuilds the model that `split` took apart; `params` may be traced."""
    keys = {tuple(int(part) if part.isdigit() else part for part in path.split("/")): v for path, v in params.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(list(keys.items())))


def abstract(build: Callable[[nnx.Rngs], Module]) -> tuple[nnx.GraphDef, Params]:
    """Returns `split` of `build(rngs)` without allocating.

    The values are `jax.ShapeDtypeStruct`s.
    """
    return split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def as_float32(params: Mapping[str, np.ndarray]) -> Params:
    """Returns the parameters as float32 host arrays."""
    return {path: np.asarray(value, np.float32) for path, value in params.items()}
