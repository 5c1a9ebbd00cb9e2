"""What a run tells of its steps, one step late, and the end of a run whose numbers are no numbers any more."""

import logging
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.systems.base import Metrics
from unils_jax.training.config import RunConfig
from unils_jax.training.metrics import MetricsLog
from unils_jax.training.profiling import Throughput

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
