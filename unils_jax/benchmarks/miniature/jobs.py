"""One job of the miniature in a process that has its share of the cores.

This module imports neither NumPy nor JAX: the cores are taken before either starts its threads.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from unils_jax.benchmarks.miniature.plan import Job
from unils_jax.runtime import prepare


def perform(job: Job, at: Callable[[str], None], done: Callable[[str], None]) -> None:
    """Runs one job, in a process that has its share of the cores."""
    label = " ".join((job.kind, job.name, *([f"seed {job.seed}"] if job.seed >= 0 else [])))
    at(label)
    take_cores(Path(job.out), job.jobs)
    prepare()
    logging.getLogger("unils_jax").setLevel(logging.WARNING)
    started = time.perf_counter()
    job.done.parent.mkdir(parents=True, exist_ok=True)
    # Only now, for NumPy starts its threads on all cores that it finds when it is imported.
    from unils_jax.benchmarks.miniature import motions, work  # noqa: PLC0415

    {"train": work.train, "move": motions.move, "score": work.score}[job.kind](job)
    done(f"{label}: {time.perf_counter() - started:.0f} s")


_held: list[TextIO] = []  # the locked file that reserves this process's cores, open as long as it lives


def take_cores(out: Path, jobs: int) -> None:
    """Binds this process to its share of the cores; else jobs wait for each other's threads."""
    if _held or jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for share in range(jobs):
        file = (out / f".cores-{share}").open("w")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.append(file)
            os.sched_setaffinity(0, cores[share % len(cores) :: jobs])
            return
        file.close()
