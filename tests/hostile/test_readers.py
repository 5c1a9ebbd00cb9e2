"""Files of strangers: every reader reads a damaged one or refuses it in a line; none crashes, hangs or eats memory.

`make slow` gives each reader INPUTS damaged samples. The number of an input is all that is needed to make it again:
`python -m hostile.child` takes lines of `READER NUMBER`.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.openers import ROOT, openers
from hostile.readers import MODULES, OPENED_BY, OTHERS, SOURCES, names_of

from data_pipelines.sources import FOLDERS
from data_pipelines.sources.unils_lmdb import ReleaseSource

INPUTS, FEW = 300, 20
LIMIT_S, START_S = 20.0, 100.0
PATIENCE = 6  # times as long an answer may take where other processes have the processors
LIMIT_BYTES = 2 << 30
WITHOUT_JAX = ("motions", "sounds", "stores", "layouts")


class Child:
    """A process that reads damaged files until one of them ends it."""

    def __init__(self, *modules: str):
        self.modules, self.process, self.started = modules, None, set()

    def __call__(self, name: str, number: int | str) -> dict:
        """Returns what became of an input, also where it ended the process."""
        if self.process is None:
            self.process, self.started = self._start(), set()
        limit = LIMIT_S if name in self.started else START_S  # the first makes the sample
        self.started.add(name)
        self.process.stdin.write(f"{name} {number}\n")
        self.process.stdin.flush()
        ready = self._answers_within(limit)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if ready:
            how = f"it ended with status {self.process.wait(LIMIT_S)}"
        else:
            how = f"no answer within {limit:g} s"
        self.close()
        return {"outcome": "crashed" if ready else "hung", "text": how, "bytes": 0}

    def _answers_within(self, limit: float) -> bool:
        """Waits for an answer; on a busy machine longer, as long as the child has computed for less than that."""
        before, deadline = self._computed_s(), time.monotonic() + PATIENCE * limit
        while not select.select([self.process.stdout], [], [], limit)[0]:
            if self._computed_s() - before > limit or time.monotonic() > deadline:
                return False
        return True

    def _computed_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _start(self) -> subprocess.Popen:
        paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/support"))
        environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hostile.child", *self.modules]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    started = Child(*MODULES)
    yield started
    started.close()


def failures(child: Child, name: str, numbers: range) -> list[str]:
    """Returns what went wrong with the inputs, and checks that some were refused."""
    answers = {number: child(name, number) for number in numbers}
    outcomes = Counter(answer["outcome"] for answer in answers.values())
    assert outcomes["refused"], f"no input of {name} was refused: {outcomes}"
    return [
        f"{name} {number}: {answer['outcome']} {answer['text']} ({answer['bytes']} bytes)"
        for number, answer in answers.items()
        if answer["outcome"] not in ("read", "refused") or answer["bytes"] > LIMIT_BYTES
    ]


def test_damaged_files_are_read_or_refused_in_a_line():
    few = Child(*WITHOUT_JAX)
    try:
        found = [failures(few, name, range(FEW)) for module in WITHOUT_JAX for name in names_of(module)]
    finally:
        few.close()
    assert sum(found, []) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for module in MODULES for name in names_of(module)])
def test_many_damaged_files_are_read_or_refused_in_a_line(child, name):
    called = set(child(name, "calls")["calls"])
    unread = [opener for opener, by in OPENED_BY.items() if by == name and opener not in called]
    assert not unread, f"{name} is said to call {unread}"
    assert failures(child, name, range(INPUTS)) == []


def test_every_function_that_opens_a_file_belongs_to_a_reader():
    """A new one is added to `OPENED_BY` with the reader that calls it, or to `OTHERS` with the reason."""
    found, listed = openers(), {*OPENED_BY, *OTHERS}
    assert found - listed == set() and listed - found == set()
    assert set(OPENED_BY.values()) <= {name for module in MODULES for name in names_of(module)}


def test_every_published_layout_of_data_is_a_reader():
    assert {source.__name__ for source in (*FOLDERS.values(), ReleaseSource)} <= set(SOURCES)
    assert set(SOURCES.values()) <= set(names_of("layouts"))


def test_what_goes_wrong_is_seen():
    broken = Child("broken")
    try:
        outcomes = [broken(name, 0)["outcome"] for name in names_of("broken")]
    finally:
        broken.close()
    assert outcomes == ["traceback", "lines", "crashed", "memory", "ran", "read"]
