"""The common parts of all benchmarks: random models, interleaved rounds, the machine, tables."""

import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unils_jax.checkpoints.torch_keys import torch_views
from unils_jax.errors import UserError, install_hint
from unils_jax.files import markdown_table, write_text
from unils_jax.models.unils import UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.params import Params, abstract
from unils_jax.systems.registry import system_of_config
from unils_jax.training.throughput.flops import matrix_peak

if TYPE_CHECKING:
    from torch.nn import Module as TorchModule
else:
    TorchModule = object  # torch is an extra, and slow to import

MEASURED_S = 0.5  # quick work is repeated until a measurement lasts this long


def random_params(config: object, seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """Returns a model's structure and random NumPy values of its parameters.

    Speed does not depend on what was learnt. Values are uniform within 1/sqrt(fan-in), norms and
    statistics one or zero, so that activations keep their size.
    """
    graphdef, shapes = abstract(system_of_config(config).builder(config))
    rng = np.random.default_rng(seed)

    def value(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("/scale", "/weight_g", "/motion_std")):
            return np.ones(shape, np.float32)
        if path.endswith(("/bias", "/motion_mean")):
            return np.zeros(shape, np.float32)
        # The norm of a weight-normed convolution is over its input channels and its kernel.
        fan_in = math.prod(shape[1:]) if path.endswith("/weight_v") else math.prod(shape[:-1])
        return (rng.random(shape, np.float32) * 2 - 1) / np.float32(math.sqrt(max(fan_in, 1)))

    return graphdef, {path: value(path, shape.shape) for path, shape in shapes.items()}


def torch_reference_of(config: UniLSConfig, params: Mapping[str, np.ndarray]) -> TorchModule:
    """Returns the PyTorch reference with the same weights, on the same kind of device as JAX.

    It is a `TorchReferenceCodec` or a `TorchReferenceGenerator`, adapters included. Raises
    UserError where torch is missing and where the model has no reference.
    """
    check_torch_reference(config)
    try:
        import torch  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(f"--against torch needs PyTorch: {install_hint('torch')}") from None
    # These import torch.
    from unils_jax.benchmarks.torch_encoder import build_encoder  # noqa: PLC0415
    from unils_jax.benchmarks.torch_model import TorchReferenceCodec, TorchReferenceGenerator  # noqa: PLC0415
    from unils_jax.benchmarks.torch_runs import add_lora  # noqa: PLC0415

    # On the meta device: the weights come from `params`, so none is drawn or allocated twice.
    with torch.device("meta"):
        reference = TorchReferenceCodec(**asdict(config.codec))
        if config.prior is not None:
            reference = TorchReferenceGenerator(reference, **asdict(config.prior))
        if config.lora is not None:
            add_lora(reference, config.lora.rank, config.lora.alpha, config.lora.dropout_rate)
        if config.wav2vec2 is not None:
            reference.audio_encoder = build_encoder(transformers_fields(config.wav2vec2))
    encoder = {path: value for path, value in params.items() if path.startswith("audio_encoder/")}
    views = list(torch_views({path: value for path, value in params.items() if path not in encoder}, config.stage))
    views += [(f"audio_encoder.{key}", view) for key, view in torch_views(encoder, "audio_encoder")]
    if jax.device_count() > 1:
        raise UserError(
            "--against torch needs one device, for the PyTorch reference has no more; set CUDA_VISIBLE_DEVICES=0"
        )
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("JAX runs on a GPU and this PyTorch cannot; install PyTorch for CUDA or set JAX_PLATFORMS=cpu")
    torch.set_float32_matmul_precision("high")  # what JAX does by default on a GPU; no effect on a CPU
    state = {key: torch.tensor(np.ascontiguousarray(view), device=device) for key, view in views}
    reference.load_state_dict(state, strict=True, assign=True)
    return reference.to(device)


def check_torch_reference(config: object) -> None:
    """Raises UserError where the model has no PyTorch reference."""
    if not isinstance(config, UniLSConfig):
        name = system_of_config(config).title
        raise UserError(f"--against torch: the PyTorch reference is of UniLS, {name} has none; leave it away")
    if config.logmel is not None or config.ear is not None or config.mimi is not None:
        raise UserError(
            "--against torch needs a model with wav2vec2 or without audio: the PyTorch reference has no log-mel "
            "encoder, no ear and no Mimi"
        )


def transformers_fields(config: Wav2Vec2Config) -> dict[str, Any]:
    """Returns the fields of a transformers config.json for an encoder of these sizes."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_dim,
        "conv_dim": config.conv_dims,
        "conv_kernel": config.conv_kernels,
        "conv_stride": config.conv_strides,
        "num_conv_pos_embeddings": config.pos_conv_kernel,
        "num_conv_pos_embedding_groups": config.pos_conv_groups,
        "layer_norm_eps": config.norm_eps,
    }


def interleaved(contenders: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds a call of every contender took in every round.

    The contenders take turns, so that a machine's changing speed meets all of them.
    `contender(n)` does its work n times and returns when all is done. It has run before
    (compiled, warm); where once is too quick to measure, n grows and the mean of the n counts.
    """
    repeats = {name: math.ceil(MEASURED_S / max(seconds_of(run, 1), 1e-6)) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(seconds_of(run, repeats[name]) / repeats[name])
    return seconds


def seconds_of(run: Callable[..., object], *arguments: object) -> float:
    """Returns how long `run(*arguments)` takes."""
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """Returns how many times faster `ours` is: the median over the rounds' quotients."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def limit_threads(threads: int) -> None:
    """Restricts both frameworks to the first `threads` cores that this process may use.

    Call it before JAX's first use. Raises UserError where there are fewer cores, and on systems
    that cannot pin a process.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--threads needs Linux; leave it away")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise UserError(f"--threads must be from 1 to the {len(cores)} cores there are, got {threads}")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported


def machine(peaks: bool = True) -> dict[str, Any]:
    """Returns device, cores, versions and the measured peak of matrix products in FLOP/s."""
    device = jax.devices()[0]
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "num_devices": jax.device_count(),
        "cores": cores,
        "python": platform.python_version(),
        "versions": versions,
    }
    if peaks:
        described["matrix_peak"] = {name: matrix_peak(jnp.dtype(name)) for name in ("float32", "bfloat16")}
    return described


def processor() -> str:
    """Returns the CPU's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a compiled program needs on its device.

    They are its arguments, its results that are not donated arguments, and its temporaries.
    """
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }


def peak_bytes() -> int:
    """Returns the most memory used so far.

    It is the device's where the device reports it, else this process's, PyTorch's included.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of rows with the same keys; floats have three digits."""
    names = list(rows[0])
    return "\n".join(markdown_table([names, *([_digits(row[name]) for name in names] for row in rows)]))


def _digits(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def write_json(path: str | os.PathLike, result: Mapping[str, Any]) -> None:
    """Writes the whole result; the file appears at once."""
    write_text(path, json.dumps(result, indent=1))
