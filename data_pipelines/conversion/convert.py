"""Any source -> store: sharded, parallel, resumable after a kill, with a report of every hour.

A shard is a list of entries that depends on the source and the settings alone. It is there whole or
not at all, so that a conversion that is run again does what is missing and ends in the same bytes.
Parts of one conversion may run on several machines that share the output folder; the one that
completes the last shard finishes the store.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from data_pipelines.conversion.report import ShardReport, checked_report, conversion_report, summary
from data_pipelines.conversion.workers import Engine, run_here
from data_pipelines.record import SPLITS, Record, validate
from data_pipelines.sources.base import DAMAGED, Entry, Reading, SkippedEntry, Source
from data_pipelines.store.reader import MANIFEST, read_manifest
from data_pipelines.store.writer import (
    DEFAULT_DTYPES,
    Dtypes,
    finish_store,
    shard_is_complete,
    shard_summary,
    write_shard,
)
from unils_jax.errors import UserError, counted, one_line
from unils_jax.files import write_text
from unils_jax.motion import FPS
from unils_jax.runtime import about_this_process, describe_process, local_path

CONVERT_VERSION = 1
Checked = TypeVar("Checked")  # what a file holds, understood
REPORT, SUMMARY, LOCK, WORK = "conversion.json", "CONVERSION.md", "conversion.lock", "conversion"
# The length of an entry whose source does not say it, half a minute, to share the work out.
ASSUMED_FRAMES = 750

# Called as work goes on with the hours of entries done or checked and the share of all work (0..1).
Progress = Callable[[float, float], None]


class ShardId(NamedTuple):
    """One shard of one split."""

    split: str
    number: int

    def __str__(self) -> str:
        return f"{self.split}-{self.number:05d}"


class _Busy(UserError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Plan:
    """The entries of each shard, and the settings that decide it."""

    settings: dict[str, Any]  # JSON-able; equal for equal sources and flags
    shards: dict[ShardId, tuple[Entry, ...]]
    notes: tuple[str, ...]  # what is odd about the source, a sentence each

    def counts(self) -> dict[str, int]:
        """Shards of each split."""
        return {split: sum(shard.split == split for shard in self.shards) for split in SPLITS}


@dataclass(frozen=True)
class Outcome:
    """`finished` is true once the store is whole, and `report` is then that of the conversion.

    `missing` counts the shards that are not there yet.
    """

    finished: bool  # the store is whole
    report: dict[str, Any]  # of the whole conversion, {} until it is finished
    missing: int = 0  # shards that other parts have not written yet


def make_plan(source: Source, *, num_shards: int | None = None, dtypes: Dtypes = DEFAULT_DTYPES) -> Plan:
    """Shares the entries out over about `num_shards` shards of equal length.

    Each split that has entries gets at least one. `num_shards=None` gives shards of a quarter of an
    hour for small sets and two hours for large ones. Raises UserError for a source that lists
    nothing or cannot be read, and for a number that is not positive.
    """
    if num_shards is not None and not 1 <= num_shards <= 99_999:
        raise UserError(f"shards must be from 1 to 99999, got {num_shards}")
    entries, notes = _marked_twice(source.entries())
    # Sources that choose among files say which ones they passed over.
    notes += source.notes() if hasattr(source, "notes") else ()
    total = sum(map(_weight, entries))
    hours = total / FPS / 3600
    wanted = num_shards or max(1, min(math.ceil(4 * hours), max(64, math.ceil(hours / 2))))
    shards: dict[ShardId, tuple[Entry, ...]] = {}
    for split in SPLITS:
        inside = [entry for entry in entries if entry.split == split]
        number = max(1, min(len(inside), round(wanted * sum(map(_weight, inside)) / total))) if inside else 0
        shards |= {ShardId(split, i): part for i, part in enumerate(_parted(inside, number))}
    digest = hashlib.blake2b(digest_size=16)
    for shard, part in shards.items():
        digest.update(repr((str(shard), part)).encode("utf-8", "surrogatepass"))
    settings = {
        "version": CONVERT_VERSION,
        **source.describe(),
        "dtypes": dataclasses.asdict(dtypes),
        "plan": digest.hexdigest(),
    }
    return Plan(settings, shards, notes)


def _weight(entry: Entry) -> int:
    return max(1, ASSUMED_FRAMES if entry.frames is None else entry.frames)


def _parted(entries: list[Entry], number: int) -> list[tuple[Entry, ...]]:
    """Cuts entries into runs of about equal length."""
    parts: list[list[Entry]] = [[] for _ in range(number)]
    total, done = sum(map(_weight, entries)), 0
    for entry in entries:
        parts[(2 * done + _weight(entry)) * number // (2 * total)].append(entry)
        done += _weight(entry)
    return [tuple(part) for part in parts]


def _marked_twice(entries: list[Entry]) -> tuple[list[Entry], tuple[str, ...]]:
    """Marks entries whose name is taken in their split as a problem of that entry.

    Names in several splits are a note.
    """
    if not entries:
        raise UserError("the source lists no sequence; check --source and --index")
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    marked = []
    for entry in entries:
        taken = entry.name in seen[entry.split]
        seen[entry.split].add(entry.name)
        marked.append(dataclasses.replace(entry, problem="it is listed twice") if taken else entry)
    leaked = sorted(
        name for name, count in Counter(name for names in seen.values() for name in names).items() if count > 1
    )
    if not leaked:
        return marked, ()
    return marked, (f"{len(leaked)} names are in more than one split, the first {leaked[0]!r}",)


def convert(
    source: Source,
    out: Path,
    plan: Plan,
    *,
    engine: Engine = run_here,
    part: tuple[int, int] = (1, 1),
    dtypes: Dtypes = DEFAULT_DTYPES,
    progress: Progress = lambda hours, share: None,
) -> Outcome:
    """Writes the shards of a part that are missing; finishes the store where all are there then.

    Args:
        source: What is converted.
        out: The store's folder.
        plan: As `make_plan` made it from the source.
        engine: Where shards are written: `workers.run_here`, or in what `workers.processes` and
            `workers.ray_actors` return. All of its machines see `out` and the source.
        part: Part i of n, from 1.
        dtypes: What motion and audio are stored as.
        progress: Called with the hours and the share of all work that are done.

    Raises:
        UserError: Where `out` holds anything but this very conversion, where another process is
            writing these shards, for a part that is none, and where files cannot be written.
    """
    number, of = part
    if not 1 <= number <= of:
        raise UserError(f"shard must be i/n with i from 1 to n, got {number}/{of}")
    out = local_path(out, "--out")
    with _writing(out):
        _claim(out, plan)
        shards = list(plan.shards)
        mine = [i for i in range(len(shards)) if i % of == number - 1]
        with _locked(out, mine), _no_leftovers(out, [shards[i] for i in mine]):
            if not (out / MANIFEST).exists():
                todo = [shards[i] for i in mine if not shard_is_complete(out, *shards[i])]
                _convert_shards(source, out, plan, todo, engine, dtypes, progress)
        return _finish(out, plan, dtypes)


def _convert_shards(
    source: Source, out: Path, plan: Plan, todo: list[ShardId], engine: Engine, dtypes: Dtypes, progress: Progress
) -> None:
    total = sum(_weight(entry) for shard in todo for entry in plan.shards[shard])
    frames = weight = 0

    def count(message: tuple[int, int]) -> None:
        nonlocal frames, weight
        frames, weight = frames + message[0], weight + message[1]
        progress(frames / FPS / 3600, weight / total)

    task = ShardTask(source, out, dtypes)
    work = [(shard, plan.shards[shard]) for shard in todo]
    engine(task, work, done=count)
    if missing := [str(shard) for shard in todo if not shard_is_complete(out, *shard)]:
        raise UserError(
            f"{counted(len(missing), 'shard')}, the first {missing[0]}, went where this machine does not see it; {out} "
            "must be on storage that all nodes share"
        )


@dataclass(frozen=True)
class ShardTask:
    """The writing of one shard, as a worker does it."""

    source: Source
    out: Path
    dtypes: Dtypes

    def __call__(
        self,
        work: tuple[ShardId, tuple[Entry, ...]],
        at: Callable[[str], None],
        done: Callable[[tuple[int, int]], None],
    ) -> None:
        """Writes a shard.

        `at` is called with the entry that is read next, `done` with the frames and the weight of
        every entry that was dealt with.
        """
        shard, entries = work
        with self.source.open() as read:
            write_shard(self.out, *shard, self._records(read, shard, entries, at, done), dtypes=self.dtypes)

    def _records(
        self,
        read: Callable[[Entry], Reading],
        shard: ShardId,
        entries: tuple[Entry, ...],
        at: Callable[[str], None],
        done: Callable[[tuple[int, int]], None],
    ) -> Iterator[Record]:
        part = ShardReport()
        for entry in entries:
            at(f"record {entry.name!r} of {entry.split}")
            try:
                reading = _checked(read, entry)
            except SkippedEntry as skipped:
                part.drop(entry, skipped)
                done((skipped.frames, _weight(entry)))
                continue
            part.keep(reading, entry)
            yield from reading.records
            done((reading.frames_in, _weight(entry)))
        # The report is there before the shard is: a shard that counts as complete has one.
        write_text(self.out / WORK / f"{shard}.json", json.dumps(part.to_json()))


def _checked(read: Callable[[Entry], Reading], entry: Entry) -> Reading:
    if entry.problem:
        raise SkippedEntry(DAMAGED, entry.problem, entry.frames or 0)
    reading = read(entry)
    try:
        for record in reading.records:
            validate(record)
    except UserError as error:
        raise SkippedEntry(DAMAGED, str(error), reading.frames_in) from None
    return reading


def _claim(out: Path, plan: Plan) -> None:
    """Makes `out` this conversion's folder, or checks that it is."""
    other = f"{out} holds another conversion (of other data, or with other flags); choose another folder or remove it"
    if (out / MANIFEST).exists():
        if read_manifest(out)["settings"] != plan.settings:
            raise UserError(other)
        return
    claim = out / WORK / "settings.json"
    if claim.exists():
        if _read_json(claim) != plan.settings:
            raise UserError(other)
        return
    if out.exists() and any(path.name not in (WORK, LOCK) for path in out.iterdir()):
        raise UserError(f"{out} already exists and is not empty; choose another folder or remove it")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    write_text(claim, json.dumps(plan.settings, indent=1))


