"""The loop: batches in, checkpoints and metrics out, resumed where the workdir stands.

While step k runs on the device, the metrics of step k - 1 are looked at: nobody waits for anybody.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.nn.params import Params
from unils_jax.systems.base import Metrics, Objective, Stage
from unils_jax.training import flops
from unils_jax.training.checkpoint import Checkpoints, Restored
from unils_jax.training.config import RunConfig, stage_of
from unils_jax.training.distributed import Preempted, PreemptionGuard, Vote, check_agreement
from unils_jax.training.metrics import MetricsLog, StepReporter
from unils_jax.training.profiling import CompileWatch, StepTrace, Throughput
from unils_jax.training.sharding import global_batch, place, replicated, shardings
from unils_jax.training.step import TrainState, hold_frozen, init_state, make_eval_step, make_train_step

log = logging.getLogger(__name__)


HostBatch = dict[str, np.ndarray]


Probe = Callable[[int, Params], dict[str, float]]


class Evaluation:
    """Writes rows of the splits `val` and `free` where they are due.

    `batches()` starts the same validation batches anew. `probe(step, params)` is given all parameters as host arrays,
    the trained ones averaged; every process calls it, with the same ones. Both come every so many steps as the config
    says, and after the last.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        graphdef: nnx.GraphDef,
        objective: Objective,
        batches: Callable[[], Iterator[HostBatch]],
        probe: Probe | None,
    ):
        self.config, self.mesh, self.batches = config, mesh, batches
        self.probe = probe if config.probe_every else None
        self._evaluate = make_eval_step(stage_of(config), graphdef, objective, mesh=mesh)
        self._whole = jax.jit(lambda params: params, out_shardings=replicated(mesh))

    def is_due(self, step: int) -> bool:
        """Whether anything is to be looked at after this step."""
        return self._validates(step) or self._probes(step)

    def _validates(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.num_steps

    def _probes(self, step: int) -> bool:
        return self.probe is not None and (step % self.config.probe_every == 0 or step == self.config.num_steps)

    def write(self, step: int, ema: Params, frozen: Params, host_frozen: Params, metrics_log: MetricsLog) -> None:
        """Evaluates what is due. `frozen` are the parameters that the step uses, `host_frozen` the same in float32."""
        if self._validates(step):
            rows = (self._evaluate(ema, frozen, device_batch(self.mesh, batch)) for batch in self.batches())
            metrics_log.write(step, "val", mean_metrics(rows))
        if self._probes(step):
            metrics_log.write(step, "free", self.probe(step, host_frozen | jax.device_get(self._whole(ema))))


@runtime_checkable
class Batches(Protocol):
    """An endless iterator over this process's share of the global batches, with a position to save (JSON)."""

    def __next__(self) -> HostBatch: ...
    def get_state(self) -> bytes: ...
    def set_state(self, state: bytes) -> None: ...


@runtime_checkable
class Data(Protocol):
    """Batches from any step on, and the names that their `record` ids stand for. Where items differ in length,
    `mean_frames` tells how many frames one has on average."""

    names: Sequence[str]

    def at_step(self, step: int) -> Batches: ...


@dataclass(frozen=True)
class InitialState:
    """The parameters a run begins with.

    `shapes` are those of all; `published` are host arrays of the audio encoder, which no checkpoint holds; `fresh()`
    gives all others before the first step, and is called where there is nothing to resume.
    """

    shapes: Params
    published: Params
    fresh: Callable[[], Params]


@dataclass(frozen=True)
class TrainOptions:
    """What a run may be given beside its config.

    `probe`: see Evaluation. `profile_steps`: the first and the last step to trace. `allow_changes`: the data may be
    others than those of the checkpoint. `peak_flops` is the matrix peak of all devices together, in FLOP/s.
    """

    stop: PreemptionGuard = field(default_factory=PreemptionGuard)
    probe: Probe | None = None
    profile_steps: tuple[int, int] | None = None
    allow_changes: bool = False
    peak_flops: float | None = None


def train(
    config: RunConfig,
    workdir: Path,
    mesh: Mesh,
    graphdef: nnx.GraphDef,
    start: InitialState,
    objective: Objective,
    data: Data,
    eval_batches: Callable[[], Iterator[HostBatch]],
    extras: TrainOptions | None = None,
) -> dict[str, float]:
    """Trains to `config.num_steps` and returns the last metrics. The workdir's config.json holds the config from then
    on, unless the run cannot begin.

    Goes on from the workdir's newest whole checkpoint where there is one. `eval_batches()` starts the same validation
    batches anew each time. Raises Preempted where it was told to stop and has saved, and UserError where loss or
    gradient were not finite in `config.max_bad_steps` steps in a row.
    """
    extras = extras or TrainOptions()
    stage, tells = stage_of(config), jax.process_index() == 0
    with Checkpoints(workdir, config) as checkpoints:
        found = checkpoints.restore(state_shapes(stage, start.shapes, config, mesh))
        at = found or first_state(stage, start.fresh(), config, mesh)
        first = int(at.state.step)
        if found:
            log.info("resumed %s at step %d", workdir, first)
        batches = data.at_step(first)
        if found and not extras.allow_changes:
            check_position(batches, found)
        host_frozen = at.frozen | start.published
        check_agreement(config.to_dict(), at.state.params | host_frozen)
        if tells:
            with atomic_output(workdir / "config.json") as partial:
                partial.write_text(json.dumps(config.to_dict(), indent=1))
        sizes = [f"{count(params):,}" for params in (at.state.params, host_frozen)]
        log.info("%s: %s trainable and %s frozen values", stage.name, *sizes)
        shown = tqdm(
            total=config.num_steps, initial=first, desc=stage.name, unit="step", disable=None if tells else True
        )
        with MetricsLog(workdir, first, evaluated=at.evaluated, writes=tells) as metrics_log, shown as bar:
            frames = stage.item_frames or data.mean_frames
            speed = Throughput(round(config.data.batch_size * frames), extras.peak_flops)
            run = _Run(
                config=config,
                workdir=workdir,
                mesh=mesh,
                step_fn=make_train_step(
                    stage,
                    graphdef,
                    objective,
                    config.optimizer,
                    accumulate_steps=config.train.accumulate_steps,
                    mesh=mesh,
                ),
                frozen=place(mesh, hold_frozen(host_frozen, config.train.compute_dtype)),
                host_frozen=host_frozen,
                saved_frozen=at.frozen,
                batches=batches,
                evaluation=Evaluation(config, mesh, graphdef, objective, eval_batches, extras.probe),
                checkpoints=checkpoints,
                metrics_log=metrics_log,
                reports=StepReporter(config, metrics_log, speed, bar, data.names),
                speed=speed,
                extras=extras,
            )
            if not at.evaluated:
                run.evaluate(at.state, first)
            run.steps(at.state, first)
        return metrics_log.last


@dataclass(frozen=True)
class _Run:
    """What the steps of one run need. Frozen parameters come three times: as the step uses them, all of them as host
    arrays, and those that checkpoints hold."""

    config: RunConfig
    workdir: Path
    mesh: Mesh
    step_fn: Callable
    frozen: Params
    host_frozen: Params
    saved_frozen: Params
    batches: Batches
    evaluation: Evaluation
    checkpoints: Checkpoints
    metrics_log: MetricsLog
    reports: StepReporter
    speed: Throughput
    extras: TrainOptions

    def steps(self, state: TrainState, first: int) -> None:
        """All steps after `first`."""
        config, speed, reports = self.config, self.speed, self.reports
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(self.mesh))()
        vote = Vote(self.mesh)
        trace = StepTrace(self.workdir / "profile", self.extras.profile_steps)
        with CompileWatch() as compiles, trace:
            for step in range(first + 1, config.num_steps + 1):
                trace.before(step)
                with speed.waiting():
                    batch = next(self.batches)
                arrays = device_batch(self.mesh, batch)
                if step == first + 1:
                    speed.flop_per_step = flops.count(self.step_fn, state, self.frozen, arrays, key).model
                    speed.restart(first)
                with (
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                    jax.transfer_guard("disallow"),
                    compiles.counting(step, settled=step > first + 2),
                ):
                    state, metrics = self.step_fn(state, self.frozen, arrays, key)
                if step == first + 1:
                    speed.compiled(step, metrics)
                trace.after(step, metrics)
                reports.flush()  # of the step before, while this one runs
                reports.add(step, metrics, batch["record"])
                last = step == config.num_steps
                stopping = vote.ask(self.extras.stop.requested) and not last
                self._look_and_save(step, state, stopping, last)
                if stopping:
                    raise Preempted(step, self.extras.stop.reason or "a signal to another process")

    def _look_and_save(self, step: int, state: TrainState, stopping: bool, last: bool) -> None:
        """Evaluates and saves where it is due. Where the run is to stop it saves at once: the evaluation is left to
        the run that resumes."""
        looks = self.evaluation.is_due(step)
        saves = last or stopping or step % self.config.checkpoint_every == 0
        if not (looks or saves):
            return
        self.reports.flush()
        if looks and not stopping:
            self.evaluate(state, step)
        if saves:
            position = json.loads(self.batches.get_state())
            self.checkpoints.save(step, state, self.saved_frozen, position, evaluated=not (looks and stopping))
        self.speed.restart(step)

    def evaluate(self, state: TrainState, step: int) -> None:
        """What is due after this step."""
        self.evaluation.write(step, state.ema, self.frozen, self.host_frozen, self.metrics_log)


