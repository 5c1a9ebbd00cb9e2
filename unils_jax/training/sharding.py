"""Sharding: the mesh, how each parameter is cut, and global batches from every process's part.

This is the only file that names mesh axes. Batches are spread over both, `data` and `fsdp`; large
parameters, with their moments and average, are cut over `fsdp` alone.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from unils_jax.errors import UserError
from unils_jax.nn.params import Params, split
from unils_jax.systems.base import Arrays

DATA, FSDP = "data", "fsdp"
MIN_CUT_SIZE = 1 << 14  # smaller tensors cost more to gather than to keep


@dataclass(frozen=True)
class MeshConfig:
    """Devices along both axes of the mesh, over all hosts; batches are spread over both."""

    data: int = 0  # that hold copies of the parameters; 0: all devices that fsdp leaves
    fsdp: int = 1  # that large parameters are cut over; 1: none is cut


def make_mesh(config: MeshConfig = MeshConfig()) -> Mesh:
    """Makes the mesh over all devices of all hosts.

    Raises UserError where the config does not use every device.
    """
    num_devices = jax.device_count()
    data = config.data or max(num_devices // config.fsdp, 1)
    if data * config.fsdp != num_devices:
        raise UserError(
            f"mesh.data x mesh.fsdp must be the number of devices, {num_devices}, got {config.data or 'all'} x "
            f"{config.fsdp}; set mesh.fsdp to a divisor of {num_devices} and mesh.data to 0"
        )
    return jax.make_mesh((data, config.fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def _whole(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    return PartitionSpec()


def _cut(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Cuts along the largest dimension that divides; not at all where none does or it is small."""
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not fitting or math.prod(shape) < MIN_CUT_SIZE:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(longest + 1)))


# Path pattern -> how a parameter lies; the first that matches in full. Every parameter must be
# covered: how a new one lies is a decision.
RULES: tuple[tuple[str, Callable[[tuple[int, ...], int], PartitionSpec]], ...] = (
    (r".*/(kernel|lora_a|lora_b|weight_v)", _cut),
    (r".*/(bias|scale|weight_g)", _whole),
    (r"prior/\w+_(token|embed)", _whole),
    (r"decoder/identity_embed|speech_encoder/(position_table|blocks/\d+/attn/gate_scale)|pca/[^/]+/mean", _whole),
    (r"pca/[^/]+/components", _cut),
    (r"(codec/motion|ear/channel)_(mean|std)|\w+_encoder/masked_spec_embed", _whole),
)


def param_shardings(mesh: Mesh | AbstractMesh, params: Params) -> dict[str, NamedSharding]:
    """Returns how every parameter (array or shape) lies on the mesh.

    An abstract mesh answers without its devices. Raises UserError naming the paths that no rule
    covers.
    """
    shardings, uncovered = {}, []
    for path, value in params.items():
        rule = next((rule for pattern, rule in RULES if re.fullmatch(pattern, path)), None)
        if rule is None:
            uncovered.append(path)
        else:
            shardings[path] = NamedSharding(mesh, rule(value.shape, mesh.shape[FSDP]))
    if uncovered:
        raise UserError(f"no sharding rule covers {', '.join(uncovered)}; add one to RULES in training/sharding.py")
    return shardings


def shardings(mesh: Mesh | AbstractMesh, tree: PyTree) -> PyTree:
    """Returns the shardings of any tree that holds its parameters in flat dicts by path.

    Such a tree is a train state. All that is not in these dicts is replicated.
    """
    return jax.tree.map(
        lambda node: param_shardings(mesh, node) if isinstance(node, dict) else replicated(mesh),
        tree,
        is_leaf=lambda node: isinstance(node, dict),
    )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that cuts the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def process_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, accumulate_steps: int = 1) -> int:
    """Returns how many items of a global batch this process loads.

    Raises UserError where the batch does not divide.
    """
    parts = mesh.size * accumulate_steps
    if batch_size % parts:
        raise UserError(
            f"data.batch_size must be a multiple of devices x train.accumulate_steps, {mesh.size} x "
            f"{accumulate_steps}, got {batch_size}; the nearest is {max(round(batch_size / parts), 1) * parts}"
        )
    return batch_size // jax.process_count()


def global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Arrays:
    """Puts every process's own items (NumPy, `process_batch_size`) together on the devices.

    What comes back is of the same type: a `Batch`, or a plain dict.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)


def shard_params(mesh: Mesh, params: Params) -> Params:
    """Moves parameters that every process holds whole (NumPy) to the mesh, by the rules.

    A device gets its part alone.
    """
    laid = param_shardings(mesh, params)
    values = {path: np.asarray(value) for path, value in params.items()}
    return {
        path: jax.make_array_from_callback(value.shape, laid[path], lambda index, value=value: value[index])
        for path, value in values.items()
    }


def init_sharded(mesh: Mesh, build: Callable[[nnx.Rngs], nnx.Module], seed: int, pattern: str = ".*") -> Params:
    """Draws fresh parameters of `build(rngs)` where they are to lie on the mesh.

    No device ever holds more than its part, and what does not match is never drawn. The values do
    not depend on the mesh.

    Args:
        mesh: The devices.
        build: Builds the model.
        seed: Of the draw.
        pattern: Regular expression that a parameter's path must match in full to be drawn.
    """

    def draw() -> Params:
        return {path: v for path, v in split(build(nnx.Rngs(seed)))[1].items() if re.fullmatch(pattern, path)}

    # Given the shardings of its results, XLA computes each part on its device.
    return jax.jit(draw, out_shardings=param_shardings(mesh, jax.eval_shape(draw)))()