@contextlib.contextmanager
def _locked(out: Path, shards: list[int]) -> Iterator[None]:
    """Holds a byte of the lock file for each shard; the kernel frees them when the process ends."""
    with open(out / LOCK, "a+b") as file:
        for shard in shards:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise _Busy(
                    f"another process is converting into {out} already ({_holder(file, shard)}); wait for it, stop it, "
                    "or choose another folder"
                ) from None
        file.write(json.dumps({**about_this_process(), "shards": shards}).encode() + b"\n")
        file.flush()
        yield


def _holder(file: BinaryIO, shard: int) -> str:
    """Describes the process that took a shard last, by its line in the lock file."""
    file.seek(0)
    held = "by what has not said"
    for line in file:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            held = describe_process(told) if shard in told["shards"] else held
    return held


def _finish(out: Path, plan: Plan, dtypes: Dtypes) -> Outcome:
    """Completes the store where every shard is there, whichever process wrote it.

    Working files are removed.
    """
    if not (out / MANIFEST).exists():
        missing = sum(not shard_is_complete(out, *shard) for shard in plan.shards)
        if missing:
            return Outcome(False, {}, missing)
    try:
        with _locked(out, list(range(len(plan.shards)))):
            if not (out / MANIFEST).exists():
                _unlink(out.rglob(".*.partial*"))
                report = _report(out, plan)
                write_text(out / REPORT, json.dumps(report, indent=1) + "\n")
                write_text(out / SUMMARY, summary(report))
                if not report["records"]:
                    raise UserError(f"no sequence of the source could be used; {out / SUMMARY} says why of each")
                layout = plan.settings["layout"]
                finish_store(out, plan.counts(), source=layout, settings=plan.settings, dtypes=dtypes)
            shutil.rmtree(out / WORK, ignore_errors=True)
            # Who wrote it is of no use any more, and equal conversions are equal stores.
            os.truncate(out / LOCK, 0)
    except _Busy:
        # Another part is at its last step: the one that lets go of the lock last finishes.
        return Outcome(False, {}, 0)
    return Outcome(True, _read_json(out / REPORT, checked_report))


