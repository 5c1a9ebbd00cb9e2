"""Measures training steps per second of a stage, against the PyTorch reference."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from unils_jax.benchmarks.ahead.machines import Machine
from unils_jax.benchmarks.ahead.report import compiled_for
from unils_jax.benchmarks.timing import (
    TorchModule,
    interleaved,
    markdown,
    peak_bytes,
    program_bytes,
    random_params,
    ratio,
    torch_reference_of,
)
from unils_jax.benchmarks.trace import TRAIN_PARTS, as_shares, scope_seconds, shares_line
from unils_jax.config import load_config
from unils_jax.motion import (
    MOTION_56_DIM,
    MOTION_DIM,
    MOTION_KIND,
    PARTNER_FRAMES,
    SAMPLES_PER_FRAME,
)
from unils_jax.nn.params import abstract
from unils_jax.systems.base import Batch, Objective, Start, window_of
from unils_jax.systems.registry import STAGES, system_of_config
from unils_jax.systems.unils.hearing import feature_shape
from unils_jax.training.config import RunConfig, override_run, run_config
from unils_jax.training.sharding import (
    MeshConfig,
    batch_sharding,
    global_batch,
    make_mesh,
    process_batch_size,
    replicated,
    shard_params,
    shardings,
)
from unils_jax.training.step import hold_frozen, init_state, make_train_step
from unils_jax.training.throughput.flops import Work, count_jaxpr

log = logging.getLogger(__name__)

ENCODERS = ("wav2vec2", "wavlm")


@dataclass(frozen=True)
class Compiled:
    """A training step compiled for one batch size."""

    program: jax.stages.Compiled
    mesh: Mesh | None  # None: one device
    work: Work
    seconds: float  # of compilation


@dataclass(frozen=True)
class RandomMotion:
    """Stand-in for the data of a model that is fitted to them: our motion of unknown people."""

    num_identities: int
    kinds: Mapping[str, int] = field(default_factory=lambda: {MOTION_KIND: MOTION_DIM})
    pca: Mapping[str, Any] = field(default_factory=dict)
    steps_per_epoch: int = 1


def random_data_config(name: str, batch_size: int | None, overrides: list[str]) -> RunConfig:
    """Returns the settings of a config name or file for random data, which need no store.

    `batch_size=None` keeps the config's. A model of annotations predicts ours alone.
    """
    config = load_config(name)
    config.data.store = "random"
    override_run(config, overrides)
    if batch_size is not None:
        config.data.batch_size = batch_size
    run = run_config(config.to_dict())
    fit = STAGES[run.stage].fit_config
    return run if fit is None else fit(run, RandomMotion(getattr(run.model, "num_identities", 0) or 1), Start())


def random_batch(config: RunConfig, seed: int = 0) -> Batch:
    """Returns a random batch of a stage: smooth motion and, where the stage reads audio, noise."""
    rng = np.random.default_rng(seed)
    shapes, batch = batch_shapes(config), {}
    for name, shape in shapes.items():
        if len(shape.shape) < 2 or name == "template":
            batch[name] = np.zeros(shape.shape, shape.dtype)
            continue
        # Motion is a random walk: the mesh losses and their gradients see plausible faces.
        draws = rng.standard_normal(shape.shape, np.float32)
        batch[name] = draws if name.endswith(("audio", "features")) else 0.3 * draws.cumsum(-2, dtype=np.float32)
    return Batch(batch, shapes.annotation)


def batch_shapes(config: RunConfig) -> Batch:
    """Returns the shapes of a batch of the config's stage and size.

    Speech clips are pieces of our motion.
    """
    windows, size = STAGES[config.stage].windows, config.data.batch_size

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    if windows == "partners":
        clip, audio = floats(size, PARTNER_FRAMES, MOTION_56_DIM), floats(size, PARTNER_FRAMES * SAMPLES_PER_FRAME)
        return Batch({"motion": clip, "partner_motion": clip, "audio": audio, "partner_audio": audio})
    if windows == "speech":
        clips = {
            "motion": floats(size, PARTNER_FRAMES, MOTION_DIM),
            "audio": floats(size, PARTNER_FRAMES * SAMPLES_PER_FRAME),
            "template": floats(size, MOTION_DIM),
            "identity": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
        return Batch(clips, MOTION_KIND)
    lead = (size, 2) if windows == "pair" else (size,)
    window = window_of(config.model)
    lengths = {"motion": window.frames, "prev": window.context_frames, "style": window.context_frames}
    shapes = {name: floats(*lead, frames, MOTION_DIM) for name, frames in lengths.items()}
    if config.audio_features:
        return Batch(shapes | {"audio_features": floats(size, *feature_shape(config.model))})
    return Batch(shapes | ({"audio": floats(*lead, window.num_samples)} if windows == "pair" else {}))


def compile_step(config: RunConfig, objective: Objective, machine: Machine | None = None) -> Compiled:
    """Traces and compiles the step from shapes alone, without allocating a weight.

    It is for a machine that is not there (None: for this one's devices). Where there are several
    devices, it is on the config's mesh.
    """
    traced, mesh, work = trace_step(config, objective, machine)
    log.info("compiling the %s step, batch %d", config.stage, config.data.batch_size)
    if machine is not None:
        program, seconds = machine.compile(traced)
        return Compiled(program, mesh, work, seconds)
    lowered = traced.lower()
    started = time.perf_counter()
    return Compiled(lowered.compile(), mesh, work, time.perf_counter() - started)


def trace_step(
    config: RunConfig, objective: Objective, machine: Machine | None = None
) -> tuple[jax.stages.Traced, Mesh | None, Work]:
    """Traces what `compile_step` compiles; also returns its mesh and its work.

    Raises UserError where batch or mesh do not fit the devices.
    """
    stage, train = STAGES[config.stage], config.train
    devices = jax.devices() if machine is None else machine.devices()
    needed = MeshConfig() != config.mesh or machine is not None
    mesh = make_mesh(config.mesh, devices) if len(devices) > 1 or needed else None
    if mesh is not None:
        process_batch_size(config.data.batch_size, mesh, train.accumulate_steps)
    graphdef, shapes = abstract(system_of_config(config.model).builder(config.model))
    trainable, frozen = stage.split(shapes)
    frozen = jax.eval_shape(lambda params: hold_frozen(params, train.compute_dtype), frozen)
    state = jax.eval_shape(lambda params: init_state(params, config.optimizer), trainable)
    arguments = (state, frozen, batch_shapes(config), jax.eval_shape(lambda: jax.random.key(0)))
    if mesh is not None:
        where = (shardings(mesh, state), shardings(mesh, frozen), batch_sharding(mesh), replicated(mesh))
        arguments = tuple(map(_placed, arguments, where))
    step = make_train_step(
        stage, graphdef, objective, config.optimizer, accumulate_steps=train.accumulate_steps, mesh=mesh
    )
    traced = step.trace(*arguments)
    return traced, mesh, count_jaxpr(traced.jaxpr)


def _placed(shapes: PyTree, sharding: PyTree) -> PyTree:
    """Adds shardings to shapes.

    `sharding` is a tree of shardings like that of the shapes, or one sharding for all.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding)


