"""Runs one training stage: joins config, data and parent, and trains."""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from data_pipelines.mixture import parse_stores
from data_pipelines.store.reader import Store
from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.config import from_dict, load_config
from unils_jax.errors import UserError
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.evaluation.protocols import VALIDATION, conversation_of, make_free_running_eval, skip_reason
from unils_jax.face.flame import FlameAsset
from unils_jax.face.head import load_head
from unils_jax.files import check_output
from unils_jax.nn.params import Params, abstract
from unils_jax.runtime import local_path
from unils_jax.systems.base import Stage, Start, window_of
from unils_jax.systems.registry import SYSTEMS, current_run
from unils_jax.systems.unils.ear import ear_of
from unils_jax.training.checkpoint import check_workdir, has_checkpoint, published_left_out, saved_config
from unils_jax.training.config import RunConfig, count_epochs, make_objective, override_run, run_config, stage_of
from unils_jax.training.data import make_data
from unils_jax.training.distributed import PreemptionGuard
from unils_jax.training.feature_cache import use_features
from unils_jax.training.loop import (
    Data,
    FreeRunningEval,
    InitialState,
    TrainOptions,
    TrainSetup,
    state_shapes,
    step_batch,
)
from unils_jax.training.loop import train as train_loop
from unils_jax.training.sharding import DATA, FSDP, init_sharded, make_mesh, param_shardings, planned_mesh
from unils_jax.training.step import hold_frozen, make_train_step
from unils_jax.training.throughput import flops
from unils_jax.training.throughput.profiling import known_peak, parse_steps
from unils_jax.training.wandb_run import check_wandb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """Devices that a dry run is checked for instead of this machine's."""

    num_devices: int
    num_processes: int = 1
    memory: float | None = None  # bytes of a device; None: unknown

    def __post_init__(self) -> None:
        if min(self.num_devices, self.num_processes) < 1 or self.num_devices % self.num_processes:
            raise UserError(
                f"--devices must be a multiple of the {self.num_processes} processes and at least 1, got "
                f"{self.num_devices}"
            )


@dataclass(frozen=True)
class Options:
    """The options of a run in addition to config, workdir and parent."""

    dry_run: bool = False  # True: check everything and stop before the first step
    allow_changes: bool = False  # resume with settings or data other than the workdir's
    profile_steps: str | None = None  # "FIRST:LAST" to trace; None: no trace
    cluster: Cluster | None = None  # what a dry run is checked for; None: this machine
    wandb: bool = False  # whether the run has a page at Weights & Biases, too


def train(  # noqa: PLR0913 (the public call: all but config and workdir are named and optional)
    config: str | os.PathLike | Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    parent: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    allow_changes: bool = False,
    profile_steps: str | None = None,
    stop: PreemptionGuard | None = None,
    wandb: bool = False,
) -> dict[str, float]:
    """Trains one stage and returns its last metrics, none for a dry run.

    With the same workdir it resumes. Raises UserError for every mistake of the user before the
    first step.

    Args:
        config: The name of a config ("smoke/codec"), a .py file, or the settings themselves.
        workdir: Checkpoints and logs.
        parent: The checkpoint of the stage before, where the stage has one.
        overrides: Settings by their dotted names, {"data.store": "data/synthetic"}.
        dry_run: Only check config, data, parent and shapes.
        allow_changes: Resume with settings or data other than the workdir's.
        profile_steps: "A:B" traces these steps into the workdir's folder `profile`.
        stop: A PreemptionGuard whose context is entered; None installs no signal handler.
        wandb: Whether metrics go to a page at Weights & Biases, too.
    """
    named = isinstance(config, str | os.PathLike)
    settings = load_config(str(config)) if named else ml_collections.ConfigDict(config)
    override_run(settings, [f"{name}={value}" for name, value in (overrides or {}).items()])
    options = Options(dry_run, allow_changes, profile_steps, wandb=wandb)
    start = None if parent is None else str(parent)
    return train_stage(settings.to_dict(), local_path(workdir, "workdir"), start, options, stop)


