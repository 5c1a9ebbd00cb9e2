"""Machines by name: the devices that XLA's compilers for TPU and GPU compile for without one."""

import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.experimental.topologies import get_topology_desc

from unils_jax.errors import UserError, install_hint, one_line
from unils_jax.training.sharding import MeshConfig
from unils_jax.training.throughput.chips import Chip, chip_of

# libtpu must neither ask the cloud's metadata server nor take the lock of a real TPU.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}

# JAX's `device_kind` by the name in front of the colon.
TPUS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}

# What the GPU compiler must know of a card, from NVIDIA's data sheets and tuning guides.
_CARD = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {per_core} shared_memory_per_block_optin: {per_block} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {fpus} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{kind}"
"""
_HOPPER = {"per_core": 233472, "per_block": 232448, "cores": 132, "fpus": 128, "clock": 1.98, "cache": 52428800}
_AMPERE = {"per_core": 167936, "per_block": 166912, "cores": 108, "fpus": 64, "clock": 1.41, "cache": 41943040}
GPUS: Mapping[str, tuple[str, Mapping[str, float], int]] = {
    "a100": ("NVIDIA A100-SXM4-80GB", _AMPERE, 8),
    "h100": ("NVIDIA H100 80GB HBM3", _HOPPER, 9),
    "h200": ("NVIDIA H200", _HOPPER, 9),
}
# There is no card to try kernels on.
_WITHOUT_A_CARD = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


@dataclass(frozen=True)
class Machine:
    """Accelerators by name, `v5e:4x4` or `h100:8`, and how many of those a slow network joins."""

    family: str  # a key of TPUS or GPUS
    shape: str  # "4x4", or "8" GPUs
    slices: int = 1

    @property
    def name(self) -> str:
        """The machine in words."""
        return f"{self.family}:{self.shape}" if self.slices == 1 else f"{self.slices} x {self.family}:{self.shape}"

    @property
    def num_devices(self) -> int:
        """Devices of all slices together."""
        return self.slices * math.prod(map(int, self.shape.split("x")))

    @property
    def platform(self) -> str:
        """What JAX lowers for."""
        return "tpu" if self.family in TPUS else "cuda"

    @property
    def chip(self) -> Chip:
        """The data sheet of one device."""
        return chip_of(TPUS[self.family] if self.family in TPUS else GPUS[self.family][0])

    def devices(self) -> list[jax.Device]:
        """Returns devices that programs can be compiled for and nothing can run on.

        Raises UserError where the compiler is not installed or knows no such machine.
        """
        try:
            return _tpus(self) if self.platform == "tpu" else _gpus(self)
        except UserError:
            raise
        except Exception as error:  # the compilers raise what they like
            raise UserError(
                f"--topology {self.family}:{self.shape}: the compiler knows no such machine ({one_line(error)})"
            ) from None

    def compile(self, traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, float]:
        """Compiles a program that was traced for its devices; also returns the seconds.

        Raises UserError where the compiler refuses it, for lack of memory for example.
        """
        lowered = traced.lower(lowering_platforms=(self.platform,))
        started = time.perf_counter()
        try:
            compiled = lowered.compile({} if self.platform == "tpu" else dict(_WITHOUT_A_CARD))
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"the compiler for {self.name} refuses the program: {one_line(error, 400)}") from error
        return compiled, time.perf_counter() - started


def machine(text: str, slices: int = 1) -> Machine:
    """Reads `v5e:4x4`, `h100:8`. Raises UserError where it names nothing that is known."""
    family, _, shape = text.lower().partition(":")
    known = TPUS if family in TPUS else GPUS
    pattern = r"\d+(x\d+){1,2}" if family in TPUS else r"\d+"
    if family not in known or not re.fullmatch(pattern, shape) or "0" in shape.split("x"):
        raise UserError(
            f"--topology must be a TPU ({', '.join(TPUS)}) with its grid, v5e:4x4, or a GPU ({', '.join(GPUS)}) with "
            f"a number, h100:8, got {text!r}"
        )
    if slices < 1:
        raise UserError(f"--slices must be at least 1, got {slices}")
    return Machine(family, shape, slices)


def simulate(mesh: MeshConfig) -> None:
    """Makes this process's CPU as many devices as the mesh names, to compile for them.

    Must come before JAX's first use. Accelerators stay as they are. Raises UserError where it comes
    too late.
    """
    wanted = max(mesh.data, 1) * mesh.fsdp
    if wanted == 1:
        return
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        if jax.device_count() != wanted:
            raise UserError(
                f"--aot compiles for the mesh's {wanted} devices and JAX has started with {jax.device_count()}; start "
                "another process"
            ) from None


def _tpus(of: Machine) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {of.family}: the TPU compiler is the package libtpu: {install_hint('tpu')}")
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    options: dict[str, int | list[int]] = {} if of.slices == 1 else {"num_slices": of.slices}
    if set(of.shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = [1, 1, 1]  # a host has four chips otherwise
    return list(get_topology_desc(f"{of.family}:{of.shape}", "tpu", **options).devices)


def _gpus(of: Machine) -> list[jax.Device]:
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        raise UserError(f"--topology {of.family}: the GPU compiler is JAX's CUDA plug-in: {install_hint('cuda')}")
    kind, card, major = GPUS[of.family]
    memory = {"memory": int(of.chip.memory), "bandwidth": int(of.chip.bandwidth)}
    text = _CARD.format(kind=kind, major=major, **card, **memory)
    layout = f"{of.slices}x1x{of.shape}"
    return list(get_topology_desc("", "cuda", target_config=text, topology=layout).devices)
