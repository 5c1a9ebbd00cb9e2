"""The loop: batches in, checkpoints and metrics out, resumed where the workdir stands."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tensorboardX import SummaryWriter
from tqdm import tqdm

from unils_jax.files import atomic_output
from unils_jax.nn.params import Params
from unils_jax.stages import STAGES, Batch, Metrics, Objective
from unils_jax.train.checkpoint import Checkpoints
from unils_jax.train.config import RunConfig
from unils_jax.train.step import init_state, make_eval_step, make_train_step

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    workdir: Path,
    graphdef: nnx.GraphDef,
    params: Params,
    objective: Objective,
    batches: Any,
    eval_batches: Callable[[], Iterator[Batch]],
) -> dict[str, float]:
    """Trains to `config.num_steps` and returns the last metrics.

    `params` are all parameters, of which the stage chooses what trains; they are replaced by the workdir's newest
    checkpoint where there is one. `batches` is a Grain iterator (its position is saved and restored),
    `eval_batches()` starts the same validation batches anew each time.
    """
    stage = STAGES[config.stage]
    trainable, frozen = stage.split(params)
    state = init_state(trainable, config.optimizer)
    log.info("%s: %s trainable and %s frozen values", stage.name, *(f"{count(p):,}" for p in (trainable, frozen)))
    del params, trainable
    step_fn = make_train_step(stage, graphdef, objective, config.optimizer)
    eval_fn = make_eval_step(stage, graphdef, objective)
    key = jax.random.key(config.seed)
    with Checkpoints(workdir, config) as checkpoints:
        if checkpoints.latest_step() is not None:
            state, frozen = checkpoints.restore(state, frozen, batches)
            log.info("resumed %s at step %d", workdir, int(state.step))
        # Placed on the device by name, as restored arrays are: fresh and resumed run compile one and the same step.
        state, frozen = jax.device_put((state, frozen), jax.devices()[0])
        first = int(state.step)
        with (
            MetricsLog(workdir, first) as metrics_log,
            tqdm(total=config.num_steps, initial=first, desc=stage.name, unit="step", disable=None) as bar,
        ):
            started, started_step = time.perf_counter(), first
            for step in range(first + 1, config.num_steps + 1):
                state, metrics = step_fn(state, frozen, next(batches), key)
                bar.update()
                last = step == config.num_steps
                if step % config.log_every == 0 or last:
                    values = {name: float(value) for name, value in metrics.items()}  # waits for the device
                    now = time.perf_counter()
                    values["steps_per_s"] = (step - started_step) / (now - started)
                    started, started_step = now, step
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                    metrics_log.write(step, "train", values)
                    if bar.disable:
                        rate = values["steps_per_s"]
                        log.info("%s step %d loss %.4f, %.1f steps/s", stage.name, step, values["loss"], rate)
                if step % config.eval_every == 0 or last:
                    metrics_log.write(step, "val", mean_metrics(eval_fn(state.ema, frozen, b) for b in eval_batches()))
                    started, started_step = time.perf_counter(), step
                if step % config.checkpoint_every == 0 or last:
                    checkpoints.save(state, frozen, batches)
        return metrics_log.last


def count(params: Params) -> int:
    """How many values the parameters hold."""
    return sum(value.size for value in params.values())


def mean_metrics(metrics: Iterator[Metrics]) -> dict[str, float]:
    """The mean of every metric over equally large batches."""
    rows = [jax.device_get(row) for row in metrics]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


class MetricsLog:
    """metrics.jsonl (always) and TensorBoard events. Lines after `first_step` are of a run that was cut: they go."""

    def __init__(self, workdir: Path, first_step: int):
        self.path = Path(workdir) / "metrics.jsonl"
        self.last: dict[str, float] = {}
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= first_step]
            with atomic_output(self.path) as partial:
                partial.write_text("".join(line + "\n" for line in lines))
        self._tensorboard = SummaryWriter(str(workdir), purge_step=first_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self._tensorboard.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line `{"step", "split", ...}`; floats are written so that they read back exactly."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        self.last |= {f"{split}/{name}": value for name, value in values.items()}


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the torn last line of a killed run