def train_stage(
    values: Mapping[str, Any],
    workdir: Path,
    parent: str | None,
    options: Options | None = None,
    stop: PreemptionGuard | None = None,
) -> dict[str, float]:
    """Joins config, data and model, and trains; returns the last metrics, none for a dry run.

    `stop` is a PreemptionGuard whose context is entered; None installs no signal handler.
    """
    config, options = run_config(values), options or Options()
    stage, system = stage_of(config), SYSTEMS[config.system]
    if config.probe_every and not stage.decodes:
        raise UserError(
            f"probe_every must be 0 for the {stage.name}, which decodes nothing by itself; see its val rows"
        )
    profile_steps = None if options.profile_steps is None else parse_steps(options.profile_steps)
    if options.wandb:
        check_wandb()
    cluster = options.cluster
    mesh = make_mesh(config.mesh) if cluster is None else planned_mesh(config.mesh, cluster.num_devices)
    start = find_start(config, stage, workdir, parent)
    # Some models follow from their data or their parent; the loader needs the parent's part of it.
    fit = stage.fit_config or (lambda config, data, start: config)
    config = fit(config, None, start)
    published = published_params(config)
    if config.audio_features:
        use_features(config, published or ear_of(config, start))
    data, held_out = make_data(config, stage, mesh)
    config = count_epochs(fit(config, data, start), data.steps_per_epoch)
    # All processes of the run come here; the first of them holds the workdir while it trains.
    check_output(workdir / "config.json", hold=False)
    resumes = check_workdir(config, workdir, allow_changes=options.allow_changes)
    head = config_head(config) if stage.uses_head else None
    objective = make_objective(config, head)
    graphdef, shapes = abstract(system.builder(config.model))
    given = {} if resumes or stage.init is None else stage.init(config, shapes, data, start)
    fresh = make_fresh(config, mesh, shapes, given)
    setup = TrainSetup(mesh, graphdef, objective, InitialState(shapes, published, fresh))
    if options.dry_run:
        try_shapes(config, setup, data)
        for line in plan(config, setup, cluster or Cluster(jax.device_count())):
            log.info(line)
        return {}
    begins = f"parent {parent}" if parent else "scratch"
    log.info("starting from %s", f"the newest checkpoint of {workdir}" if resumes else begins)
    if resumes and parent:
        log.info("--parent %s is left unused: the workdir has its own weights", parent)
    if stage.without_head and head is None:
        log.warning(stage.without_head)
    look = make_probe(config, stage, workdir, graphdef) if config.probe_every else None
    peak = matrix_peak(config)
    extras = TrainOptions(
        stop or PreemptionGuard(), look, profile_steps, options.allow_changes, peak, wandb=options.wandb
    )
    return train_loop(config, workdir, setup, data, held_out, extras)


def find_start(config: RunConfig, stage: Stage, workdir: Path, parent: str | None) -> Start:
    """Finds what the run begins with: the workdir that it resumes, the parent, or nothing.

    Raises UserError where a parent is missing, superfluous or of another stage.
    """
    if stage.parent is None and parent and not stage.continues:
        raise UserError(f"the {config.stage} stage starts from scratch; leave --parent away")
    if has_checkpoint(workdir):
        return Start(None, _saved_model(workdir), load_audio_encoder, _load_part)
    if stage.parent is not None and not parent:
        raise UserError(f"the {config.stage} stage starts from a {stage.parent}; give its checkpoint with --parent")
    loaded = None if not parent else load(parent, stage=stage.parent or stage.trained)
    return Start(loaded, None, load_audio_encoder, _load_part)


def _load_part(path: str, stage: str) -> Checkpoint:
    """Loads another checkpoint that a run takes parts of."""
    return load(path, stage=stage)


