"""The store, read: a folder of shards, their index and a manifest, local or behind a URL.

`store.writer` makes it. In the folder: `{train,val,test}.array_record-NNNNN` (chunks of motion),
the same under `audio/`, `index/` (what is known of each record), `manifest.json`. Folder and
`audio/` are a tensorflow-datasets dataset each (`builder_from_directory`).
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from data_pipelines.phones import Speech
from data_pipelines.record import SPLITS, Record
from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store import chunks, remote
from data_pipelines.store import tfds as tfds_layout
from data_pipelines.store.index import NO_AUDIO, Index, load_index
from data_pipelines.store.manifest import REMEDY as _REMEDY
from data_pipelines.store.manifest import read_manifest
from data_pipelines.store.shard_cache import BROKEN, ShardFiles
from data_pipelines.store.writer import AUDIO_FOLDER, INDEX_FOLDER, MANIFEST, write_store
from data_pipelines.windows import to_float
from unils_jax.errors import UserError, one_line
from unils_jax.motion import HEAD, MOTION_DIM, SAMPLES_PER_FRAME
from unils_jax.runtime import local_path

__all__ = ["MANIFEST", "SPLITS", "Store", "StoredRecord", "read_manifest", "write_store"]
Decoded = TypeVar("Decoded")


class Store:
    """A store, opened lazily: an index on its first use, shards on their first read.

    Instances pickle without them. `cache_bytes` bounds the chunks of motion that are kept in memory
    between reads, in each process. Raises UserError that names the file where the folder is no
    store, or a file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike, *, cache_bytes: int = 0):
        self.path = str(path) if remote.is_remote(path) else local_path(path, "store")
        self.cache_bytes = cache_bytes
        self.manifest = read_manifest(self.path)
        self._open()

    def _open(self) -> None:
        self._indices: dict[str, Index] = {}
        self.motion_files = ShardFiles(self.local_file, self.cache_bytes)
        self.audio_files = ShardFiles(self.local_file, 0, large_chunks=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "cache_bytes", "manifest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def expression_basis(self) -> str:
        """The meaning of the 100 expression channels: `flame` or `standin`."""
        return self.manifest["expression_basis"]

    def channel_statistics(self, *, centred: bool = True) -> ChannelStatistics:
        """Returns those of the training split, head rotation `centred` or as it was.

        The manifest holds them centred. Otherwise the mean of every person, which the index holds,
        is put back: exact but for the rounding of the stored dtype.
        """
        statistics = ChannelStatistics.from_json(self.manifest["statistics"])
        if centred:
            return statistics
        index = self.index("train")
        seen = np.unpackbits(index.observed, axis=-1, count=MOTION_DIM)[..., HEAD]
        seen = seen * (np.arange(seen.shape[1]) < index.people[:, None])[..., None]
        return statistics.with_offsets(HEAD, index.head_mean, seen * index.frames.astype(np.int64)[:, None, None])

    def statistics(self) -> tuple[Float32[np.ndarray, "108"], Float32[np.ndarray, "108"]]:
        """Returns mean and standard deviation per channel, over all frames of the training split.

        The head rotation is centred. Raises UserError where the store has no motion to train on.
        """
        return self.channel_statistics().normalisation(str(self.path))

    def index(self, split: str) -> Index:
        """Returns the index of a split; without rows where the split has no record."""
        if split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, got {split!r}")
        if split not in self._indices:
            self._indices[split] = self._load_index(split)
        return self._indices[split]

    def _load_index(self, split: str) -> Index:
        count = self.manifest["splits"][split]["count"]
        if not count:
            return Index.empty()
        file = self.local_file(f"{INDEX_FOLDER}/{split}.npz")
        try:
            index, _ = load_index(file)
        except BROKEN as error:
            raise UserError(f"{file} is damaged ({one_line(error)}){_REMEDY}") from None
        if len(index) != count:
            raise UserError(f"{file} lists {len(index)} records, the manifest says {count}{_REMEDY}")
        needed, held = index.motion_bytes(self.manifest["dtypes"]["motion"]), self._shard_bytes(split)
        if needed > held:
            # What reads windows or records takes memory by the index: it is compared first.
            raise UserError(f"{file} lists motion of {needed} bytes, the shards hold {held}{_REMEDY}")
        return index

    def _shard_bytes(self, split: str) -> int:
        """Returns the bytes of a split's files of motion, of a local store as they are."""
        names = [name for name in self.manifest["files"] if name.startswith(f"{split}.array_record-")]
        if remote.is_remote(self.path):
            return sum(self.manifest["files"][name]["bytes"] for name in names)
        return sum((self.path / name).stat().st_size for name in names if (self.path / name).is_file())

    def records(self, split: str) -> list[dict[str, Any]]:
        """Describes each record of a split without reading it: see `Index.describe`."""
        index = self.index(split)
        return [index.describe(i) for i in range(len(index))]

    def lengths(self, split: str) -> np.ndarray:
        """Returns the frames of each record of a split, without reading a record."""
        return self.index(split).frames

    def source(self, split: str, i: int, person: int | None = None) -> "StoredRecord":
        """Returns record i for `windows.cut_window`, nothing read yet.

        With `person` it is that person alone.
        """
        count = len(self.index(split))
        if not 0 <= i < count:
            raise UserError(f"{self.path} has {count} records in {split}, there is no record {i}")
        return StoredRecord(self, split, i, person)

    def read(self, split: str, i: int, *, with_audio: bool = True) -> Record:
        """Reads record i of a split, whole.

        Without audio it is None, and its samples are not read.
        """
        return self.source(split, i).read(with_audio=with_audio)

    def local_file(self, name: str) -> Path:
        """Returns a file of the store on this machine; a remote one is fetched first.

        Its size is checked.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise UserError(f"{name} is not a file of the store {self.path}{_REMEDY}")
        if remote.is_remote(self.path):
            return remote.fetch(self.path, name, entry["sha256"], entry["bytes"])
        file = self.path / name
        if not file.is_file():
            raise UserError(f"{file} is missing from its store{_REMEDY}")
        if file.stat().st_size != entry["bytes"]:
            raise UserError(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}{_REMEDY}")
        return file


class StoredRecord:
    """One record of a store of which only what is asked for is read.

    With `person` it is that person alone, without audio and mask.
    """

    def __init__(self, store: Store, split: str, i: int, person: int | None = None):
        index = store.index(split)
        self._store, self._split, self._i = store, split, i
        self._alone = person is not None
        self._people = range(person, person + 1) if self._alone else range(int(index.people[i]))
        self._stride = int(index.people[i])
        self._dtype = store.manifest["dtypes"]["motion"]
        self.num_frames = int(index.frames[i])
        self.num_people = len(self._people)
        self.has_audio = not self._alone and index.samples[i] != NO_AUDIO
        self.num_samples = min(int(index.samples[i]), self.num_frames * SAMPLES_PER_FRAME)  # NO_AUDIO is negative
        self.observed = index.observed_of(i)[self._people.start : self._people.stop]

    @property
    def name(self) -> str:
        """The record's name."""
        return self._store.index(self._split).name(self._i)

    def speech(self) -> tuple[Speech, ...]:
        """Reads what each person said, as `Record.speech`, without motion and audio."""
        said = self._events().get("speech", [])[self._people.start : self._people.stop]
        return tuple(Speech.from_json(values) for values in said)

    def _events(self) -> dict[str, Any]:
        return self._guarded(self._store.motion_files, "", [(0, 0)], lambda value, _: chunks.events_of(value))[0]

    @cached_property
    def _head_mean(self) -> np.ndarray:
        return self._store.index(self._split).head_mean[self._i].astype(self._dtype)

    def frames(
        self, spans: Sequence[tuple[int, int, int]], *, centred: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Returns motion `[last - first, 108]` and speech mask of each `(person, first, last)`.

        The head rotation is `centred` or as it was.
        """
        size = chunks.CHUNK_FRAMES
        needed = sorted(
            {(k, self._people[p]) for p, first, last in spans for k in range(first // size, -(-last // size))}
        )
        found = dict(zip(needed, self._motion_chunks(needed), strict=True))
        out = []
        for person, first, last in spans:
            person = self._people[person]
            parts = []
            for k in range(first // size, -(-last // size)):
                motion, mask = found[k, person]
                cut = slice(max(0, first - k * size), last - k * size)
                parts.append((motion[cut], None if mask is None else mask[cut]))
            motion = np.concatenate([motion for motion, _ in parts])
            if centred:
                motion[:, HEAD] -= self._head_mean[person]
            masked = not self._alone and parts[0][1] is not None
            out.append((motion, np.concatenate([mask for _, mask in parts]) if masked else None))
        return out

    def audio(self, first: int, last: int) -> np.ndarray:
        """Returns samples `first`..`last` `[P, last - first]` float32.

        They are zero behind the end of the track and behind T * 640.
        """
        samples = np.zeros((self.num_people, last - first), np.float32)
        size = chunks.CHUNK_SAMPLES
        end = min(last, self.num_samples)
        if end <= first:
            return samples
        needed = [(k, p) for k in range(first // size, -(-end // size)) for p in self._people]
        for (k, person), track in zip(needed, self._audio_chunks(needed), strict=True):
            begin = max(first, k * size)
            chunk = track[begin - k * size : end - k * size]
            samples[person, begin - first : begin - first + len(chunk)] = to_float(chunk)
        return samples

    def read(self, *, with_audio: bool = True) -> Record:
        """Reads the whole record, head rotation as it was."""
        index, i = self._store.index(self._split), self._i
        count = chunks.num_chunks(self.num_frames)
        needed = [(k, p) for k in range(count) for p in self._people]
        parts = self._motion_chunks(needed)
        shape = (count, self.num_people)
        motion = _joined([motion for motion, _ in parts], *shape)
        mask = _joined([mask for _, mask in parts], *shape) if index.has_mask[i] and not self._alone else None
        audio = _joined(self._audio_chunks(needed), *shape) if with_audio and self.has_audio else None
        events = self._events()
        if self._alone and "speech" in events:
            events["speech"] = events["speech"][self._people.start : self._people.stop]
        observed = None if self.observed.all() else self.observed
        return Record(
            name=index.name(i),
            motion=motion,
            audio=audio,
            speech_mask=mask,
            expression_basis=self._store.expression_basis,
            events=events,
            identities=index.identities(i)[self._people.start : self._people.stop],
            observed=observed,
            source=index.source(i),
        )

    def _motion_chunks(self, needed: Sequence[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        has_mask = bool(self._store.index(self._split).has_mask[self._i])

        def decode(value: bytes, k: int) -> tuple[np.ndarray, np.ndarray | None]:
            motion, mask = chunks.motion_of(value, self._dtype)
            frames = min(chunks.CHUNK_FRAMES, self.num_frames - k * chunks.CHUNK_FRAMES)
            if len(motion) != frames or (mask is not None) != has_mask or (has_mask and len(mask) != frames):
                raise UserError(f"a chunk of {len(motion)} frames where {frames} are expected")
            return motion, mask

        return self._guarded(self._store.motion_files, "", needed, decode)

    def _audio_chunks(self, needed: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        last = chunks.num_chunks(self.num_frames) - 1
        samples = int(self._store.index(self._split).samples[self._i])

        def decode(value: bytes, k: int) -> np.ndarray:
            track = chunks.audio_of(value, self._store.manifest["dtypes"]["audio"])
            left = max(0, samples - k * chunks.CHUNK_SAMPLES)
            expected = left if k == last else min(chunks.CHUNK_SAMPLES, left)
            if len(track) != expected:
                raise UserError(f"a chunk of {len(track)} samples where {expected} are expected")
            return track

        return self._guarded(self._store.audio_files, f"{AUDIO_FOLDER}/", needed, decode)

    def _guarded(
        self, files: ShardFiles, folder: str, needed: Sequence[tuple[int, int]], decode: Callable[[bytes, int], Decoded]
    ) -> list[Decoded]:
        """Returns the decoded chunks `(k, person)`.

        Raises UserError that names store, split, record and shard.
        """
        index, i = self._store.index(self._split), self._i
        first = int((index.first_audio if folder else index.first_motion)[i])
        shard = folder + tfds_layout.shard_file(self._split, int(index.shard[i]))
        positions = [first + k * self._stride + person for k, person in needed]
        try:
            values = files.read(shard, positions)
            return [decode(value, k) for value, (k, _) in zip(values, needed, strict=True)]
        except BROKEN as error:
            raise UserError(
                f"record {self.name!r} (number {i} of {self._split} in {self._store.path}) cannot be read from "
                f"{shard}: {one_line(error).removesuffix(_REMEDY)}{_REMEDY}"
            ) from None


def _joined(parts: list[np.ndarray], count: int, people: int) -> np.ndarray:
    """Joins `count` chunks of each person, which alternate, to `[P, ...]`."""
    return np.stack([np.concatenate(parts[person::people]) for person in range(people)])
