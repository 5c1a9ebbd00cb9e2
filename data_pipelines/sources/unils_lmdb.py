"""The published release's two data sets: an LMDB of .npz values with a JSON index. Untrusted.

Nothing is unpickled. TalkMotionOnly lists people alone, SeamlessInteractionTalk pairs; the index
shows which one it is.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from data_pipelines.record import SPLITS
from data_pipelines.sources.base import DAMAGED, MISSING, PARTNER, Entry, Reading, SkippedEntry, Track, assemble
from unils_jax.errors import UserError
from unils_jax.files import read_npz
from unils_jax.motion import from_motioncode

MAX_INDEX_BYTES = 1 << 28
MAX_INDEX_FRAMES = 25 * 3600 * 24
MAX_CHANNELS = 1024
MAX_KEY_BYTES = 511  # LMDB's own bound
# Seamless Interaction's file names: vendor, session, interaction, participant. Participants are
# numbered per vendor.
_PARTICIPANT = re.compile(r"(?:^|[^A-Za-z0-9])(V\d+)_S\d+_I\d+_(P\d+[A-Za-z]?)(?![A-Za-z0-9])")


def identity(name: str) -> str:
    """Returns the person in a record's name: `V00_P0947` of Seamless Interaction's names.

    It is "" where the name holds none.
    """
    found = _PARTICIPANT.search(name)
    return "_".join(found.groups()) if found else ""


@dataclass(frozen=True)
class ReleaseSource:
    """The LMDB (a folder, or its one file) and the JSON index next to it."""

    lmdb_path: Path
    index: Path

    def describe(self) -> dict[str, Any]:
        """Returns the index' checksum: conversions of the same index are the same conversion."""
        return {"layout": "release", "index": hashlib.blake2b(_index_bytes(self.index), digest_size=16).hexdigest()}

    def entries(self) -> list[Entry]:
        """Lists all sequences of the index, in its order.

        Raises UserError where the index is none.
        """
        listed = _read_index(self.index)
        return [entry for split in SPLITS for entry in _split_entries(split, listed.get(split, []))]

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Opens the LMDB for reading, lazily and per process (an environment cannot be pickled)."""
        with open_lmdb(self.lmdb_path) as env, env.begin(buffers=True) as transaction:
            yield lambda entry: _read(transaction, entry)


def find_index(source: Path) -> Path:
    """Finds the one JSON file in `source` or next to it.

    Raises UserError where there is none or more than one.
    """
    inside = sorted(source.glob("*.json")) if source.is_dir() else []
    found = inside or sorted(source.parent.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(f"{source} needs one JSON index in or beside it, found {names}; name it with --index FILE")
    return found[0]


@contextlib.contextmanager
def open_lmdb(path: Path) -> Iterator[lmdb.Environment]:
    """Opens the LMDB at `path`, read-only and without locks.

    Raises UserError where it is missing, foreign or cut short.
    """
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is no LMDB: {file} does not exist; give the folder that holds data.mdb")
    try:
        env = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_spare_txns=1)
    except lmdb.MemoryError:
        raise UserError(f"{path} is damaged: by its header it is larger than can be mapped; get a fresh copy") from None
    except lmdb.Error as error:
        raise UserError(f"{path} is no LMDB that can be read ({error}); get a fresh copy") from None
    try:
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if file.stat().st_size < needed:
            # Reading on would end in a bus error, not in an exception.
            raise UserError(f"{file} has {file.stat().st_size} bytes, its own header says {needed}; get a fresh copy")
        yield env
    finally:
        env.close()


def _index_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the index {path}: {error.strerror}; name it with --index FILE") from None
    if len(content) > MAX_INDEX_BYTES:
        raise UserError(f"the index {path} has more than {MAX_INDEX_BYTES} bytes; split it")
    return content


def _read_index(path: Path) -> dict[str, Any]:
    try:
        listed = json.loads(_index_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the index {path} is no JSON that can be read ({error}); get a fresh copy") from None
    if not isinstance(listed, dict) or not any(listed.get(split) for split in SPLITS):
        raise UserError(f"the index {path} must be an object with {', '.join(SPLITS)}; name the release's own index")
    for split in SPLITS:
        if not isinstance(listed.get(split, []), list | dict):
            raise UserError(f"{split} of the index {path} must be a list or an object; name the release's own index")
    return listed


def _split_entries(split: str, listed: object) -> Iterator[Entry]:
    if isinstance(listed, list):
        for number, item in enumerate(listed):
            usable = isinstance(item, list) and len(item) >= 2 and isinstance(item[0], str)
            name = item[0] if usable and item[0] else f"{split}[{number}]"
            yield _entry(split, name, item[:1] if usable else [], item[1] if usable else None)
        return
    for name, item in listed.items():
        usable = isinstance(item, list) and len(item) >= 3 and all(isinstance(path, str) for path in item[:2])
        keys = [path.rpartition("/")[2] for path in item[:2]] if usable else []
        yield _entry(split, name or f"{split}[]", keys, item[2] if usable else None)


def _entry(split: str, name: str, keys: list[str], frames: object) -> Entry:
    counted = type(frames) is int and 0 <= frames <= MAX_INDEX_FRAMES
    if keys and counted:
        return Entry(split, name, tuple(keys), frames)
    problem = f"its frames must be a count up to {MAX_INDEX_FRAMES}" if keys else "it must be [key, ..., frames]"
    return Entry(split, name, tuple(keys), frames if counted else 0, f"the index is wrong about it: {problem}")


def _read(transaction: lmdb.Transaction, entry: Entry) -> Reading:
    if entry.problem:
        raise SkippedEntry(DAMAGED, entry.problem, entry.frames or 0)
    try:
        values = [_value(transaction, key) for key in entry.parts]
    except lmdb.Error as error:
        raise SkippedEntry(
            DAMAGED, f"the LMDB cannot give {' and '.join(entry.parts)} ({error})", entry.frames
        ) from None
    missing = [key for key, value in zip(entry.parts, values, strict=True) if value is None]
    if missing:
        reason = PARTNER if len(missing) < len(values) else MISSING
        raise SkippedEntry(reason, f"no value for {', '.join(map(repr, missing))}", entry.frames)
    try:
        tracks = [_track(key, value, entry) for key, value in zip(entry.parts, values, strict=True)]
    except UserError as error:
        raise SkippedEntry(DAMAGED, str(error), entry.frames) from None
    return assemble(entry, tracks, expression_basis="flame", source="release")


def _value(transaction: lmdb.Transaction, key: str) -> memoryview | None:
    encoded = key.encode("utf-8", "surrogatepass")
    return transaction.get(encoded) if 0 < len(encoded) <= MAX_KEY_BYTES else None


def _track(key: str, value: memoryview, entry: Entry) -> Track:
    """Reads one value of the LMDB.

    It holds `motioncode [T, >=111]` and, in pairs, `audio [N]` and maybe `speech_mask [T]`.
    """
    arrays = read_npz(value, ("motioncode", "audio", "speech_mask"), origin=f"record {key!r}")
    code, audio, mask = (arrays.get(name) for name in ("motioncode", "audio", "speech_mask"))
    if code is None or code.dtype.kind != "f" or code.ndim != 2 or not 111 <= code.shape[1] <= MAX_CHANNELS:
        found = "none" if code is None else f"{code.dtype} {list(code.shape)}"
        raise UserError(f"record {key!r} must hold float motioncode [T, 111 or more], got {found}")
    if len(entry.parts) == 2 and audio is None:
        raise UserError(f"record {key!r} of a pair holds no audio")
    motion = from_motioncode(code)
    return Track(
        motion=motion.astype(np.float32) if motion.dtype == np.float64 else motion,
        audio=None if audio is None else flat_audio(audio, key),
        mask=None if mask is None else flat_mask(mask, key),
        identity=identity(key),
    )


def flat_audio(audio: np.ndarray, key: str) -> np.ndarray:
    """Returns samples `[N]` int16 or float32 out of `[N]`, `[1, N]` or `[N, 1]`.

    Raises UserError for anything else.
    """
    if audio.size != max(audio.shape, default=0) or audio.dtype not in (np.int16, np.float16, np.float32, np.float64):
        raise UserError(f"record {key!r} must hold int16 or float audio [N], got {audio.dtype} {list(audio.shape)}")
    audio = audio.reshape(-1)
    return audio if audio.dtype == np.int16 else audio.astype(np.float32, copy=False)


def flat_mask(mask: np.ndarray, key: str) -> np.ndarray:
    """Returns a speech mask `[T]` bool out of numbers `[T]`, `[1, T]` or `[T, 1]`.

    Raises UserError for anything else.
    """
    if mask.size != max(mask.shape, default=0) or mask.dtype.kind not in "bfiu":
        raise UserError(f"record {key!r} must hold a speech_mask [T] of 0 and 1, got {mask.dtype} {list(mask.shape)}")
    return mask.reshape(-1) > 0.5
