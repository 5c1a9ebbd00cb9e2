"""Reads damaged samples, one after the other, and answers what became of each.

In: a line `READER NUMBER` each. Out: a line of JSON each, with what happened and the memory that the input took. A
crash or a hang ends this process, and the parent knows the input. Readers run here as in any process of a user, except
that more than `LIMIT` of memory is refused, and that nothing of a file may run.
"""

import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import FrameType

from hostile.mutate import Sample, mutated
from hostile.reader import Reader
from hostile.readers import MODULES, readers_of

LIMIT = 2 << 30
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen")
# How libraries say that an allocation was refused: here a reader asked for more than the limit.
REFUSED = ("MemoryError", "Unable to allocate", "bad_alloc", "annot allocate", "Out of memory")


class Harness:
    """Good samples by reader, made once, and the folder in which each damaged one is laid out."""

    def __init__(self, folder: Path, readers: dict[str, Reader]):
        self.folder, self.readers, self.samples = folder, readers, {}
        self.ran: list[str] = []
        self.is_reading = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple) -> None:
        if self.is_reading and event in RUNS:
            self.ran.append(f"{event} {args!r:.200}")

    def sample(self, name: str) -> Sample:
        if name not in self.samples:
            made = self.folder / "good"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            self.readers[name].make(made)
            files = [path for path in sorted(made.rglob("*")) if path.is_file()]
            self.samples[name] = {path.relative_to(made).as_posix(): path.read_bytes() for path in files}
            # The first call of a reader imports and compiles, which is no input's fault.
            good = self._answer(name, self.samples[name], watched=False)
            assert good["outcome"] == "read", (name, good)
        return self.samples[name]

    def calls(self, name: str) -> set[str]:
        """Returns the functions of the packages, `module:function`, that reading the good sample calls."""
        called = set()

        def note(frame: FrameType, event: str, _: object) -> None:
            module = frame.f_globals.get("__name__", "")
            if event == "call" and module.startswith(("unils_jax.", "data_pipelines.")):
                called.add(f"{module}:{frame.f_code.co_name}")

        sample, reader = self.sample(name), self.readers[name]
        for part in [{path: sample[path]} for path in sample] if reader.apart else [sample]:
            sys.setprofile(note)
            try:
                self._answer(name, part, watched=False)
            finally:
                sys.setprofile(None)
        return called

    def answer(self, name: str, seed: int) -> dict:
        sample, reader = self.sample(name), self.readers[name]
        if reader.apart:
            paths = sorted(sample)
            sample = {paths[seed % len(paths)]: sample[paths[seed % len(paths)]]}
        damaged = mutated(sample, seed, reader.only) if reader.damage is None else reader.damage(sample, seed)
        return self._answer(name, damaged if reader.mend is None else reader.mend(damaged))

    def _answer(self, name: str, sample: Sample, *, watched: bool = True) -> dict:
        place = self.folder / "in"
        shutil.rmtree(place, ignore_errors=True)
        for path, content in sample.items():
            target = place / path
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        place.mkdir(exist_ok=True)
        self.ran.clear()
        before = _reset_peak()
        self.is_reading = watched
        try:
            outcome, text = self._read(name, place)
        finally:
            self.is_reading = False
        if self.ran:
            outcome, text = "ran", self.ran[0]
        return {"outcome": outcome, "text": text, "bytes": _peak() - before}

    def _read(self, name: str, place: Path) -> tuple[str, str]:
        reader = self.readers[name]
        try:
            reader.read(place)
        except reader.refusals as error:
            text = str(error)
            if any(word in text for word in REFUSED):
                return "memory", text
            return ("refused", text) if text and "\n" not in text else ("lines", text)
        except BaseException:
            return "traceback", traceback.format_exc()[-3000:]
        return "read", ""


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def _reset_peak() -> int:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:")


def main() -> None:
    # Answers go where nothing else that prints can reach.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), readers_of(*(sys.argv[1:] or MODULES)))
        for line in sys.stdin:
            name, number = line.rstrip("\n").rsplit(" ", 1)
            if number == "calls":
                print(json.dumps({"calls": sorted(harness.calls(name))}), file=answers, flush=True)
                continue
            harness.sample(name)
            limit = _status("VmData:") + LIMIT
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
            print(json.dumps(harness.answer(name, int(number))), file=answers, flush=True)
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
