"""A profile of some steps: a trace that xprof, TensorBoard and Perfetto open."""

import logging
import re
from pathlib import Path
from typing import Any

import jax

from unils_jax.errors import UserError

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[int, int]:
    """`a:b`, the first and the last step to trace. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps must be FIRST:LAST, steps from 1 on, got {text!r}; 10:12 traces three steps")
    return first, last


class StepTrace:
    """A context manager that traces steps `first` to `last` into `folder`; without steps it does nothing."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder, self.steps = Path(folder), steps
        self._running = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._stop()

    def before(self, step: int) -> None:
        """Called before each step is dispatched."""
        if self.steps is not None and self.steps[0] <= step <= self.steps[1] and not self._running:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Called after each step with what it returned."""
        if self._running and step >= self.steps[1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running, self.steps = False, None
        log.info(
            "traced into %s: open it with `xprof %s`, or its .trace.json.gz at ui.perfetto.dev", *[self.folder] * 2
        )
