"""Records -> store: shards are written apart and finished into one store.

Any number of processes and machines may write them. A shard is three files, each whole or not
there: motion chunks, audio chunks, and last its index. A folder is a store once its manifest is
there. Equal records give equal bytes: no time, no host, no order of arrival gets in.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.record import SPLITS, Record, validate
from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store import chunks
from data_pipelines.store import tfds as tfds_layout
from data_pipelines.store.index import Index, IndexRows, check_summary, concatenate, load_index, save_index
from unils_jax.errors import UserError, one_line
from unils_jax.files import atomic_output, sync_folder, write_text
from unils_jax.motion import FPS, SAMPLE_RATE, center_head
from unils_jax.runtime import local_path, only_writer, process_is_gone

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MOTION_DTYPES, AUDIO_DTYPES = ("float16", "float32"), ("int16", "float32")
AUDIO_FOLDER, INDEX_FOLDER = "audio", "index"
# Compressed, motion shrinks by 6 % and speech by a fifth, and reading takes two to three times as
# long.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True)
class Dtypes:
    """What a store keeps: float16 or float32 motion, int16 or float32 audio."""

    motion: str = "float16"  # or float32
    audio: str = "int16"  # or float32

    def __post_init__(self) -> None:
        if self.motion not in MOTION_DTYPES or self.audio not in AUDIO_DTYPES:
            raise UserError(
                f"a store keeps motion as one of {MOTION_DTYPES} and audio as one of {AUDIO_DTYPES}, "
                f"got {self.motion} and {self.audio}"
            )


DEFAULT_DTYPES = Dtypes()


def shard_paths(folder: Path, split: str, shard: int) -> tuple[Path, Path, Path]:
    """Returns the paths of a shard's motion, audio and index file."""
    name = tfds_layout.shard_file(split, shard)
    return folder / name, folder / AUDIO_FOLDER / name, folder / INDEX_FOLDER / f"{split}-{shard:05d}.npz"


def write_shard(
    folder: str | os.PathLike,
    split: str,
    shard: int,
    records: Iterable[Record],
    *,
    dtypes: Dtypes = DEFAULT_DTYPES,
    basis: str | None = None,
) -> dict[str, Any]:
    """Writes one shard into a store's folder as the records come.

    Leftovers of a killed try are replaced. Nothing of the shard is left where this fails.

    Args:
        folder: The store's folder.
        split: "train", "val" or "test".
        shard: The number of the shard within its split.
        records: Records in the order in which they are written.
        dtypes: What motion and audio are stored as.
        basis: The expression basis that every record must have; None: that of the first one.

    Returns:
        The shard's summary, as `shard_summary`.

    Raises:
        UserError: For a bad record, and for one of another expression basis.
    """
    _check_split(split, "a shard")
    motion_path, audio_path, index_path = shard_paths(Path(folder), split, shard)
    index_path.unlink(missing_ok=True)
    rows, statistics, errors = IndexRows(shard), ChannelStatistics.zero(), {"motion": 0.0, "audio": 0.0}
    counts = {"motion": 0, "audio": 0}
    with _writer(motion_path) as motion_writer, _writer(audio_path) as audio_writer:
        for record in records:
            basis = _checked_basis(record, basis)
            stored = convert(record, dtypes)
            for kind, error in conversion_errors(record, stored).items():
                errors[kind] = max(errors[kind], error)
            rows.add(stored, counts["motion"], counts["audio"])
            for chunk in chunks.motion_chunks(stored):
                motion_writer.write(chunk)
                counts["motion"] += 1
            if stored.audio is not None:
                for chunk in chunks.audio_chunks(stored):
                    audio_writer.write(chunk)
                    counts["audio"] += 1
            statistics = _add_record(statistics, stored)
    index = rows.build()
    summary = {
        "basis": basis if len(index) else None,
        "dtypes": asdict(dtypes),
        "pieces": counts,
        "errors": errors,
        "statistics": statistics.to_json(),
        "files": {str(path.relative_to(folder)): _checksum(path) for path in (motion_path, audio_path)},
        **_amounts(index),
    }
    save_index(index_path, index, summary)
    return summary


def shard_is_complete(folder: str | os.PathLike, split: str, shard: int) -> bool:
    """Returns whether `write_shard` has finished this shard."""
    return shard_paths(Path(folder), split, shard)[2].is_file()


def shard_summary(folder: str | os.PathLike, split: str, shard: int) -> dict[str, Any]:
    """Returns the contents of a finished shard: records, frames, hours, bytes and more.

    Raises UserError where it is damaged.
    """
    return _load_part(Path(folder), split, shard)[1]