def _saved_model(workdir: Path) -> object:
    """Reads the model's config of a workdir.

    None where it cannot be read, of which `check_workdir` says more.
    """
    try:
        run = current_run(saved_config(workdir))
        return from_dict(SYSTEMS[run["system"]].config, run["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_fresh(config: RunConfig, mesh: Mesh | AbstractMesh, shapes: Params, given: Params) -> Callable[[], Params]:
    """Makes the function that returns all parameters before the first step.

    They are those given, and the others drawn. A published audio encoder, which no checkpoint
    holds, is left out.
    """
    system, model = SYSTEMS[config.system], config.model
    if system.encoder is not None:
        model = system.encoder.put(model, None)

    def fresh() -> Params:
        missing = [path for path in published_left_out(shapes) if path not in given]
        return init_sharded(mesh, system.builder(model), config.seed, "|".join(map(re.escape, missing))) | given

    return fresh


def published_params(config: RunConfig) -> Params:
    """Loads the published audio encoder that the model's own checkpoints leave out, host arrays.

    The result is empty where there is none. Raises UserError where its sizes are not the config's.
    """
    slot = SYSTEMS[config.system].encoder
    wanted = None if slot is None else slot.get(config.model)
    if wanted is None:
        return {}
    family = slot.family(config.model)
    encoder, params = load_audio_encoder(config.audio_encoder, family)
    if slot.put(config.model, encoder) != config.model:
        raise UserError(f"{config.audio_encoder} has other sizes than config.model.{family}: {encoder}")
    return params


def encoder_params(config: RunConfig) -> Params:
    """Loads the frozen audio encoder that a dialogue's config names, by its paths in the model."""
    return published_params(config) or ear_of(config, Start(None, None, load_audio_encoder, _load_part))


def config_head(config: RunConfig) -> FlameAsset | None:
    """Loads the head whose vertices the mesh losses compare; None where the config names none.

    Raises UserError where it does not fit the basis.
    """
    if not config.head:
        return None
    head = load_head(config.head)
    if head.name != config.expression_basis:
        raise UserError(f"config.head {config.head!r} does not fit the basis {config.expression_basis!r}")
    return head


def make_probe(config: RunConfig, stage: Stage, workdir: Path, graphdef: nnx.GraphDef) -> FreeRunningEval:
    """Makes the function that decodes and scores held-out conversations while the model trains.

    They are the first ones of the validation split that fit. Raises UserError where there is none.
    """
    store = Store(parse_stores(config.data.store, config.data.stores)[0][0])
    needs_audio, protocol = stage.windows != "solo", VALIDATION.for_window(window_of(config.model))
    fitting = (i for i, r in enumerate(store.records("val")) if not skip_reason(r, protocol, needs_audio=needs_audio))
    chosen = list(islice(fitting, config.probe_conversations))
    if not chosen:
        raise UserError(f"probe_every is set, but the val split of {store.path} holds no conversation to decode")
    head = config_head(config) or load_head(None)
    clips = (workdir / "clips", head) if config.probe_clips and jax.process_index() == 0 else None
    return make_free_running_eval(
        SYSTEMS[config.system],
        graphdef,
        [conversation_of(store.read("val", i), protocol) for i in chosen],
        mesh=mesh_of(head) if head.name == config.expression_basis else None,
        expression_basis=config.expression_basis,
        clips=clips,
        protocol=protocol,
    )


def matrix_peak(config: RunConfig) -> float:
    """Returns the FLOP/s of all devices together.

    They are the data sheet's where it is known, otherwise measured on the first device.
    """
    device, dtype = jax.devices()[0], config.train.compute_dtype
    known = known_peak(device.device_kind, dtype)
    # On a CPU a small product tells enough, and quickly.
    peak = known or flops.matrix_peak(dtype, *((512,) if device.platform == "cpu" else ()))
    source = "by its data sheet" if known else "measured"
    log.info("matrix peak of a device (%s): %.3g TFLOP/s in %s, %s", device.device_kind, peak / 1e12, dtype, source)
    return peak * jax.device_count()


def plan(config: RunConfig, setup: TrainSetup, cluster: Cluster) -> list[str]:
    """Returns lines that say how a run lies on its devices, and what it takes there at least."""
    stage, mesh, size = stage_of(config), setup.mesh, config.data.batch_size
    state = state_shapes(stage, setup.initial.shapes, config, mesh)
    _, frozen = stage.split(setup.initial.shapes)
    held = jax.eval_shape(lambda params: hold_frozen(params, config.train.compute_dtype), frozen)
    laid = param_shardings(mesh, held)

    def on_device(shape: jax.ShapeDtypeStruct, where: NamedSharding) -> int:
        return math.prod(where.shard_shape(shape.shape)) * shape.dtype.itemsize

    state_bytes = sum(on_device(leaf, leaf.sharding) for leaf in jax.tree.leaves(state))
    frozen_bytes = sum(on_device(shape, laid[path]) for path, shape in held.items())
    total = state_bytes + frozen_bytes
    share = "" if cluster.memory is None else f", {total / cluster.memory:.0%} of its {cluster.memory / 1e9:,.0f} GB"
    lines = [
        f"mesh: data {mesh.shape[DATA]} x fsdp {mesh.shape[FSDP]}, {mesh.size} devices",
        f"batch: {size}, {size // mesh.size} a device in {config.train.accumulate_steps} parts, "
        f"{size // cluster.num_processes} a process of {cluster.num_processes}",
        f"parameters: {sum(p.size for p in state.params.values()):,} trainable, "
        f"{sum(p.size for p in frozen.values()):,} frozen",
        f"memory of a device: state {state_bytes / 1e9:.2f} GB, frozen weights {frozen_bytes / 1e9:.2f} GB{share}; "
        "activations come on top, see `unils bench train --topology` or `--aot`",
    ]
    if cluster.memory is not None and total > cluster.memory:
        raise UserError(f"{lines[-1]}; set mesh.fsdp higher")
    return lines


def try_shapes(config: RunConfig, setup: TrainSetup, data: Data) -> None:
    """Traces one step from shapes alone, which fails where anything does not fit.

    Nothing is computed.
    """
    stage, shapes, mesh = stage_of(config), setup.initial.shapes, setup.mesh
    parts = config.train.accumulate_steps
    step = make_train_step(stage, setup.graphdef, setup.objective, config.optimizer, accumulate_steps=parts, mesh=mesh)
    _, frozen = stage.split(shapes)
    batch = step_batch(next(data.at_step(0)))
    jax.eval_shape(step, state_shapes(stage, shapes, config, mesh), frozen, batch, jax.random.key(0))
