"""The loop: batches in, checkpoints and metrics out, resumed from the workdir's newest checkpoint.

While step k runs on the device, the metrics of step k - 1 are fetched: neither waits for the other.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.files import clear_partials, write_text
from unils_jax.nn.params import Params
from unils_jax.runtime import only_writer
from unils_jax.systems.base import Batch, Metrics, Objective, Stage
from unils_jax.training.checkpoint import Checkpoints, Restored
from unils_jax.training.config import RunConfig, stage_of
from unils_jax.training.distributed import Preempted, PreemptionGuard, any_process, check_agreement
from unils_jax.training.metrics import KeptRows, MetricsLog, StepReporter
from unils_jax.training.sharding import global_batch, replicated, shard_params, shardings
from unils_jax.training.step import TrainState, hold_frozen, init_state, make_eval_step, make_train_step
from unils_jax.training.throughput import flops
from unils_jax.training.throughput.profiling import CompileWatch, StepTrace, Throughput
from unils_jax.training.wandb_run import WandbRun

log = logging.getLogger(__name__)

LOCK = "run.lock"  # in the workdir, while a run writes there

# Arrays by name; under `annotation`, where the system has several, the name of the one they are of.
HostBatch = dict[str, np.ndarray | str]

# Starts the same validation batches anew.
EvalBatches = Callable[[], Iterator[HostBatch]]

# (step, all parameters as host arrays, the trained ones averaged) -> metrics of the model decoding
# held-out conversations by itself.
FreeRunningEval = Callable[[int, Params], dict[str, float]]


@runtime_checkable
class Batches(Protocol):
    """An endless iterator over this process's part of the global batches.

    Its position can be saved, as JSON.
    """

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> bytes:
        """Returns the position."""

    def set_state(self, state: bytes) -> None:
        """Continues from a position; raises UserError where it is of other data."""


@runtime_checkable
class Data(Protocol):
    """Batches from any step on, and the names that their `record` ids refer to.

    Where items differ in length, `mean_frames` is the number of frames that one has on average.
    """

    names: Sequence[str]

    def at_step(self, step: int) -> Batches:
        """Returns the batches that follow `step` batches."""


@dataclass(frozen=True)
class InitialState:
    """The parameters a run begins with."""

    shapes: Params  # of all parameters
    published: Params  # host arrays of the audio encoder, which no checkpoint holds
    fresh: Callable[[], Params]  # gives all others; called where there is nothing to resume


@dataclass(frozen=True)
class TrainSetup:
    """What a run trains, and on which devices."""

    mesh: Mesh | AbstractMesh  # abstract in a dry run for devices that are not there
    graphdef: nnx.GraphDef  # the model's static structure
    objective: Objective
    initial: InitialState


@dataclass(frozen=True)
class TrainOptions:
    """What a run may be given in addition to its config."""

    stop: PreemptionGuard = field(default_factory=PreemptionGuard)
    free_running_eval: FreeRunningEval | None = None  # every `config.probe_every` steps; None: none
    profile_steps: tuple[int, int] | None = None  # first and last step to trace; None: none
    allow_changes: bool = False  # whether the data may differ from those of the checkpoint
    peak_flops: float | None = None  # matrix peak of all devices together, FLOP/s; None: unknown
    wandb: bool = False  # whether the run has a page at Weights & Biases, too


@dataclass(frozen=True)
class FrozenParams:
    """The parameters that do not train, in the three forms that a run needs."""

    in_step: Params  # on the devices as the step uses them, see `hold_frozen`
    on_host: Params  # all of them, float32
    in_checkpoint: Params  # host arrays of those that checkpoints hold: no published encoder


class Evaluation:
    """Writes rows of the splits `val` and `free` where they are due.

    Rows of `val` are validation losses, rows of `free` come from the free-running evaluation, which
    every process calls with the same parameters. Both are due every so many steps as the config
    says, and after the last one.
    """

    def __init__(
        self,
        config: RunConfig,
        setup: TrainSetup,
        batches: EvalBatches,
        free_running_eval: FreeRunningEval | None,
    ):
        self.config, self.mesh, self.batches = config, setup.mesh, batches
        self.free_running_eval = free_running_eval if config.probe_every else None
        self._evaluate = make_eval_step(stage_of(config), setup.graphdef, setup.objective, mesh=setup.mesh)
        # Parameters may be cut over devices of other hosts: gathered, each host can fetch them all.
        self._gather = jax.jit(lambda params: params, out_shardings=replicated(setup.mesh))

    def is_due(self, step: int) -> bool:
        """Returns True where anything is to be evaluated after this step."""
        return self._validates(step) or self._runs_free(step)

    def _validates(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.num_steps

    def _runs_free(self, step: int) -> bool:
        if self.free_running_eval is None:
            return False
        return step % self.config.probe_every == 0 or step == self.config.num_steps

    def write(self, step: int, ema: Params, frozen: FrozenParams, metrics_log: MetricsLog) -> None:
        """Evaluates what is due, with the averaged parameters."""
        if self._validates(step):
            rows = (self._evaluate(ema, frozen.in_step, device_batch(self.mesh, batch)) for batch in self.batches())
            metrics = mean_metrics(rows)
            if metrics:  # empty where the data hold no validation split
                metrics_log.write(step, "val", metrics)
        if self._runs_free(step):
            params = frozen.on_host | jax.device_get(self._gather(ema))
            metrics_log.write(step, "free", self.free_running_eval(step, params))


def train(
    config: RunConfig,
    workdir: Path,
    setup: TrainSetup,
    data: Data,
    eval_batches: EvalBatches,
    options: TrainOptions | None = None,
) -> dict[str, float]:
    """Trains to `config.num_steps` and returns the last metrics.

    Resumes the workdir's newest whole checkpoint where there is one. The workdir's config.json
    holds the config from then on, unless the run cannot begin. Raises Preempted where the run was
    stopped and has saved, and UserError where loss or gradient were not finite in
    `config.max_bad_steps` steps in a row.

    Args:
        config: The run's settings, in steps.
        workdir: Folder of checkpoints and metrics.
        setup: What is trained, and on which devices.
        data: Training batches.
        eval_batches: Starts the same validation batches anew at every call.
        options: What the config does not say; None: the defaults.
    """
    options = options or TrainOptions()
    stage, is_main = stage_of(config), jax.process_index() == 0
    # One process of the run stands for all: they share the workdir.
    owned = only_writer(workdir / LOCK, workdir) if is_main else nullcontext()
    with owned, Checkpoints(workdir, config) as checkpoints:
        if is_main:
            clear_partials(workdir)
        restored = checkpoints.restore(state_shapes(stage, setup.initial.shapes, config, setup.mesh))
        start = restored or first_state(stage, setup.initial.fresh(), config, setup.mesh)
        first = int(start.state.step)
        if restored:
            log.info("resumed %s at step %d", workdir, first)
        batches = data.at_step(first)
        if restored and not options.allow_changes:
            check_position(batches, restored)
        on_host = start.frozen | setup.initial.published
        check_agreement(config.to_dict(), start.state.params | on_host)
        # Written only now: a run that cannot begin leaves the workdir's config as it was.
        if is_main:
            _save_config(config, workdir)
        sizes = [f"{count(params):,}" for params in (start.state.params, on_host)]
        log.info("%s: %s trainable and %s frozen values", stage.name, *sizes)
        in_step = shard_params(setup.mesh, hold_frozen(on_host, config.train.compute_dtype))
        kept = KeptRows(first, evaluated=start.evaluated)
        with (
            WandbRun(workdir, config.to_dict()) if is_main and options.wandb else nullcontext() as page,
            MetricsLog(workdir if is_main else None, kept, page) as metrics_log,
            _progress_bar(config, first, shown=is_main) as progress,
        ):
            frames = data.mean_frames if stage.item_frames is None else stage.item_frames(config.model)
            throughput = Throughput(round(config.data.batch_size * frames), options.peak_flops)
            run = _Run(
                config=config,
                mesh=setup.mesh,
                step_fn=_train_step(config, setup),
                frozen=FrozenParams(in_step, on_host, start.frozen),
                batches=batches,
                evaluation=Evaluation(config, setup, eval_batches, options.free_running_eval),
                checkpoints=checkpoints,
                reporter=StepReporter(config, metrics_log, throughput, progress, data.names),
                trace=StepTrace(workdir / "profile", options.profile_steps),
                stop=options.stop,
            )
            if not start.evaluated:
                run.evaluate(start.state, first)
            run.steps(start.state, first)
        return metrics_log.last


def _save_config(config: RunConfig, workdir: Path) -> None:
    write_text(workdir / "config.json", json.dumps(config.to_dict(), indent=1))


def _progress_bar(config: RunConfig, first: int, *, shown: bool) -> tqdm:
    # tqdm takes None as "where there is a terminal".
    disable = None if shown else True
    return tqdm(total=config.num_steps, initial=first, desc=config.stage, unit="step", disable=disable)


def _train_step(config: RunConfig, setup: TrainSetup) -> Callable:
    return make_train_step(
        stage_of(config),
        setup.graphdef,
        setup.objective,
        config.optimizer,
        accumulate_steps=config.train.accumulate_steps,
        mesh=setup.mesh,
    )


@dataclass(frozen=True)
class _Run:
    """What the steps of one run need."""

    config: RunConfig
    mesh: Mesh
    step_fn: Callable
    frozen: FrozenParams
    batches: Batches
    evaluation: Evaluation
    checkpoints: Checkpoints
    reporter: StepReporter
    trace: StepTrace
    stop: PreemptionGuard

    def steps(self, state: TrainState, first: int) -> None:
        """Takes all steps after `first`."""
        config, throughput, reporter, trace = self.config, self.reporter.throughput, self.reporter, self.trace
        # Made on the mesh: the step may not move anything there by itself.
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(self.mesh))()
        stop_requested = any_process(self.mesh)
        with CompileWatch() as compiles, trace:
            for step in range(first + 1, config.num_steps + 1):
                trace.before(step)
                with throughput.waiting():
                    batch = next(self.batches)
                arrays = device_batch(self.mesh, batch)
                if step == first + 1:
                    work = flops.count(self.step_fn, state, self.frozen.in_step, arrays, key)
                    throughput.flop_per_step = work.model
                    throughput.restart(first)
                with (
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                    jax.transfer_guard("disallow"),
                    compiles.counting(step, settled=step > first + 2),
                ):
                    state, metrics = self.step_fn(state, self.frozen.in_step, arrays, key)
                if step == first + 1:
                    throughput.compiled(step, metrics)
                trace.after(step, metrics)
                reporter.flush()  # of the step before, while this one runs
                reporter.add(step, metrics, batch["record"])
                last = step == config.num_steps
                stopping = stop_requested(self.stop.requested) and not last
                self._evaluate_and_save(step, state, stopping, last)
                if stopping:
                    raise Preempted(step, self.stop.reason or "a signal to another process")

    def _evaluate_and_save(self, step: int, state: TrainState, stopping: bool, last: bool) -> None:
        """Evaluates and saves where it is due.

        Where the run is to stop it saves at once: the evaluation is left to the run that resumes.
        """
        evaluates = self.evaluation.is_due(step)
        saves = last or stopping or step % self.config.checkpoint_every == 0
        if not (evaluates or saves):
            return
        self.reporter.flush()
        if evaluates and not stopping:
            self.evaluate(state, step)
        if saves:
            position = json.loads(self.batches.get_state())
            evaluated = not (evaluates and stopping)
            self.checkpoints.save(step, state, self.frozen.in_checkpoint, position, evaluated=evaluated)
        self.reporter.throughput.restart(step)

    def evaluate(self, state: TrainState, step: int) -> None:
        """Evaluates what is due after this step."""
        self.evaluation.write(step, state.ema, self.frozen, self.reporter.metrics_log)


def check_position(batches: Batches, restored: Restored) -> None:
    """Sets the position that was saved.

    Raises UserError where it is of other data, or of another order of them.
    """
    try:
        batches.set_state(json.dumps(restored.data).encode())
    except UserError as error:
        raise UserError(f"cannot resume: {error}; --allow_changes does the latter") from error


def state_shapes(stage: Stage, shapes: Params, config: RunConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Returns shapes, types and shardings of the training state, with nothing allocated."""
    trainable, _ = stage.split(shapes)
    state = jax.eval_shape(lambda params: init_state(params, config.optimizer), trainable)
    where = shardings(mesh, state)
    return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), state, where)