def finish_store(
    folder: str | os.PathLike,
    shards: Mapping[str, int],
    *,
    source: str = "",
    settings: dict[str, Any] | None = None,
    dtypes: Dtypes = DEFAULT_DTYPES,
) -> dict[str, Any]:
    """Merges shards 0..n-1 of each split into a store; returns the manifest, written last.

    It may be repeated.

    Args:
        folder: The store's folder.
        shards: The number of shards of each split.
        source: Where the records come from.
        settings: JSON-able values that say how the data was made.
        dtypes: Those that every shard was written with.

    Raises:
        UserError: That names the shards that are missing, where shards differ in expression basis
            or dtypes, and where there is no record at all.
    """
    folder = Path(folder)
    for split in shards:
        _check_split(split, "shards")
    missing = [f"{s}-{i}" for s, n in shards.items() for i in range(n) if not shard_is_complete(folder, s, i)]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} shards: {', '.join(missing[:20])}; write them first")
    parts = {split: [_load_part(folder, split, i) for i in range(n)] for split, n in shards.items() if n}
    summaries = [summary for split in parts.values() for _, summary in split]
    bases = {summary["basis"] for summary in summaries} - {None}
    if len(bases) != 1:
        raise UserError(f"{folder} must hold records of one expression_basis, got {sorted(bases) or 'no record'}")
    if any(summary["dtypes"] != asdict(dtypes) for summary in summaries):
        raise UserError(f"{folder} holds shards of other dtypes than {asdict(dtypes)}; write them again or say so")
    files = {name: entry for summary in summaries for name, entry in summary["files"].items()}
    for split, split_parts in parts.items():
        merged = folder / INDEX_FOLDER / f"{split}.npz"
        save_index(merged, concatenate([index for index, _ in split_parts]), {})
        files[str(merged.relative_to(folder))] = _checksum(merged)
    files |= _write_tfds(folder, {split: [s for _, s in split_parts] for split, split_parts in parts.items()}, dtypes)
    statistics = ChannelStatistics.zero()
    for _, summary in parts.get("train", []):
        statistics = statistics.merge(ChannelStatistics.from_json(summary["statistics"]))
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "settings": settings or {},
        "expression_basis": bases.pop(),
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "piece_frames": chunks.CHUNK_FRAMES,
        "dtypes": asdict(dtypes),
        "conversion_error": _stated_errors(summaries, dtypes),
        "splits": {split: _split_amounts([s for _, s in parts.get(split, [])]) for split in SPLITS},
        "statistics": statistics.to_json(),
        "files": dict(sorted(files.items())),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def write_store(
    path: str | os.PathLike,
    records: Iterable[tuple[str, Record]],
    *,
    settings: dict[str, Any] | None = None,
    source: str = "",
    dtypes: Dtypes = DEFAULT_DTYPES,
) -> dict[str, Any]:
    """Writes `(split, record)` pairs into a new store at `path`, one shard a split.

    Records are validated and written as they come, so the iterator may be a generator; those of one
    split must follow each other. The folder is written under another name and renamed when whole.

    Args:
        path: Where the store will be.
        records: Pairs of split and record.
        settings: JSON-able values that say how the data was made.
        source: Where the records come from.
        dtypes: What motion and audio are stored as.

    Returns:
        The manifest.

    Raises:
        UserError: Where `path` exists and is not an empty folder, and as `write_shard` and
            `finish_store`.
    """
    path = local_path(path, "store")
    lock = path.absolute().parent / f".{path.name}.lock"
    with only_writer(lock, path), _partial_folder(path) as partial:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} already exists and is not empty; choose another folder or remove it")
        shards: dict[str, int] = {}
        basis = None
        for split, group in _runs(records):
            _check_split(split, "a record")
            summary = write_shard(partial, split, shards.get(split, 0), group, dtypes=dtypes, basis=basis)
            basis = summary["basis"]
            shards[split] = shards.get(split, 0) + 1
        manifest = finish_store(partial, shards, source=source, settings=settings, dtypes=dtypes)
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
        sync_folder(path.parent)
    return manifest


def convert(record: Record, dtypes: Dtypes) -> Record:
    """Returns the record as it is stored.

    Motion is rounded to float16, audio to the nearest of 65,536 levels and clipped. Raises
    UserError where a value does not fit float16.
    """
    with np.errstate(over="ignore"):
        motion = np.ascontiguousarray(record.motion, np.dtype(dtypes.motion))
    if not np.isfinite(motion).all():
        raise UserError(
            f"record {record.name!r}: motion of {np.abs(record.motion).max():g} does not fit {dtypes.motion}; "
            "store it as float32 or leave out the record"
        )
    audio = record.audio
    if audio is not None and audio.dtype != np.dtype(dtypes.audio):
        if dtypes.audio == "int16":
            audio = np.clip(np.rint(audio * np.float32(32768)), -32768, 32767).astype(np.int16)
        else:
            audio = audio / np.float32(32768)
    return dataclasses.replace(record, motion=motion, audio=audio)


