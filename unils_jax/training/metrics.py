"""Metrics of a run on disk: metrics.jsonl and TensorBoard events, cut to the step that a run resumes from."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.systems.base import Metrics
from unils_jax.training.config import RunConfig
from unils_jax.training.profiling import Throughput

EVALUATED = ("val", "free")


class MetricsLog:
    """metrics.jsonl (always) and TensorBoard events. Lines after `first_step` are of a run that was cut: they go, and
    where the evaluation of that very step is still to come (`evaluated` False), so do its lines.

    Rows of the split `speed` hold wall-clock figures; all others are the same whenever and however often a run was
    interrupted. `last` holds the newest values by `split/name`. Of several processes only the first writes
    (`writes`); the others keep `last` alone.
    """

    def __init__(self, workdir: Path, first_step: int, *, evaluated: bool = True, writes: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self.last: dict[str, float] = {}
        self._tensorboard = None
        if not writes:
            return
        if self.path.exists():
            rows = [(line, _place(line)) for line in self.path.read_text().splitlines()]
            again = set() if evaluated else {(first_step, split) for split in EVALUATED}
            lines = [line for line, place in rows if place[0] <= first_step and place not in again]
            with atomic_output(self.path) as partial:
                partial.write_text("".join(line + "\n" for line in lines))
        # Imports PyTorch where that is installed: seconds that only a training run should pay.
        from tensorboardX import SummaryWriter  # noqa: PLC0415

        self._tensorboard = SummaryWriter(str(workdir), purge_step=first_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line `{"step", "split", ...}`; floats are written so that they read back exactly, as null where they are
        not finite, which JSON does not know."""
        self.last |= {f"{split}/{name}": value for name, value in values.items()}
        if self._tensorboard is None:
            return
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **known}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)


def _place(line: str) -> tuple[float, str]:
    """Step and split of a line."""
    try:
        row = json.loads(line)
        return float(row["step"]), str(row["split"])
    except (ValueError, KeyError, TypeError):
        return math.inf, ""  # the torn last line of a killed run


log = logging.getLogger(__name__)


class StepReporter:
    """Takes the metrics of every step and looks at them when asked to, which waits for the device.

    Every `config.log_every` steps and after the last one they go to the log, the wall-clock figures apart. A step whose
    loss or gradient was not finite, which has changed nothing, is told with the names of its records (this process's
    share of the batch); `config.max_bad_steps` of them in a row raise UserError.
    """

    def __init__(self, config: RunConfig, metrics_log: MetricsLog, speed: Throughput, bar: tqdm, names: Sequence[str]):
        self.config, self.metrics_log, self.speed, self.bar, self.names = config, metrics_log, speed, bar, names
        self._late: tuple[int, Metrics, np.ndarray] | None = None
        self._bad_steps = 0

    def add(self, step: int, metrics: Metrics, records: np.ndarray) -> None:
        """Keeps a step's metrics, which may still be computed, and the ids of its records until `flush`."""
        self._late = (step, metrics, records)

    def flush(self) -> None:
        """Looks at what was added last."""
        if self._late is None:
            return
        (step, metrics, records), self._late = self._late, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check(step, values, records)
        if step % self.config.log_every == 0 or step == self.config.num_steps:
            self._write(step, values)

    def _check(self, step: int, values: dict[str, float], records: np.ndarray) -> None:
        if values["finite"]:
            self._bad_steps = 0
            return
        self._bad_steps += 1
        named = ", ".join(sorted({self.names[i] for i in records}))
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        log.warning("WARNING: step %d is not finite (%s) and left out; its records: %s", step, what, named)
        if self._bad_steps >= self.config.max_bad_steps:
            raise UserError(
                f"loss or gradient were not finite in {self._bad_steps} steps in a row, up to step {step} ({what}); "
                f"the last batch's records: {named}. Nothing was learnt from these steps: resume with a lower "
                "optimizer.rate (--allow_changes), or look at those records"
            )

    def _write(self, step: int, values: dict[str, float]) -> None:
        figures = self.speed.read(step)
        self.metrics_log.write(step, "train", values)
        self.metrics_log.write(step, "speed", figures)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if self.bar.disable and jax.process_index() == 0:
            rate = f", {figures['steps_per_s']:.3g} steps/s" if "steps_per_s" in figures else ""
            waits = f", {figures['data_wait_share']:.0%} waiting for data" if rate else ""
            used = f", {figures['flops_utilisation']:.1%} of the matrix peak" if "flops_utilisation" in figures else ""
            log.info("%s step %d loss %.4f%s%s%s", self.config.stage, step, values["loss"], rate, waits, used)