def check_position(batches: Batches, found: Restored) -> None:
    """Sets the position that was saved. Raises UserError where it is of other data, or of another order of them."""
    try:
        batches.set_state(json.dumps(found.data).encode())
    except UserError as error:
        raise UserError(f"cannot resume: {error}; --allow_changes does the latter") from error


def state_shapes(stage: Stage, shapes: Params, config: RunConfig, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the training state, nothing allocated."""
    trainable, _ = stage.split(shapes)
    state = jax.eval_shape(lambda params: init_state(params, config.optimizer), trainable)
    where = shardings(mesh, state)
    return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), state, where)


def first_state(stage: Stage, params: Params, config: RunConfig, mesh: Mesh) -> Restored:
    """What a run that resumes nothing begins with."""
    trainable, frozen = stage.split(params)
    on_host = {path: value for path, value in trainable.items() if not isinstance(value, jax.Array)}
    state = init_state(trainable | place(mesh, on_host), config.optimizer, mesh=mesh)
    return Restored(state, {path: np.asarray(value) for path, value in frozen.items()}, {}, evaluated=True)


def count(params: Params) -> int:
    """How many values the parameters hold."""
    return sum(value.size for value in params.values())


def device_batch(mesh: Mesh, batch: HostBatch) -> dict[str, jax.Array]:
    """The global batch of which this process holds its part; record ids stay on the host."""
    return global_batch(mesh, {name: array for name, array in batch.items() if name != "record"})


def mean_metrics(metrics: Iterator[Metrics]) -> dict[str, float]:
    """The mean of every metric over the equally large batches that have it."""
    rows = [jax.device_get(row) for row in metrics]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
