"""Features of a store's audio, computed once and kept in a folder of their own.

The folder holds shards `SPLIT-NNNNN.bin` (raw numbers of a few records each), a `.json` for each
(where a record lies in it), and `features.json`, written last. `unils data encode` makes it and
training reads windows of it in place of audio. NumPy alone: what encodes is handed in.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from data_pipelines.store.reader import Store
from data_pipelines.windows import STRIDE_FRAMES, RandInt, WindowSource, cut_window
from unils_jax.errors import UserError, one_line
from unils_jax.files import atomic_output, write_text
from unils_jax.motion import Window

MANIFEST = "features.json"
FORMAT_VERSION = 1
MODES = ("window", "record")
DTYPES = ("bf16", "int8", "float32")
RECORDS_PER_SHARD = 8

# What reading damaged JSON, or what is not of the expected form, raises.
_DAMAGE = (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, UserError)

Features = Float32[np.ndarray, "K A E"]
# (split, record) -> its features: of all its windows one after another ("window"), or of its audio.
Encode = Callable[[str, int], Features]


@dataclass(frozen=True)
class FeatureFacts:
    """What features were made of; training takes them only where all of it is the same."""

    mode: str  # "window": of windows at fixed starts, each as training encodes it; "record": of the whole audio
    store: str  # `store_digest` of the store
    encoder: str  # digest of the encoder's sizes and weights
    tracks: str  # "each" person's, or both "mixed"
    frames_per_window: int
    dim: int
    # Samples of audio from one frame to the next; of records alone.
    hop_samples: int
    window: Window

    def problems(self, wanted: "FeatureFacts") -> list[str]:
        """Lists what is not as a run needs it."""
        words = {"store": "of another store", "encoder": "of another audio encoder"}
        different = [name for name in asdict(self) if getattr(self, name) != getattr(wanted, name)]
        return [words.get(name, f"{name} is {getattr(self, name)}, not {getattr(wanted, name)}") for name in different]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def store_digest(store: Store) -> str:
    """Returns a digest of the store's records and audio."""
    files = {name: entry for name, entry in store.manifest["files"].items() if name.startswith(("index/", "audio/"))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class _Error:
    """How far the kept numbers are from the encoder's, over all of them."""

    squares: float = 0.0
    difference: float = 0.0
    largest: float = 0.0

    def add(self, features: np.ndarray, kept: np.ndarray) -> None:
        error = features.astype(np.float64) - kept
        self.squares += float(np.square(features, dtype=np.float64).sum())
        self.difference += float(np.square(error).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))

    def join(self, other: "_Error") -> None:
        self.squares += other.squares
        self.difference += other.difference
        self.largest = max(self.largest, other.largest)

    @property
    def relative(self) -> float:
        return (self.difference / self.squares) ** 0.5 if self.squares else 0.0


def pack(features: Features, dtype: str) -> bytes:
    """Returns the bytes that are kept; of int8 each frame's largest magnitude comes before it."""
    if dtype == "float32":
        return np.ascontiguousarray(features, np.float32).tobytes()
    if dtype == "bf16":
        bits = np.ascontiguousarray(features, np.float32).view(np.uint32)
        # The upper half of a float32, rounded to the nearest, ties to even.
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
    scale = np.abs(features).max(-1, keepdims=True).astype(np.float32) / np.float32(127)
    numbers = np.rint(features / np.where(scale > 0, scale, 1)).astype(np.int8)
    return np.concatenate([scale.view(np.int8), numbers], axis=-1).tobytes()


def frame_bytes(dim: int, dtype: str) -> int:
    """Returns the bytes of a frame."""
    return {"float32": 4 * dim, "bf16": 2 * dim, "int8": 4 + dim}[dtype]