def conversion_errors(record: Record, stored: Record) -> dict[str, float]:
    """Returns the largest absolute difference that storing made.

    That of audio is a share of full scale.
    """
    motion = 0.0
    if record.motion.dtype != stored.motion.dtype:
        motion = float(np.abs(record.motion.astype(np.float32) - stored.motion.astype(np.float32)).max())
    audio = 0.0
    if record.audio is not None and record.audio.size and record.audio.dtype == np.float32 != stored.audio.dtype:
        audio = float(np.abs(record.audio - stored.audio / np.float32(32768)).max())
    return {"motion": motion, "audio": audio}


def _stated_errors(summaries: list[dict], dtypes: Dtypes) -> dict[str, Any]:
    notes = {
        "float16": "rounded to 11 significant bits: at most 1/2048 of the value",
        "int16": "rounded to 1/32768 of full scale, louder samples clipped",
        "float32": "stored as it was",
    }
    measured = {kind: max((s["errors"][kind] for s in summaries), default=0.0) for kind in ("motion", "audio")}
    return {k: {"rule": notes[getattr(dtypes, k)], "largest_absolute": error} for k, error in measured.items()}


def _checked_basis(record: Record, basis: str | None) -> str:
    validate(record)
    if basis not in (None, record.expression_basis):
        raise UserError(
            f"record {record.name!r} has another expression_basis ({record.expression_basis}) than those before it "
            f"({basis}); a store holds one"
        )
    return record.expression_basis


def _add_record(statistics: ChannelStatistics, record: Record) -> ChannelStatistics:
    centred = center_head(record.motion)
    for person in range(record.num_people):
        observed = None if record.observed is None else record.observed[person]
        statistics = statistics.add(centred[person], observed)
    return statistics


def _amounts(index: Index) -> dict[str, Any]:
    """Counts records and frames; person-frames count each person, with motion and with audio."""
    frames = index.frames.astype(np.int64)
    with_audio = index.samples >= 0
    person_frames = {
        "person": int((frames * index.people).sum()),
        "motion": int((frames * index.has_motion().sum(axis=1)).sum()),
        "audio": int((frames * index.people)[with_audio].sum()),
    }
    return {"records": len(index), "frames": int(frames.sum()), "person_frames": person_frames}


def _split_amounts(summaries: list[dict]) -> dict[str, Any]:
    frames = sum(s["frames"] for s in summaries)
    people = {
        f"{kind}_hours": sum(s["person_frames"][kind] for s in summaries) / FPS / 3600
        for kind in ("person", "motion", "audio")
    }
    return {
        "count": sum(s["records"] for s in summaries),
        "shards": len(summaries),
        "frames": frames,
        "hours": frames / FPS / 3600,
        **people,
        "bytes": sum(entry["bytes"] for s in summaries for entry in s["files"].values()),
    }


def _write_tfds(folder: Path, parts: dict[str, list[dict]], dtypes: Dtypes) -> dict[str, Any]:
    """Writes the files that make two tensorflow-datasets of the folder; returns their checksums."""
    described = {
        "motion": (folder, tfds_layout.motion_features(dtypes.motion)),
        "audio": (folder / AUDIO_FOLDER, tfds_layout.audio_features(dtypes.audio)),
    }
    files = {}
    for kind, (place, features) in described.items():
        splits = {}
        for split, summaries in parts.items():
            lengths = [s["pieces"][kind] for s in summaries]
            if any(lengths):
                prefix = f"{AUDIO_FOLDER}/" if kind == "audio" else ""
                names = [prefix + tfds_layout.shard_file(split, i) for i in range(len(summaries))]
                num_bytes = sum(s["files"][name]["bytes"] for s, name in zip(summaries, names, strict=True))
                splits[split] = (lengths, num_bytes)
        for name, text in tfds_layout.metadata(f"unils_{kind}", features, splits).items():
            write_text(place / name, text)
            files[str((place / name).relative_to(folder))] = _checksum(place / name)
    return files


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[ArrayRecordWriter]:
    with atomic_output(path) as partial:
        writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        try:
            yield writer
        finally:
            writer.close()


def _load_part(folder: Path, split: str, shard: int) -> tuple[Index, dict[str, Any]]:
    path = shard_paths(folder, split, shard)[2]
    try:
        index, summary = load_index(path)
        check_summary(summary)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it and write that shard again") from None
    return index, summary


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _check_split(split: str, what: str) -> None:
    if split not in SPLITS:
        raise UserError(f"split of {what} must be one of {SPLITS}, got {split!r}")


def _runs(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Iterator[Record]]]:
    """Yields neighbours of one split together, streamed."""
    for split, group in groupby(records, key=lambda item: item[0]):
        yield split, (record for _, record in group)


@contextlib.contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    _clear_killed(path)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another output folder") from None
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear_killed(path: Path) -> None:
    """Removes the partial folders of this store whose processes are gone.

    The caller holds the store's lock. The number may be that of another process by now: then the
    folder stays.
    """
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = folder.name.removesuffix(".partial").rpartition(".")[2]
        if number.isdecimal() and process_is_gone(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