def bench_train(
    config: RunConfig, objective: Objective, *, against: str | None, rounds: int, peak: float
) -> dict[str, Any]:
    """Returns one stage's figures.

    `peak` is the FLOP/s of all devices in matrix products, of which utilisation is a share.
    Weights and batch are random, noise and dropout are drawn as in training. Raises UserError
    where the reference (`against` "torch") or kept features ("features") cannot be had.
    """
    compiled = compile_step(config, objective)
    _, params = random_params(config.model)
    batch = random_batch(config)
    contenders = {"ours": our_steps(config, compiled, params, batch)}
    # Peak memory is read before the reference runs, which would add its own.
    contenders["ours"](1)
    peak_memory = peak_bytes()
    if against == "features":
        kept = replace(config, audio_features="random")
        contenders[against] = our_steps(kept, compile_step(kept, objective), params, random_batch(kept))
        contenders[against](1)
    if against == "torch":
        contenders["torch"] = torch_steps(config, objective, params, batch)
        contenders["torch"](1)
    log.info("measuring")
    seconds = interleaved(contenders, rounds)
    profile = scope_seconds(compiled.program, partial(contenders["ours"], 1), TRAIN_PARTS)
    return {
        **described(config, objective, compiled),
        **speeds(config, compiled.work, seconds, peak),
        "peak_bytes": peak_memory,
        "profile": {name: as_shares(values) for name, values in profile.items()},
    }


