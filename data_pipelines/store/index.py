"""What is known of a store's records without reading them, as arrays that load at once.

One .npz for each shard while a store is being written (it is there once the shard is whole), one
for each split when the store is finished.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.record import Record
from data_pipelines.statistics import ChannelStatistics
from unils_jax.files import MAX_BYTES, atomic_output, read_npz
from unils_jax.motion import BASES, MOTION_DIM, head_mean

NO_AUDIO = -1
_PEOPLE = 2  # every row has room for two people
_MAX = 1 << 40
_LIMITS = {
    "people": (1, _PEOPLE),
    "frames": (1, (1 << 31) - 1),
    "samples": (NO_AUDIO, _MAX),
    "shard": (0, _MAX),
    "first_motion": (0, _MAX),
    "first_audio": (0, _MAX),
}
# The type of each column, and what a row of it holds.
_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "frames": (np.int32, ()),
    "people": (np.uint8, ()),
    "samples": (np.int64, ()),
    "has_mask": (np.bool_, ()),
    "observed": (np.uint8, (_PEOPLE, -(-MOTION_DIM // 8))),
    "head_mean": (np.float32, (_PEOPLE, 3)),
    "shard": (np.int32, ()),
    "first_motion": (np.int64, ()),
    "first_audio": (np.int64, ()),
}


@dataclass(frozen=True)
class Index:
    """One row for each of n records.

    `first_motion` and `first_audio` are positions of chunks in `shard`.

    `samples` is the length of the audio tracks, NO_AUDIO without; `head_mean [n, 2, 3]` is the mean
    head rotation over the whole record in the stored dtype (a float32 holds a float16 exactly);
    `observed [n, 2, 14]` are packed bits; `texts` holds each record's name, source and two
    identities, a line each.
    """

    frames: np.ndarray
    people: np.ndarray
    samples: np.ndarray
    has_mask: np.ndarray
    observed: np.ndarray
    head_mean: np.ndarray
    shard: np.ndarray
    first_motion: np.ndarray
    first_audio: np.ndarray
    texts: np.ndarray

    @classmethod
    def empty(cls) -> "Index":
        """Returns the index of a split without records."""
        return IndexRows(0).build()

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def _lines(self) -> list[str]:
        return self.texts.tobytes().decode().split("\n")

    @property
    def names(self) -> list[str]:
        """The name of every record."""
        return self._lines[: 4 * len(self) : 4]

    def name(self, i: int) -> str:
        """Returns the name of record i."""
        return self._lines[4 * i]

    def source(self, i: int) -> str:
        """Returns where record i comes from."""
        return self._lines[4 * i + 1]

    def identities(self, i: int) -> tuple[str, ...]:
        """Returns the names of the people of record i; empty where none is known."""
        named = tuple(self._lines[4 * i + 2 : 4 * i + 2 + int(self.people[i])])
        return named if any(named) else ()

    def observed_of(self, i: int) -> np.ndarray:
        """Returns `[P, 108]` bool: the channels that record i has of each person."""
        return np.unpackbits(self.observed[i, : self.people[i]], axis=-1, count=MOTION_DIM).view(bool)

    def has_motion(self) -> np.ndarray:
        """Returns `[n, 2]` bool: whether any channel of a person is there."""
        return self.observed.any(axis=-1) & (np.arange(_PEOPLE) < self.people[:, None])

    def motion_bytes(self, dtype: str) -> int:
        """Returns the bytes that the motion of all people takes."""
        frames = self.frames.astype(np.int64) * self.people
        return int(frames.sum()) * MOTION_DIM * np.dtype(dtype).itemsize

    def describe(self, i: int) -> dict[str, Any]:
        """Returns record i as plain values."""
        observed = self.observed_of(i)
        return {
            "name": self.name(i),
            "frames": int(self.frames[i]),
            "people": int(self.people[i]),
            "audio": bool(self.samples[i] != NO_AUDIO),
            "speech_mask": bool(self.has_mask[i]),
            "identities": self.identities(i),
            "observed": None if observed.all() else observed,
            "source": self.source(i),
            "shard": int(self.shard[i]),
        }


class IndexRows:
    """The rows of an index while records come; `build` makes the arrays."""

    def __init__(self, shard: int):
        self._shard = shard
        self._rows: list[tuple] = []
        self._texts: list[str] = []

    def add(self, record: Record, first_motion: int, first_audio: int) -> None:
        """Adds one record, in the dtypes it is stored in, whose chunks start at these positions."""
        observed = np.zeros((_PEOPLE, MOTION_DIM), bool)
        observed[: record.num_people] = True if record.observed is None else record.observed
        mean = np.zeros((_PEOPLE, 3), np.float32)
        mean[: record.num_people] = head_mean(record.motion)[:, 0]
        samples = NO_AUDIO if record.audio is None else record.audio.shape[1]
        has_mask = record.speech_mask is not None
        sizes = (record.num_frames, record.num_people, samples, has_mask)
        self._rows.append((*sizes, np.packbits(observed, axis=-1), mean, self._shard, first_motion, first_audio))
        named = (*record.identities, "", "")[:_PEOPLE]
        self._texts += [record.name, record.source, *named]

    def build(self) -> Index:
        """Returns the index of the rows so far."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_COLUMNS)
        arrays = [
            np.array(column, dtype).reshape(len(self._rows), *inner)
            for column, (dtype, inner) in zip(columns, _COLUMNS.values(), strict=True)
        ]
        return Index(*arrays, texts=_as_bytes(self._texts))


