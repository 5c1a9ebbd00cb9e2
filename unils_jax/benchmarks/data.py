"""Measures how fast training windows are read, against the release's way and a zero-copy reader.

All three cut the same windows, float32 and ready to batch, from the same records, in one process
and one thread:

- store: the chunks that the window needs, out of the ArrayRecord shards
- release: the LMDB value of each person, `np.load` of every array in it, whole, then the cut
- view: the same LMDB with the arrays read in place (the archive is uncompressed), the head's
  means known beforehand

Warm: everything is in the page cache. Cold: the page cache drops the files (posix_fadvise
DONTNEED, nothing mapped), then readers are opened, and every window comes from a record that was
not touched since.
"""

import ast
import dataclasses
import functools
import io
import math
import os
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from data_pipelines.loader import as_float32, inclusive
from data_pipelines.record import Record
from data_pipelines.store.reader import Store, StoredRecord, write_store
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from data_pipelines.windows import RecordSource, cut_window, training_index
from unils_jax.files import markdown_table
from unils_jax.motion import HEAD, from_motioncode, head_mean

RECORD_MINUTES = 2.0
_DISTINCT_RECORDS = 4
_COLD_WINDOWS = 12
_WARM_SECONDS = 0.3
READERS = ("store", "release", "view")
VIEWS = {"solo": "codec, prior", "pair": "dialogue"}

Window = dict[str, np.ndarray]


def run(*, hours: float = 1.0, rounds: int = 5, folder: str | None = None) -> dict[str, Any]:
    """Makes `hours` of dialogues and measures all readers; `table` prints the result.

    The dialogues go to `folder` (None: a temporary one). Values are medians over `rounds`, in
    which the readers take turns. Windows a second are those of one core; MB/s counts the bytes,
    as stored, of the windows.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        records = make_records(hours)
        write_store(Path(place) / "store", [("train", record) for record in records])
        for view in VIEWS:
            write_lmdb(Path(place) / f"lmdb_{view}", records, view)
        os.sync()
        rates = _measure(Path(place), records, rounds)
    rows = []
    for (view, reader, state), seconds in rates.items():
        rate = 1 / statistics.median(seconds)
        spread = [1 / max(seconds), 1 / min(seconds)]
        row = {"view": view, "reader": reader, "cache": state, "windows_per_s": rate, "range": spread}
        rows.append(row | {"mb_per_s": rate * _window_bytes(view) / 1e6})
    return {
        "rows": rows,
        "ratios": _ratios(rates),
        "settings": {
            "hours": hours,
            "records": len(records),
            "record_minutes": RECORD_MINUTES,
            "rounds": rounds,
            "dtypes": "float16 motion, int16 audio, in the LMDB too",
            "cold": "posix_fadvise(DONTNEED) on every file, fresh readers, one window a record",
            "threads": 1,
        },
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
    }


def table(result: dict[str, Any]) -> str:
    """Returns the result of `run` as a Markdown table.

    It has windows a second (and MB/s), and how many times faster the store is.
    """
    rates = {(row["view"], row["reader"], row["cache"]): row for row in result["rows"]}
    lines = [["windows/s per core (MB/s)", "cache", "store", "release's way", "LMDB, zero copy", "store / release"]]
    for view, stages in VIEWS.items():
        for state in ("warm", "cold"):
            cells = [rates[view, reader, state] for reader in READERS]
            shown = [f"{cell['windows_per_s']:,.0f} ({cell['mb_per_s']:,.0f})" for cell in cells]
            ratio = result["ratios"][f"{view}_{state}"]
            lines.append([stages, state, *shown, f"{ratio:.1f}x"])
    settings = result["settings"]
    method = (
        f"Medians of {settings['rounds']} interleaved rounds, {settings['hours']:g} h of dialogues of "
        f"{settings['record_minutes']:g} minutes, one thread. Warm: CPU seconds. Cold: {settings['cold']}."
    )
    return "\n".join([*markdown_table(lines), "", method])


def make_records(hours: float) -> list[Record]:
    """Makes dialogues of two minutes: a few different ones, repeated under different names."""
    count = max(2, round(hours * 60 / RECORD_MINUTES))
    config = SynthConfig(minutes=RECORD_MINUTES)
    # Windows cost the same on equal dialogues; making each would take most of the benchmark.
    made = [make_conversation(config, 0, i) for i in range(min(count, _DISTINCT_RECORDS))]
    return [dataclasses.replace(made[i % len(made)], name=f"r{i}", events={}) for i in range(count)]


def write_lmdb(path: Path, records: Sequence[Record], view: str) -> None:
    """Writes the records in the release's layout: an .npz value a person.

    It holds `motioncode [T, 112]`; for pairs also audio and speech mask.
    """
    # LMDB needs its size beforehand; the file is sparse, so that too much costs nothing.
    size = sum(record.motion.size * 3 + record.audio.nbytes for record in records) + (64 << 20)
    with lmdb.open(str(path), map_size=2 * size) as env:
        for record in records:
            with env.begin(write=True) as txn:
                for person in range(record.num_people):
                    txn.put(f"{record.name}_{person}".encode(), _lmdb_value(record, person, view))


def _lmdb_value(record: Record, person: int, view: str) -> bytes:
    arrays = {"motioncode": _motioncode(record.motion[person])}
    if view == "pair":
        arrays |= {"audio": record.audio[person], "speech_mask": record.speech_mask[person]}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _motioncode(motion: np.ndarray) -> np.ndarray:
    """Returns the release's columns of our channels; `from_motioncode` is the way back."""
    wide = np.zeros((len(motion), 112), motion.dtype)
    wide[:, :104], wide[:, 106:108], wide[:, 109:111] = motion[:, :104], motion[:, 104:106], motion[:, 106:108]
    return wide