def unpack(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the float32 numbers of bytes `[..., frame_bytes]` that `pack` made."""
    raw = np.ascontiguousarray(raw)
    if dtype == "float32":
        return raw.view(np.float32)
    if dtype == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw[..., 4:].view(np.int8) * np.ascontiguousarray(raw[..., :4]).view(np.float32)


def write_features(
    folder: str | os.PathLike,
    facts: FeatureFacts,
    counts: Mapping[str, int],
    encode: Encode,
    *,
    dtype: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the folder, shard after shard, and returns its manifest.

    Shards that are there are kept: after an interruption it goes on. Raises UserError where the
    folder was begun with other features.

    Args:
        folder: Where to write.
        facts: What the features are made of.
        counts: Records of each split.
        encode: Makes the features of a record.
        dtype: How numbers are kept, one of DTYPES.
        progress: Takes the number of records that are done, and of all.
    """
    folder = Path(folder)
    begun = {"format_version": FORMAT_VERSION, "dtype": dtype, "facts": asdict(facts)}
    _check_begun(folder, begun)
    total, done, error = sum(counts.values()), 0, _Error()
    for split, count in counts.items():
        for first in range(0, count, RECORDS_PER_SHARD):
            records = range(first, min(first + RECORDS_PER_SHARD, count))
            stem = folder / f"{split}-{first // RECORDS_PER_SHARD:05d}"
            if not stem.with_suffix(".json").is_file():
                _write_shard(stem, [partial(encode, split, record) for record in records], dtype)
            error.join(_kept_error(stem))
            done += len(records)
            progress(done, total)
    manifest = {**begun, "splits": dict(counts)}
    manifest["error"] = {"relative_rms": error.relative, "largest": error.largest}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _kept_error(stem: Path) -> _Error:
    try:
        values = json.loads(stem.with_suffix(".json").read_text())["error"]
        return _Error(*(float(values[name]) for name in ("squares", "difference", "largest")))
    except _DAMAGE as error:
        raise _damaged(stem, error) from None


def _damaged(stem: Path, error: Exception) -> UserError:
    return UserError(f"features {stem} are damaged ({one_line(error)}); remove them and encode again")


def _check_begun(folder: Path, begun: dict[str, Any]) -> None:
    file = folder / "begun.json"
    if not file.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no features; name a new folder")
        write_text(file, json.dumps(begun, indent=1) + "\n")
    elif file.read_text(errors="replace") != json.dumps(begun, indent=1) + "\n":
        raise UserError(f"{folder} holds features of another store, encoder or setting; name a new folder")


def _write_shard(stem: Path, records: Sequence[Callable[[], Features]], dtype: str) -> None:
    shapes, error = [], _Error()
    with atomic_output(stem.with_suffix(".bin")) as partial_file, open(partial_file, "wb") as file:
        for make in records:
            features = make()
            shapes.append(list(features.shape[:2]))
            if features.size:
                raw = pack(features, dtype)
                file.write(raw)
                rows = np.frombuffer(raw, np.uint8).reshape(*features.shape[:2], -1)
                error.add(features, unpack(rows, dtype))
    # Behind its shard: where it is, the shard is whole.
    write_text(stem.with_suffix(".json"), json.dumps({"shapes": shapes, "error": asdict(error)}) + "\n")


class FeatureStore:
    """A folder of features, opened lazily; instances pickle without what they opened."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            version, self.dtype, self.splits = (manifest[name] for name in ("format_version", "dtype", "splits"))
            self.error, values = manifest["error"], manifest["facts"]
            self.facts = FeatureFacts(**{**values, "window": Window(**values["window"])})
            facts = vars(self.facts) | vars(self.facts.window)
            sizes = [v for n, v in facts.items() if n not in ("mode", "store", "encoder", "tracks", "window")]
            if self.facts.dim < 1 or not all(map(_is_size, (*sizes, *self.splits.values()))):
                raise ValueError("sizes must be whole numbers")
        except FileNotFoundError:
            raise UserError(
                f"{folder} holds no finished features ({MANIFEST} is missing); run `unils data encode --out {folder}`"
            ) from None
        except _DAMAGE as error:
            raise UserError(f"{self.folder / MANIFEST} is damaged ({one_line(error)}); encode again") from None
        if version != FORMAT_VERSION or self.dtype not in DTYPES or self.facts.mode not in MODES:
            raise UserError(f"{self.folder / MANIFEST} is of another format; encode again")

    @lru_cache(maxsize=64)  # noqa: B019 (a loader's stores live as long as it does)
    def _shard(self, split: str, number: int) -> tuple[np.ndarray, list[list[int]]]:
        stem = self.folder / f"{split}-{number:05d}"
        try:
            shapes = json.loads(stem.with_suffix(".json").read_text())["shapes"]
            count = min(RECORDS_PER_SHARD, self.splits[split] - number * RECORDS_PER_SHARD)
            if len(shapes) != count or not all(_is_size(k) and _is_size(a) and k in (1, 2) for k, a in shapes):
                raise ValueError(f"it must hold one or two tracks of each of {count} records")
            needed = sum(k * a for k, a in shapes) * frame_bytes(self.facts.dim, self.dtype)
            held = stem.with_suffix(".bin").stat().st_size
            if held != needed:
                raise ValueError(f"{stem.name}.bin holds {held} bytes, must be {needed}")
            raw = np.memmap(stem.with_suffix(".bin"), np.uint8, "r") if held else np.zeros(0, np.uint8)
        except _DAMAGE as error:
            raise _damaged(stem, error) from None
        return raw.reshape(-1, frame_bytes(self.facts.dim, self.dtype)), shapes

    def frames(self, split: str, record: int, first: int, count: int) -> Features:
        """Returns frames `first`..`first + count` of a record; beyond its ends they are zero."""
        rows, shapes = self._shard(split, record // RECORDS_PER_SHARD)
        place = record % RECORDS_PER_SHARD
        begin, (tracks, total) = sum(k * a for k, a in shapes[:place]), shapes[place]
        low, high = max(first, 0), min(first + count, total)
        features = np.zeros((tracks, count, self.facts.dim), np.float32)
        for track in range(tracks):
            if high > low:
                start = begin + track * total
                features[track, low - first : high - first] = unpack(rows[start + low : start + high], self.dtype)
        return features

    def cut(
        self, source: WindowSource, i: int, randint: RandInt, window: Window, *, centred: bool, place: tuple[str, int]
    ) -> dict[str, np.ndarray]:
        """Cuts the window of item `i` as `cut_window`, with `audio_features` in place of `audio`.

        Of mode "window" it begins at its item's fixed start, without jitter.
        """
        facts, drawn = self.facts, []

        def draw(low: int, high: int) -> int:
            is_start = not drawn
            drawn.append(low if is_start and facts.mode == "window" else randint(low, high))
            return drawn[-1]

        cut = cut_window(source, i, draw, window, centred=centred, audio=False)
        if facts.mode == "window":
            first = i // STRIDE_FRAMES * facts.frames_per_window
        else:
            first = window.audio_span(min(drawn[0], source.num_frames - window.frames))[0] // facts.hop_samples
        cut["audio_features"] = self.frames(*place, first, facts.frames_per_window)
        return cut