def concatenate(parts: Sequence[Index]) -> Index:
    """Returns the index of several shards."""
    names = [field.name for field in fields(Index) if field.name != "texts"]
    texts = [line for part in parts for line in part._lines[: 4 * len(part)]]
    return Index(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names}, texts=_as_bytes(texts))


def save_index(path: str | os.PathLike, index: Index, summary: dict[str, Any]) -> None:
    """Writes index and summary (JSON-able) to `path`, durable and atomic.

    Equal content gives equal bytes.
    """
    arrays = {field.name: getattr(index, field.name) for field in fields(Index)}
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, summary=_as_bytes([json.dumps(summary, sort_keys=True)]), **arrays)


def load_index(path: str | os.PathLike) -> tuple[Index, dict[str, Any]]:
    """Returns index and summary.

    Raises ValueError or OSError where the file is no index.
    """
    path, names = Path(path), [field.name for field in fields(Index)]
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has over {MAX_BYTES} bytes")
    # Read at once: the members of an archive on a network disk would be sought one by one.
    arrays = read_npz(path.read_bytes(), [*names, "summary"], origin="it")
    lacking = [name for name in [*names, "summary"] if name not in arrays]
    if lacking:
        raise ValueError(f"{', '.join(lacking)} are missing")
    try:
        summary = json.loads(arrays["summary"].tobytes())
    except RecursionError:
        raise ValueError("its summary nests too deeply") from None
    index = Index(**{name: arrays[name] for name in names})
    _check(index)
    return index, summary


def _check(index: Index) -> None:
    """Raises ValueError where columns are not as `IndexRows.build` makes them."""
    rows = index.frames.shape[0] if index.frames.ndim else 0
    for name, (dtype, inner) in _COLUMNS.items():
        values = getattr(index, name)
        if values.dtype != dtype or values.shape != (rows, *inner):
            raise ValueError(f"{name} is {values.dtype} {list(values.shape)}")
        low, high = _LIMITS.get(name, (-np.inf, np.inf))
        if rows and not low <= values.min() <= values.max() <= high:  # False for NaN, too
            raise ValueError(f"{name} is out of range")
    if not np.isfinite(index.head_mean).all():
        raise ValueError("head_mean is not finite")
    if index.texts.dtype != np.uint8 or index.texts.ndim != 1 or len(index._lines) < 4 * rows:
        raise ValueError("names are missing")


def check_summary(summary: dict[str, Any]) -> None:
    """Raises ValueError where a shard's summary is not as `writer.write_shard` makes it."""
    try:
        counts = [
            summary["records"],
            summary["frames"],
            *summary["person_frames"].values(),
            *summary["pieces"].values(),
        ]
        counts += [entry["bytes"] for entry in summary["files"].values()]
        kinds = [set(summary[name]) == {"motion", "audio"} for name in ("pieces", "errors", "dtypes")]
        kinds += [set(summary["person_frames"]) == {"person", "motion", "audio"}]
        kinds += [type(error) in (int, float) for error in summary["errors"].values()]
        kinds += [type(entry["sha256"]) is str for entry in summary["files"].values()]
        ChannelStatistics.from_json(summary["statistics"])
        known = summary["basis"] in (None, *BASES)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its summary is of another kind: {error!r:.80}") from None
    if not (known and all(kinds) and all(type(count) is int and 0 <= count <= _MAX for count in counts)):
        raise ValueError("its summary is of another kind")


def _as_bytes(lines: list[str]) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode(), np.uint8)
