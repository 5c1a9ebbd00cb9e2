"""The store: one folder of ArrayRecord files and a manifest. The only file that knows the storage format.

`{train,val,test}.array_record` hold one record each as an uncompressed .npz archive (never unpickled);
`manifest.json` holds the counts, the name and length of every record (so that an index needs no reading), the
settings the data was made with, and the channel statistics of the training split.
"""

import contextlib
import io
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float32

from data_pipelines.schema import Record, validate
from unils_jax.errors import UserError
from unils_jax.motion import FPS, MOTION_DIM, SAMPLE_RATE, center_head

SPLITS = ("train", "val", "test")
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class _Statistics:
    """Running mean and deviation of the 108 channels in float64, over centred motion."""

    def __init__(self):
        self.count = 0
        self.mean = np.zeros(MOTION_DIM)
        self.squares = np.zeros(MOTION_DIM)

    def add(self, motion: np.ndarray) -> None:
        frames = center_head(motion).astype(np.float64).reshape(-1, MOTION_DIM)
        count, mean = len(frames), frames.mean(axis=0)
        difference, total = mean - self.mean, self.count + count
        self.squares += ((frames - mean) ** 2).sum(axis=0) + difference**2 * self.count * count / total
        self.mean = self.mean + difference * count / total
        self.count = total

    def as_json(self) -> dict[str, list[float]]:
        std = np.sqrt(self.squares / max(self.count, 1))
        return {"mean": self.mean.tolist(), "std": std.tolist()}


def write_store(
    path: str | os.PathLike,
    records: Iterable[tuple[str, Record]],
    *,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `(split, record)` pairs into a new store at `path`; returns its manifest.

    Records are validated and written as they come, so the iterator may be a generator. `settings` (JSON-able) says
    how the data was made. The folder is written beside and renamed when whole. Raises UserError where `path` exists
    and is not an empty folder, where a record is bad, and where the training split has no record.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists and is not empty; choose another folder or remove it")
    with _folder_beside(path) as partial:
        manifest = _write_files(partial, records, settings or {})
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    return manifest


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another output folder") from None
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(folder: Path, records: Iterable[tuple[str, Record]], settings: dict[str, Any]) -> dict[str, Any]:
    writers = {split: ArrayRecordWriter(str(folder / f"{split}.array_record"), "group_size:1") for split in SPLITS}
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    statistics, bases = _Statistics(), set()
    try:
        for split, record in records:
            if split not in SPLITS:
                raise UserError(f"split of record {record.name!r} must be one of {SPLITS}, got {split!r}")
            validate(record)
            bases.add(record.expression_basis)
            if len(bases) > 1:
                raise UserError(f"record {record.name!r} has another expression_basis than those before it: {bases}")
            writers[split].write(_encode(record))
            entries[split].append(_describe(record))
            if split == "train":
                statistics.add(record.motion)
    finally:
        for writer in writers.values():
            writer.close()
    if not entries["train"]:
        raise UserError("a store needs at least one record in its train split, got none")
    return {
        "format_version": FORMAT_VERSION,
        "expression_basis": bases.pop(),
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "splits": {split: _summary(folder, split, entries[split]) for split in SPLITS},
        "statistics": statistics.as_json(),
        "settings": settings,
    }


def _describe(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "frames": record.num_frames,
        "people": record.num_people,
        "audio": record.audio is not None,
        "speech_mask": record.speech_mask is not None,
    }


def _summary(folder: Path, split: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    file = f"{split}.array_record"
    frames = sum(entry["frames"] for entry in entries)
    return {
        "file": file,
        "bytes": (folder / file).stat().st_size,
        "count": len(entries),
        "frames": frames,
        "hours": frames / FPS / 3600,
        "records": entries,
    }


def _encode(record: Record) -> bytes:
    arrays = {"motion": record.motion, "audio": record.audio, "speech_mask": record.speech_mask}
    about = {"name": record.name, "expression_basis": record.expression_basis, "events": record.events}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **{k: v for k, v in arrays.items() if v is not None})
    return buffer.getvalue()


def _decode(value: bytes, with_audio: bool) -> Record:
    with np.load(io.BytesIO(value), allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        audio = arrays["audio"] if with_audio and "audio" in arrays else None
        mask = arrays["speech_mask"] if "speech_mask" in arrays else None
        motion = arrays["motion"]
    return Record(about["name"], motion, audio, mask, about["expression_basis"], about["events"])


class Store:
    """A store on disk, opened lazily: files are opened on the first read, once per process; instances pickle.

    Raises UserError that names the file where the folder is no store, or a file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._readers: dict[str, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())

    @property
    def expression_basis(self) -> str:
        """What the 100 expression channels mean: `flame` or `standin`."""
        return self.manifest["expression_basis"]

    def statistics(self) -> tuple[Float32[np.ndarray, "108"], Float32[np.ndarray, "108"]]:
        """Mean and standard deviation per channel, over all frames of the training split, head rotation centred."""
        numbers = self.manifest["statistics"]
        return np.array(numbers["mean"], np.float32), np.array(numbers["std"], np.float32)

    def records(self, split: str) -> list[dict[str, Any]]:
        """What the manifest says of each record of a split: name, frames, people, audio, speech_mask."""
        if split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, got {split!r}")
        return self.manifest["splits"][split]["records"]

    def lengths(self, split: str) -> list[int]:
        """Frames of each record of a split, without reading a record."""
        return [entry["frames"] for entry in self.records(split)]

    def read(self, split: str, i: int, *, with_audio: bool = True) -> Record:
        """Record i of a split; without audio it is None, and its samples are not copied."""
        count = len(self.records(split))
        if not 0 <= i < count:
            raise UserError(f"{self.path} has {count} records in {split}, there is no record {i}")
        file = self.path / self.manifest["splits"][split]["file"]
        try:
            with self._lock:
                value = self._reader(split, file).read([i])[0]
            return _decode(value, with_audio)
        except (OSError, KeyError, ValueError, IndexError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file} is damaged at record {i} ({_one_line(error)}); make the store again") from None

    def _reader(self, split: str, file: Path) -> ArrayRecordReader:
        if split not in self._readers:
            expected = self.manifest["splits"][split]
            if not file.is_file():
                raise UserError(f"{file} is missing from its store; make the store again")
            if file.stat().st_size != expected["bytes"]:
                raise UserError(
                    f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}; "
                    "make the store again"
                )
            self._readers[split] = ArrayRecordReader(str(file))
        return self._readers[split]


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of the store at `path`. Raises UserError, naming the file, where there is none or it is bad."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise UserError(f"{path} is no store: {file} does not exist; `unils data synth --out {path}` makes one")
    try:
        manifest = json.loads(file.read_text())
        version = manifest["format_version"]
        complete = set(manifest["splits"]) == set(SPLITS) and len(manifest["statistics"]["mean"]) == MOTION_DIM
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({_one_line(error)}); make the store again") from None
    if version != FORMAT_VERSION or not complete:
        raise UserError(f"{file} has format_version {version}, this program reads {FORMAT_VERSION}; make it again")
    return manifest


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
