"""What runs leave on disk, read back and compared; and runs in processes of their own, which can be killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from unils_jax.checkpoints.workdir import read_item

ARRAYS = ("params", "ema", "optimizer", "frozen")
LIMIT_S = 300


def item(workdir: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """The arrays of one item of a checkpoint by path."""
    return read_item((workdir / "checkpoints" / str(step) / name).absolute())


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys() and first
    different = [path for path in first if np.asarray(first[path]).tobytes() != np.asarray(second[path]).tobytes()]
    assert not different


def metrics(workdir: Path) -> list[dict]:
    """All whole rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def without_speed(rows: list[dict]) -> list[dict]:
    """Without the rows that hold wall-clock figures."""
    return [row for row in rows if row["split"] != "speed"]


def assert_same_run(first: Path, second: Path, step: int) -> None:
    """Everything that two finished runs hold at their last step, and everything but wall-clock time that they told."""
    for name in ARRAYS:
        assert_same(item(first, step, name), item(second, step, name))
    position = f"checkpoints/{step}/data/metadata"
    assert (first / position).read_bytes() == (second / position).read_bytes()
    assert without_speed(metrics(first)) == without_speed(metrics(second))


def environment(cache: Path) -> dict[str, str]:
    """For processes of one CPU device that share their compiled programs and spend little time on compiling."""
    flags = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return {**os.environ, **flags}


@contextmanager
def started(command: list, cache: Path, log: Path) -> Iterator[subprocess.Popen]:
    """A process group, ended when the context is left; output goes to `log`."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environment(cache),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()


def run_to_end(command: list, cache: Path, log: Path) -> int:
    """The exit status of a process that may take as long as LIMIT_S."""
    with started(command, cache, log) as process:
        return process.wait(LIMIT_S)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Waits until `condition()` or the end of the process; fails after LIMIT_S."""
    deadline = monotonic() + LIMIT_S
    while not condition() and process.poll() is None:
        assert monotonic() < deadline, log.read_text()
        sleep(0.002)


def last_step(workdir: Path) -> int:
    """The newest step that the run has told of."""
    return max((row["step"] for row in metrics(workdir) if row["split"] == "train"), default=0)