def _read_json(path: Path, understood: Callable[[object], Checked] = lambda values: values) -> Checked:
    """Reads a file of this conversion. Raises UserError where it is damaged."""
    try:
        return understood(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error, 120)}); convert again into another folder") from None


@contextlib.contextmanager
def _no_leftovers(out: Path, shards: list[ShardId]) -> Iterator[None]:
    """Removes what killed processes left of these shards, before and after.

    The caller holds the shards' locks. Workers that end because another one failed leave files.
    """
    try:
        _clear_leftovers(out, shards)
        yield
    finally:
        _clear_leftovers(out, shards)


def _clear_leftovers(out: Path, shards: Iterable[ShardId]) -> None:
    for split, number in shards:
        for pattern in (f".{split}.*.partial.array_record-{number:05d}", f".{split}-{number:05d}.*.partial*"):
            _unlink(out.rglob(pattern))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _report(out: Path, plan: Plan) -> dict[str, Any]:
    """Returns the report of the whole conversion, checked against what the shards hold."""
    parts = []
    for shard in plan.shards:
        file, held = out / WORK / f"{shard}.json", shard_summary(out, *shard)
        part = _read_json(file, ShardReport.from_json) if file.exists() else None
        if part is None or held["frames"] != part.frames_out or held["records"] != part.records:
            raise UserError(
                f"shard {shard} of {out} does not hold what its report says; remove {out} and convert again"
            )
        parts.append((shard.split, part.to_json()))
    return {"settings": plan.settings, **conversion_report(parts), "notes": list(plan.notes)}


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another output folder") from None
