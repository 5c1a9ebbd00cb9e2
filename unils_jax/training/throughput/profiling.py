"""Where a run's time goes: rates, waiting for data, compilation, memory, share of the peak."""

import logging
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax import monitoring
from jaxtyping import PyTree

from unils_jax.errors import UserError
from unils_jax.training.throughput.chips import chip_of

log = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's own name of the event


def known_peak(device_kind: str, compute_dtype: str) -> float | None:
    """Returns the data sheet's matrix peak in FLOP/s of one device.

    It is None where none is known, and for float32.
    """
    chip = chip_of(device_kind) if compute_dtype == "bfloat16" else None
    return None if chip is None else chip.flops


class Throughput:
    """Wall-clock figures of the steps since the last `restart`, of all devices together.

    Model-FLOPs utilisation is FLOP of one step (counted from its jaxpr, without what
    rematerialisation repeats) times steps a second, over the peak of all devices. `data_wait_share`
    is the part of the time in which the loop waited for a batch.
    """

    def __init__(self, frames_per_step: int, peak_flops: float | None = None):
        self.frames_per_step, self.peak_flops = frames_per_step, peak_flops
        self.flop_per_step: float | None = None
        self.compile_s: float | None = None
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts counting anew: compiling, evaluating and saving do not count.

        `step` steps are done by then.
        """
        self._started_s, self._first_step, self._waited_s = time.perf_counter(), step, 0.0

    def compiled(self, step: int, results: PyTree) -> None:
        """Ends the first step, of which `results` are the outputs.

        The time since the last restart was for compiling; counting starts once the results are
        there.
        """
        self.compile_s = time.perf_counter() - self._started_s
        # Dispatch returns when compiling is done; the step itself is still running then.
        jax.block_until_ready(results)
        self.restart(step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the time inside the context as waiting for a batch."""
        started_s = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started_s

    def read(self, step: int) -> dict[str, float]:
        """Returns the figures after `step` steps.

        There are no rates where no step was taken since the restart.
        """
        elapsed_s, steps = time.perf_counter() - self._started_s, step - self._first_step
        figures: dict[str, float] = {}
        if steps > 0:
            rate = steps / elapsed_s
            figures |= {"steps_per_s": rate, "frames_per_s": rate * self.frames_per_step}
            figures["data_wait_share"] = self._waited_s / elapsed_s
            if self.flop_per_step and self.peak_flops:
                figures["flops_utilisation"] = self.flop_per_step * rate / self.peak_flops
        figures |= memory_used()
        if self.compile_s is not None:
            figures["compile_s"], self.compile_s = self.compile_s, None  # once a run
        return figures


def memory_used() -> dict[str, float]:
    """Returns the largest use so far, in GiB.

    It is that of this process's first device, or of the process where devices do not report it.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_memory_gib": stats["peak_bytes_in_use"] / 2**30}
    # macOS counts in bytes, Linux in kilobytes.
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {"host_memory_gib": kilobytes / 2**20}


class CompileWatch:
    """A context manager that counts the programs compiled inside `counting()`.

    Programs from a compile cache count, too.
    """

    def __init__(self) -> None:
        self.programs = 0
        self._counts = False

    def __enter__(self) -> "CompileWatch":
        monitoring.register_event_duration_secs_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_event_duration_listener(self._count)

    def _count(self, event: str, duration_s: float, **_: str | int) -> None:
        self.programs += self._counts and event == _COMPILED

    @contextmanager
    def counting(self, step: int, settled: bool) -> Iterator[None]:
        """Watches one step; warns where it is compiled although the run has settled.

        A run has `settled` once its first two steps are done.
        """
        # Evaluation and saving compile programs too: only those inside the context count.
        before, self._counts, started_s = self.programs, True, time.perf_counter()
        try:
            yield
        finally:
            self._counts = False
        if settled and self.programs > before:
            log.warning(
                "WARNING: step %d was compiled again, %.1f s: shapes or types of its batch are others than before",
                step,
                time.perf_counter() - started_s,
            )


def parse_steps(text: str) -> tuple[int, int]:
    """Parses `a:b`, the first and the last step to trace.

    Raises UserError for anything else.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps must be FIRST:LAST, steps from 1 on, got {text!r}; 10:12 traces three steps")
    return first, last


class StepTrace:
    """A context manager that traces steps `first` to `last` into `folder`.

    Without steps it does nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder, self.steps = Path(folder), steps
        self._running = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def before(self, step: int) -> None:
        """Starts the trace at its first step; called before each step is dispatched."""
        if self.steps is not None and self.steps[0] <= step <= self.steps[1] and not self._running:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, results: PyTree) -> None:
        """Ends the trace at its last step; called after each step with what it returned."""
        if self._running and step >= self.steps[1]:
            # The device works ahead of Python: the trace must not end before the step does.
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running, self.steps = False, None
        log.info(
            "traced into %s: open it with `xprof %s`, or its .trace.json.gz at ui.perfetto.dev", *[self.folder] * 2
        )
