"""A loaded checkpoint: config, parameters and where they came from."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
from flax import nnx

from unils_jax.checkpoints.adapters import apply_adapter, read_adapter
from unils_jax.errors import UserError
from unils_jax.inference.sampling import Sampling
from unils_jax.nn.params import Params, abstract, merge
from unils_jax.systems.base import System
from unils_jax.systems.registry import SYSTEMS, system_of_config

MAX_SIZE = 1 << 24  # of any setting of a model
_DEPTHS = ("depth", "decoder_depth", "head_layers")
_ARRAYS_OF_A_LAYER = 4  # at least
_LAYERS_ELSEWHERE = 64  # at most: of a published audio encoder, which is in no file of ours


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, everything float32."""

    config: Any  # the model's, of its system's `config` type; without the sizes of a published encoder of a file
    params: Params  # by path; without a published audio encoder's where it was not given
    expression_basis: str
    source: dict[str, Any]  # where it came from
    run: Mapping[str, Any] | None = None  # resolved config of the run that made a workdir; None: a file
    meta_cfg: dict[str, Any] | None = None  # config tree of a release file; None: it has none
    sampling: Sampling = Sampling()  # how its bits are drawn where a decode does not say

    @property
    def system(self) -> System:
        """The system that the model is of."""
        name = (self.run or {}).get("system")
        return SYSTEMS[name] if name in SYSTEMS else system_of_config(self.config)

    @cached_property
    def model(self) -> nnx.Module:
        """The module. Raises UserError where weights are needed that were not given."""
        lacking = self.system.lacks(self.config, self.params, self.source["checkpoint"])
        if lacking:
            raise UserError(lacking)
        graphdef, shapes = abstract(self.system.builder(self.config))
        return merge(graphdef, {path: jnp.asarray(self.params[path]) for path in shapes})

    def select(self, *annotations: str) -> "Checkpoint":
        """Returns the model of these annotations alone; without any, of the default one.

        The same checkpoint is returned where the system has one kind of output. Raises UserError
        for an annotation that the model lacks.
        """
        if self.system.select is None:
            return self
        return replace(self, config=self.system.select(self.config, annotations, self.source["checkpoint"]))

    def merged(self) -> "Checkpoint":
        """Returns the same model with its adapters merged into the kernels."""
        if self.system.merge is None:
            return self
        config, params = self.system.merge(self.config, self.params)
        return self if config is self.config else replace(self, config=config, params=params)

    def with_adapter(self, adapter: str | os.PathLike, *, merge: bool = True) -> "Checkpoint":
        """Returns the dialogue that this base and an adapter file make; one base serves many.

        The base is a prior, or a dialogue loaded with `merge=False`. Raises UserError for any other
        base.
        """
        loaded = read_adapter(adapter)
        config, params = apply_adapter(self.config, self.params, loaded, str(adapter))
        if loaded.info.expression_basis != self.expression_basis:
            raise UserError(f"adapter {adapter} is of the {loaded.info.expression_basis!r} basis, its base of another")
        source = {**self.source, "stage": config.stage, "adapter": loaded.info.name}
        dialogue = Checkpoint(config, params, self.expression_basis, source, sampling=loaded.info.sampling)
        return dialogue.merged() if merge else dialogue


def check_sizes(config: object, num_arrays: int, source: str) -> None:
    """Raises UserError where a config has absurd sizes for a file of so many arrays."""
    sizes = list(_sizes(config))
    large = [f"{name} {value}" for name, value in sizes if abs(value) > MAX_SIZE]
    if large:
        raise UserError(
            f"{source}: sizes must be up to {MAX_SIZE}, got {', '.join(large[:5])[:200]}; use its own config"
        )
    layers = sum(value for name, value in sizes if name in _DEPTHS)
    most = num_arrays // _ARRAYS_OF_A_LAYER + _LAYERS_ELSEWHERE
    if layers > most:
        raise UserError(f"{source} holds {num_arrays} arrays, its config says {layers} layers; use its own config")


def _sizes(config: object) -> Iterator[tuple[str, int]]:
    """Yields all whole numbers in a config, nested ones too, with the names of their settings."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _sizes(value)
        numbers = value if isinstance(value, tuple) else (value,)
        yield from ((field.name, number) for number in numbers if type(number) is int)


def param_shapes(system: System, config: object, num_arrays: int, source: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's parameters by path; nothing is allocated.

    Raises UserError, naming `source`, where the config is of more layers than a file of
    `num_arrays` arrays can hold, or of absurd sizes: even their shapes would take minutes.
    """
    check_sizes(config, num_arrays, source)
    _, shapes = abstract(system.builder(config))
    return {path: tuple(shape.shape) for path, shape in shapes.items()}
