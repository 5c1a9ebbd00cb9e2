"""Metrics of a run: metrics.jsonl and TensorBoard events, and its page at Weights & Biases.

The files are cut to the step that a run resumes from.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from unils_jax.errors import UserError, shown
from unils_jax.files import write_text
from unils_jax.systems.base import Metrics
from unils_jax.training.config import RunConfig
from unils_jax.training.throughput.profiling import Throughput
from unils_jax.training.wandb_run import WandbRun

log = logging.getLogger(__name__)

# Rows wait for the thread that writes events. Where the disk is full that thread has ended, and a
# bounded queue would then block the run that is about to say so.
_QUEUE = 0  # unbounded

EVALUATED = ("val", "free")  # splits of evaluations


@dataclass(frozen=True)
class KeptRows:
    """The rows of an earlier run that a resumed run's log keeps."""

    step: int = 0  # the last step; rows after it are of a run that was cut
    evaluated: bool = True  # False: the evaluation of that very step is still to come, its rows go

    def holds(self, step: float, split: str) -> bool:
        """Returns True for a row that is kept."""
        to_come = not self.evaluated and step == self.step and split in EVALUATED
        return step <= self.step and not to_come


class MetricsLog:
    """metrics.jsonl and TensorBoard events in a workdir; None keeps the newest values alone.

    Of several processes only the first has a workdir. Rows of the split `speed` hold wall-clock
    figures; all others are the same whenever and however often a run was interrupted. `last` holds
    the newest values by `split/name`. Rows go to `page`, too, where there is one.
    """

    def __init__(self, workdir: Path | None, kept: KeptRows = KeptRows(), page: WandbRun | None = None):
        self.last: dict[str, float] = {}
        self._page = page
        self.path = None if workdir is None else Path(workdir) / "metrics.jsonl"
        self._tensorboard = None
        if self.path is None:
            return
        if self.path.exists():
            try:
                text = self.path.read_text(errors="replace")
            except OSError as problem:
                remedy = "move it away or choose another workdir"
                raise UserError(f"{shown(self.path)} cannot be read ({problem.strerror}); {remedy}") from problem
            lines = [line for line in text.splitlines() if kept.holds(*_step_and_split(line))]
            write_text(self.path, "".join(line + "\n" for line in lines))
        # Imports PyTorch where that is installed: seconds that only a training run should pay.
        from tensorboardX import SummaryWriter  # noqa: PLC0415

        self._tensorboard = SummaryWriter(str(workdir), purge_step=kept.step + 1, max_queue=_QUEUE)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one line `{"step", "split", ...}`.

        Floats are written so that they read back exactly, and as null where they are not finite.
        """
        self.last |= {f"{split}/{name}": value for name, value in values.items()}
        if self._tensorboard is None:
            return
        # JSON does not know values that are not finite.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        if self._page is not None:
            self._page.write(step, split, values)


def _step_and_split(line: str) -> tuple[float, str]:
    try:
        row = json.loads(line)
        return float(row["step"]), str(row["split"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf, ""  # the torn last line of a killed run


class StepReporter:
    """Reports the metrics of every step, one step late: fetching them waits for the device.

    Every `config.log_every` steps and after the last one they go to the log, wall-clock figures
    apart. A step whose loss or gradient was not finite, which has changed nothing, is reported with
    the names of its records (this process's part of the batch); `config.max_bad_steps` of them in a
    row raise UserError.
    """

    def __init__(
        self,
        config: RunConfig,
        metrics_log: MetricsLog,
        throughput: Throughput,
        progress: tqdm,
        names: Sequence[str],
    ):
        self.config, self.metrics_log, self.throughput = config, metrics_log, throughput
        self.progress, self.names = progress, names
        self._pending: tuple[int, Metrics, np.ndarray] | None = None
        self._bad_steps = 0  # in a row

    def add(self, step: int, metrics: Metrics, records: np.ndarray) -> None:
        """Keeps a step's metrics, which may still be computed, and the ids of its records."""
        self._pending = (step, metrics, records)

    def flush(self) -> None:
        """Fetches and reports what was added last."""
        if self._pending is None:
            return
        (step, metrics, records), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check(step, values, records)
        if step % self.config.log_every == 0 or step == self.config.num_steps:
            self._write(step, values)

    def _check(self, step: int, values: dict[str, float], records: np.ndarray) -> None:
        if values["finite"]:
            self._bad_steps = 0
            return
        self._bad_steps += 1
        named = ", ".join(sorted({self.names[i] for i in records}))  # this process's part of them
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        log.warning("WARNING: step %d is not finite (%s) and left out; its records: %s", step, what, named)
        if self._bad_steps >= self.config.max_bad_steps:
            raise UserError(
                f"loss or gradient were not finite in {self._bad_steps} steps in a row, up to step {step} ({what}); "
                f"the last batch's records: {named}. Nothing was learnt from these steps: resume with a lower "
                "optimizer.learning_rate (--allow_changes), or look at those records"
            )

    def _write(self, step: int, values: dict[str, float]) -> None:
        figures = self.throughput.read(step)
        self.metrics_log.write(step, "train", values)
        self.metrics_log.write(step, "speed", figures)
        val_loss = self.metrics_log.last.get("val/loss")
        shown = {} if val_loss is None else {"val": f"{val_loss:.4f}"}
        self.progress.set_postfix(loss=f"{values['loss']:.4f}", **shown, refresh=False)
        # Without a terminal there is no bar: plain lines take its place.
        if self.progress.disable and jax.process_index() == 0:
            steps = self.config.num_steps
            log.info("%s", step_line(self.config.stage, step, steps, values["loss"], val_loss, figures))


def step_line(
    stage: str, step: int, num_steps: int, loss: float, val_loss: float | None, figures: dict[str, float]
) -> str:
    """Returns the line of a step: how far the run is, its losses, its rates and the time left.

    `figures` are those of `Throughput.read`. The time left is without evaluations and saves.
    """
    parts = [f"{stage} step {step:,} of {num_steps:,} ({step / num_steps:.0%}), loss {loss:.4f}"]
    if val_loss is not None:
        parts.append(f"val loss {val_loss:.4f}")
    rate = figures.get("steps_per_s")
    if rate:
        parts.append(f"{rate:.3g} steps/s ({figures['frames_per_s']:,.0f} frames/s)")
        parts.append(f"{figures['data_wait_share']:.0%} waiting for data")
    if "flops_utilisation" in figures:
        parts.append(f"{figures['flops_utilisation']:.1%} of the matrix peak")
    if rate and step < num_steps:
        parts.append(f"about {duration((num_steps - step) / rate)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time in the two largest of its units: "40 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