def first_state(stage: Stage, params: Params, config: RunConfig, mesh: Mesh) -> Restored:
    """Returns the state of a run that resumes nothing, as if it had been restored."""
    trainable, frozen = stage.split(params)
    # Fresh parameters were drawn on the mesh; a parent's are host arrays.
    on_host = {path: value for path, value in trainable.items() if not isinstance(value, jax.Array)}
    state = init_state(trainable | shard_params(mesh, on_host), config.optimizer, mesh=mesh)
    return Restored(state, {path: np.asarray(value) for path, value in frozen.items()}, {}, evaluated=True)


def count(params: Params) -> int:
    """Counts the values that the parameters hold."""
    return sum(value.size for value in params.values())


def step_batch(batch: HostBatch) -> Batch:
    """Returns what a step is given of a loader's batch; record ids stay on the host."""
    annotation = batch.get("annotation")
    arrays = {name: array for name, array in batch.items() if name not in ("record", "annotation")}
    return Batch(arrays, annotation)


def device_batch(mesh: Mesh, batch: HostBatch) -> Batch:
    """Returns the global batch on the devices, of which this process holds its part."""
    return global_batch(mesh, step_batch(batch))


def mean_metrics(metrics: Iterator[Metrics]) -> dict[str, float]:
    """Averages every metric over the equally large batches that have it."""
    rows = [jax.device_get(row) for row in metrics]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