def bench_aot(config: RunConfig, objective: Objective, machine: Machine | None = None) -> dict[str, Any]:
    """Returns memory and work of the compiled step, from shapes alone.

    Nothing of the model's size is allocated or run. With a machine there is also what its compiler
    made of the step, see `compiled_for`.
    """
    compiled = compile_step(config, objective, machine)
    figures = described(config, objective, compiled)
    if machine is None:
        return figures
    train = config.train
    settings = [name for name in ("remat", "scan_layers") if getattr(train, name)]
    settings += [f"{train.accumulate_steps} parts"] if train.accumulate_steps > 1 else []
    words = {"program": f"{config.stage}, {train.compute_dtype}", "settings": ", ".join(settings)}
    found = compiled_for(machine, compiled.program, compiled.work.total, compiled.work.model)
    return {**figures, **words, **found}


def described(config: RunConfig, objective: Objective, compiled: Compiled) -> dict[str, Any]:
    """Returns what is known of a step without running it."""
    memory = program_bytes(compiled.program)
    return {
        "stage": config.stage,
        "batch_size": config.data.batch_size,
        "train": asdict(config.train),
        "mesh": None if compiled.mesh is None else dict(compiled.mesh.shape),
        "head": "none" if objective.head is None else objective.head.name,
        "compile_s": compiled.seconds,
        "step_flops": compiled.work.model,
        "encoder_flops": encoder_work(compiled.work),
        "backward_flops": compiled.work.backward,
        "recomputed_flops": compiled.work.recomputed,
        "memory_bytes": memory,
        "program_bytes": sum(memory.values()),
    }


def encoder_work(work: Work) -> int:
    """Returns the FLOP of products inside the audio encoders.

    Those of their gradients are included where they train.
    """
    return sum(work.within(name) for name in ENCODERS)


def speeds(config: RunConfig, work: Work, seconds: Mapping[str, list[float]], peak: float) -> dict[str, Any]:
    """Returns the figures that follow from the seconds a step took in every round.

    Utilisation is `work.model`, all products of the step's jaxpr but those that
    rematerialisation repeats (forward of everything, the frozen audio encoder once a track,
    backward of what leads to a trained parameter), by the measured peak; `without_encoder`
    leaves the encoder's products out and its time in.
    """
    # Items without a fixed length are random clips of PARTNER_FRAMES here.
    item_frames = STAGES[config.stage].item_frames
    frames = config.data.batch_size * (PARTNER_FRAMES if item_frames is None else item_frames(config.model))
    step_s = statistics.median(seconds["ours"])
    figures = {
        "steps_per_s": 1 / step_s,
        "frames_per_s": frames / step_s,
        "utilisation": work.model / step_s / peak,
        "utilisation_without_encoder": (work.model - encoder_work(work)) / step_s / peak,
        "seconds": {name: list(values) for name, values in seconds.items()},
    }
    if "features" in seconds:
        figures["features_steps_per_s"] = 1 / statistics.median(seconds["features"])
        figures["times_features"] = ratio(seconds, "features", "ours")
    if "torch" in seconds:
        figures["torch_steps_per_s"] = 1 / statistics.median(seconds["torch"])
        figures["times_torch"] = ratio(seconds, "ours", "torch")
    return figures


