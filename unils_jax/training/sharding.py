"""Sharding: the mesh, how each parameter is cut, and global batches from every process's part.

This is the only file that names mesh axes. Batches are spread over both, `data` and `fsdp`; large
parameters, with their moments and average, are cut over `fsdp` alone.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from unils_jax.errors import UserError
from unils_jax.nn.params import Params, split
from unils_jax.systems.base import Arrays

DATA, FSDP = "data", "fsdp"
MIN_CUT_SIZE = 1 << 14  # smaller tensors cost more to gather than to keep


@runtime_checkable
class Device(Protocol):
    """A device, there or not, as far as a mesh needs it; TPUs also name their `slice_index`."""

    platform: str
    device_kind: str
    process_index: int


@dataclass(frozen=True)
class MeshConfig:
    """Devices along both axes of the mesh, over all hosts; batches are spread over both."""

    data: int = 0  # that hold copies of the parameters; 0: all devices that fsdp leaves
    fsdp: int = 1  # that large parameters are cut over; 1: none is cut
    # Equal groups of devices that only a slower network connects (slices of TPUs, hosts of GPUs):
    # `data` goes over all of them, `fsdp` stays inside of one. 0: the slices that the devices name,
    # one where they name none.
    slices: int = 0


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Device] | None = None) -> Mesh:
    """Makes the mesh over devices; None: all of all hosts.

    Raises UserError where the config does not use every device, or cuts `fsdp` over slices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = mesh_shape(config, len(devices))
    slices = _slices(devices, config)
    if data % len(slices):
        raise UserError(
            f"mesh.data must be a multiple of the {len(slices)} slices, got {data} (mesh.fsdp is {fsdp}); set "
            f"mesh.fsdp to a divisor of the {len(devices) // len(slices)} devices of a slice"
        )
    # Neighbours in the grid are neighbours in the machine: hosts may be interleaved in it.
    grids = [create_device_mesh((data // len(slices), fsdp), part, allow_split_physical_axes=True) for part in slices]
    return Mesh(np.concatenate(grids), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def planned_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """Returns the mesh over devices that are not there, for a dry run.

    Raises UserError as `make_mesh` does.
    """
    data, fsdp = mesh_shape(config, num_devices)
    if num_devices % max(config.slices, 1) or data % max(config.slices, 1):
        raise UserError(
            f"mesh.data, {data}, must be a multiple of mesh.slices, {config.slices}; set mesh.fsdp so that it fits "
            "into one slice"
        )
    return AbstractMesh((data, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int]:
    """Returns (data, fsdp) over so many devices.

    Raises UserError where the config does not use every one.
    """
    data = config.data or max(num_devices // config.fsdp, 1)
    if data * config.fsdp != num_devices:
        raise UserError(
            f"mesh.data x mesh.fsdp must be the number of devices, {num_devices}, got {config.data or 'all'} x "
            f"{config.fsdp}; set mesh.fsdp to a divisor of {num_devices} and mesh.data to 0"
        )
    return data, config.fsdp


def _slices(devices: Sequence[Device], config: MeshConfig) -> list[list[Device]]:
    """Groups devices by slice; where they name none, into `config.slices` runs of neighbours."""
    named: dict[int, list[Device]] = {}
    for device in devices:
        named.setdefault(getattr(device, "slice_index", 0), []).append(device)
    groups = [named[number] for number in sorted(named)]
    if len(groups) == 1 and config.slices > 1 and len(devices) % config.slices == 0:
        size = len(devices) // config.slices
        groups = [list(devices[i : i + size]) for i in range(0, len(devices), size)]
    if config.slices and config.slices != len(groups):
        raise UserError(
            f"mesh.slices must be 0 or the number of slices, {len(groups)} of {len(devices)} devices, got "
            f"{config.slices}"
        )
    # Where nobody asked, GPUs of several hosts may share parameters across them: slow, but it runs.
    crosses = len(devices) // len(groups) % config.fsdp != 0
    if not config.slices and devices[0].platform != "tpu" and crosses:
        return [list(devices)]
    return groups


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
    (r"prior/(\w+_(token|embed)|bit_chain)", _whole),
    (r"decoder/identity_embed|speech_encoder/(position_table|blocks/\d+/attn/gate_scale)|pca/[^/]+/mean", _whole),
    (r"pca/[^/]+/components", _cut),
    (r"(codec/motion|ear/channel)_(mean|std)|\w+_encoder/masked_spec_embed", _whole),
    (r"audio_encoder/layers/\d+/(attn|mlp)_scale", _whole),
    (r"audio_encoder/(semantic|acoustic)/(into|back)", _cut),
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


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
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


def process_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> tuple[int, ...]:
    """Returns which rows of a global batch the devices of a process hold, rising.

    They are not always neighbours: on many meshes hosts are interleaved. `process=None` is this
    one.
    """
    process = jax.process_index() if process is None else process
    held: set[int] = set()
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        if device.process_index == process:
            held.update(range(*rows.indices(batch_size)))
    return tuple(sorted(held))


def global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Arrays:
    """Puts every process's own items (NumPy, those of `process_rows`) together on the devices.

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