def _measure(place: Path, records: list[Record], rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """Returns seconds a window for every view, reader and state of the cache, round by round."""
    items = training_index([record.num_frames for record in records])
    rates: dict[tuple[str, str, str], list[float]] = {
        (view, reader, state): [] for view in VIEWS for reader in READERS for state in ("warm", "cold")
    }
    for round_number in range(rounds):
        for view, name, state in rates:
            rng = np.random.default_rng(round_number)
            files = _files(place, name, view)
            if state == "cold":
                drop_from_page_cache(files)
            else:
                fill_page_cache(files)
            reader = open_reader(name, view, place, records)
            # Warm, a window costs the core's time, on a busy machine, too; cold, it waits for disk.
            if state == "cold":
                seconds = _seconds_a_window(reader, _cold_items(items, rng), rng, time.perf_counter)
            else:
                seconds = _seconds_a_window(reader, _warm_items(items, rng), rng, time.process_time)
            rates[view, name, state].append(seconds)
            reader.close()
    return rates


def _files(place: Path, reader: str, view: str) -> Path:
    return place / ("store" if reader == "store" else f"lmdb_{view}")


def _cold_items(items: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields items of different records, none twice."""
    records = rng.permutation(np.unique(items[:, 0]))[:_COLD_WINDOWS]
    return iter([rng.choice(items[items[:, 0] == record]) for record in records])


def _warm_items(items: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    stop = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < stop:
        yield items[rng.integers(len(items))]


def _seconds_a_window(
    reader: "Reader", items: Iterator[np.ndarray], rng: np.random.Generator, clock: Callable[[], float]
) -> float:
    started, count = clock(), 0
    for record, i in items:
        reader.window(int(record), int(i), rng)
        count += 1
    return (clock() - started) / count


def fill_page_cache(folder: Path) -> None:
    """Reads all files in a folder, so that the kernel keeps them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 22):
                    pass


def drop_from_page_cache(folder: Path) -> None:
    """Makes the kernel forget the files in a folder; nothing may have them mapped."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages not yet written cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@dataclasses.dataclass(frozen=True)
class Reader:
    """An opened reader of windows."""

    # A record's number -> what windows are cut from; of solo windows its first person.
    source: Callable[[int], "RecordSource | StoredRecord | ViewSource"]
    close: Callable[[], None]

    def window(self, record: int, i: int, rng: np.random.Generator) -> Window:
        """Returns one training window, float32."""
        cut = cut_window(self.source(record), i, inclusive(rng))
        return {name: as_float32(array) for name, array in cut.items()}


def open_reader(reader: str, view: str, place: Path, records: Sequence[Record]) -> Reader:
    """Opens one of READERS on the files that `run` made in `place`."""
    path, people = _files(place, reader, view), (0,) if view == "solo" else (0, 1)
    if reader == "store":
        store = Store(path)
        person = 0 if view == "solo" else None
        # Opening the shards happens once in a run, not once a window: it is not measured.
        store.source("train", 0, person).frames([(0, 0, 1)])
        return Reader(lambda i: store.source("train", i, person), lambda: None)
    # Reading ahead pays for the release, which reads whole values, not for a view of few pages.
    env = lmdb.open(str(path), readonly=True, lock=False, readahead=reader == "release")
    txn = env.begin(buffers=reader == "view")
    names = [record.name for record in records]
    means = [head_mean(record.motion)[:, 0] for record in records]

    def values(i: int) -> list[bytes | memoryview]:
        return [txn.get(f"{names[i]}_{person}".encode()) for person in people]

    def close() -> None:
        txn.abort()
        env.close()

    if reader == "release":
        return Reader(lambda i: RecordSource(_whole_record(names[i], values(i))), close)
    return Reader(lambda i: ViewSource(names[i], values(i), means[i][: len(people)]), close)


def _whole_record(name: str, values: Sequence[bytes]) -> Record:
    """Reads every array of every person as a whole, which is the release's way."""
    arrays = []
    for value in values:
        with np.load(io.BytesIO(value), allow_pickle=False) as archive:
            arrays.append({key: archive[key] for key in archive.files})
    motion = np.stack([from_motioncode(person["motioncode"]) for person in arrays])
    if "audio" not in arrays[0]:
        return Record(name, motion, None, None, "standin")
    audio, mask = (np.stack([person[key] for person in arrays]) for key in ("audio", "speech_mask"))
    return Record(name, motion, audio, mask, "standin")


class ViewSource:
    """A source of windows that reads uncompressed .npz members in place."""

    def __init__(self, name: str, values: Sequence[bytes | memoryview], means: np.ndarray):
        self._arrays = [members_in_place(value) for value in values]
        self._means = means
        self.name, self.num_people = name, len(values)
        self.num_frames = len(self._arrays[0]["motioncode"])
        self.has_audio = "audio" in self._arrays[0]
        self.num_samples = len(self._arrays[0]["audio"]) if self.has_audio else 0

    def frames(
        self, spans: Sequence[tuple[int, int, int]], *, centred: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Returns motion and speech mask for each `(person, first, last)`.

        Head rotation is centred or as it was.
        """
        out = []
        for person, first, last in spans:
            motion = from_motioncode(self._arrays[person]["motioncode"][first:last])
            if centred:
                motion[:, HEAD] -= self._means[person]
            mask = self._arrays[person].get("speech_mask")
            out.append((motion, None if mask is None else mask[first:last]))
        return out

    def audio(self, first: int, last: int) -> np.ndarray:
        """Returns samples `first`..`last` of all people, float32."""
        return np.stack([person["audio"][first:last] * np.float32(1 / 32768) for person in self._arrays])


def members_in_place(value: bytes | memoryview) -> dict[str, np.ndarray]:
    """Returns the arrays of an uncompressed .npz by `np.savez`, as views of it.

    Only for archives that this process wrote: nothing is checked.
    """
    # Local headers follow one another: sizes are in the header, or in its zip64 extra field.
    arrays, at = {}, 0
    while bytes(value[at : at + 4]) == b"PK\x03\x04":
        size, name_size, extra_size = struct.unpack_from("<IHH", value, at + 22)
        extra = at + 30 + name_size
        if size == 0xFFFFFFFF:
            (size,) = struct.unpack_from("<Q", value, extra + 4)
        start = extra + extra_size
        (header_size,) = struct.unpack_from("<H", value, start + 8)
        header = start + 10
        dtype, shape = _described(bytes(value[header : header + header_size]))
        array = np.frombuffer(value, dtype, math.prod(shape), header + header_size).reshape(shape)
        arrays[bytes(value[at + 30 : extra]).decode().removesuffix(".npy")] = array
        at = start + size
    return arrays


@functools.lru_cache(maxsize=1000)
def _described(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    values = ast.literal_eval(header.decode())
    return np.dtype(values["descr"]), values["shape"]


def _window_bytes(view: str) -> int:
    """Returns the bytes of a window as stored.

    They are motion, context and style in float16, for pairs also int16 audio.
    """
    person = 300 * 108 * 2
    return person if view == "solo" else 2 * (person + 64_000 * 2 + 100)


def _ratios(rates: dict[tuple[str, str, str], list[float]]) -> dict[str, float]:
    """Returns how many times faster than the release's way the store is.

    Each is the median of the rounds' ratios.
    """
    return {
        f"{view}_{state}": statistics.median(
            theirs / ours
            for ours, theirs in zip(rates[view, "store", state], rates[view, "release", state], strict=True)
        )
        for view in VIEWS
        for state in ("warm", "cold")
    }