def our_steps(
    config: RunConfig, compiled: Compiled, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> Callable[[int], None]:
    """Returns a function that runs n of our steps in sequence, and waits for the last."""
    # What training does before its first step: cast the frozen weights, and put all where they lie.
    trainable, frozen = STAGES[config.stage].split(dict(params))
    frozen = hold_frozen(frozen, jnp.dtype(config.train.compute_dtype))
    key, mesh = jax.random.key(0), compiled.mesh
    if mesh is None:
        state = init_state(trainable, config.optimizer)
        frozen, batch = jax.device_put((frozen, batch))
    else:
        state = init_state(shard_params(mesh, trainable), config.optimizer, mesh=mesh)
        frozen, batch, key = (
            shard_params(mesh, frozen),
            global_batch(mesh, batch),
            jax.device_put(key, replicated(mesh)),
        )

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = compiled.program(state, frozen, batch, key)
        jax.block_until_ready(state)

    return run


def torch_steps(
    config: RunConfig, objective: Objective, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> Callable[[int], None]:
    """Returns a function that runs n of the reference's steps.

    Its attention is PyTorch's default; a step has noise, gradient, clipping, AdamW, average.
    """
    reference = torch_reference_of(config.model, params).train()
    # The extra `torch`: this benchmark runs without it, too.
    import torch  # noqa: PLC0415

    from unils_jax.benchmarks.torch_runs import (  # noqa: PLC0415
        make_optimizer,
        sample_noise,
        train_step,
        update_ema,
    )

    device = next(reference.parameters()).device
    tensors = {name: torch.tensor(value, device=device) for name, value in batch.items()}
    optimizer, schedule = make_optimizer(reference, config.num_steps)
    ema = [p.detach().clone() for p in reference.parameters() if p.requires_grad]
    people = tensors["motion"].shape[:-2].numel()
    loss = torch_reference_loss(reference, objective)

    def run(steps: int) -> None:
        for _ in range(steps):
            noise = None if config.stage == "codec" else sample_noise(reference, people)
            train_step(reference, optimizer, schedule, loss(tensors, noise))
            update_ema(ema, reference, config.optimizer.ema_decay)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def torch_reference_loss(reference: TorchModule, objective: Objective) -> Callable[[Mapping[str, Any], Any], Any]:
    """Returns `loss(batch of tensors, noise or None)` of the reference's stage.

    It is what the stage minimises under the objective.
    """
    if hasattr(reference, "teacher_forced"):
        return reference.loss
    from unils_jax.benchmarks.torch_runs import Head  # noqa: PLC0415 - it imports torch

    head = objective.head and Head(objective.head, reference.motion_mean.device)
    lips = head and head.lips
    return lambda batch, noise: sum(reference.loss(batch["motion"], head, lips, asdict(objective.weights)).values())


def table(result: Mapping[str, Any]) -> str:
    """Returns the README's table of a result of `unils bench train`."""
    rows = []
    for row in result["stages"]:
        work = row["step_flops"]
        cells = {
            "stage": row["stage"],
            "batch": row["batch_size"],
            "compute": row["train"]["compute_dtype"],
            "GFLOP/step": work / 1e9,
            "of it encoder": f"{row['encoder_flops'] / work:.0%}",
        }
        if "steps_per_s" in row:
            cells |= {
                "steps/s": row["steps_per_s"],
                "frames/s": row["frames_per_s"],
                "utilisation": f"{row['utilisation']:.1%}",
            }
        cells |= {"program GB": row["program_bytes"] / 1e9, "compile s": row["compile_s"]}
        if result["against"] == "features":
            cells |= {"steps/s on features": row["features_steps_per_s"], "x": row["times_features"]}
        elif result["against"]:
            cells |= {"torch steps/s": row["torch_steps_per_s"], "x torch": row["times_torch"]}
        rows.append(cells)
    profiles = [f"{row['stage']}: {shares_line(row['profile'])}" for row in result["stages"] if "profile" in row]
    return "\n\n".join([markdown(rows), *profiles])
