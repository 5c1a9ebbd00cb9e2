"""UniTalker's data layout: sets of annotated speech in different annotations, each a folder.

Untrusted.

In a set's folder: `train.json`, `val.json`, `test.json` (`info.id_list` and `data`, whose paths are
relative to them), annotations `.npy [T, ...]`, audio, `id_template.npy [subjects, ...]`, for large
annotations `pca.npz`. Nothing is unpickled, sizes are bounded, and paths stay in the folder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float32

from data_pipelines.record import SPLITS
from data_pipelines.sources.base import DAMAGED, NOT_FINITE, SHORT, SkippedEntry
from unils_jax.audio import MAX_RATE, MIN_RATE, read_audio
from unils_jax.errors import UserError
from unils_jax.files import npy_shape, read_npy_file, read_npz_file
from unils_jax.motion import SAMPLE_RATE

MAX_INDEX_BYTES = 1 << 28
MAX_S, MIN_S = 20.0, 0.5  # of a clip: what is longer is cut at its end, what is shorter left out
# Every so many frames are kept of each rate, which leaves 25 or 30 a second.
STRIDES = {25: 1, 30: 1, 60: 2, 100: 4}
TEMPLATES, PCA_FILE = "id_template.npy", "pca.npz"
_FIELDS = {"annot_path": str, "audio_path": str, "id": int, "annot_type": str}


@dataclass(frozen=True)
class TalkerSet:
    """One of UniTalker's sets."""

    folder: Path
    scale: float = 1.0  # factor of annotations and templates
    repeats: int = 1  # how often an epoch shows a record


@dataclass(frozen=True)
class TalkerEntry:
    """One record as an index lists it; paths are inside the set's folder."""

    number: int  # of its set among the sets
    kind: str  # the annotation's name
    subject: int  # its row among the set's subjects
    annotation: str  # path
    audio: str  # path
    fps: int  # native frames a second, a key of STRIDES

    @property
    def model_fps(self) -> int:
        """25 or 30, the rate after frames were left out at the stride of the native rate."""
        return self.fps // STRIDES[self.fps]


class TalkerClip(NamedTuple):
    """One clip as it is trained on."""

    audio: np.ndarray  # [N] at 16 kHz as recorded
    motion: np.ndarray  # [T, D], scaled
    template: np.ndarray  # [D], scaled
    identity: int  # the person's row of the identity table


class TalkerSplit:
    """The records of one split of several sets, whose order is that of the identity table.

    Picklable.

    Raises UserError where a set's index is none, names paths outside its folder or other subjects
    than its training split does.
    """

    def __init__(self, sets: Sequence[TalkerSet], split: str):
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if not sets:
            raise UserError("UniTalker's data need at least one set; name its folder")
        self.sets, self.split = tuple(sets), split
        listed = [_read_index(number, one, split) for number, one in enumerate(sets)]
        self.subjects = [subjects for subjects, _ in listed]
        self.entries = [entry for _, entries in listed for entry in entries]

    @property
    def num_identities(self) -> int:
        """Rows of the identity table: every set's subjects in order, then the pivot."""
        return sum(map(len, self.subjects)) + 1

    def offset(self, number: int) -> int:
        """Returns the row of a set's first subject."""
        return sum(map(len, self.subjects[:number]))

    def describe(self) -> str:
        """Returns a checksum of what the sets' records are."""
        decisive = [[one.scale, one.repeats, subjects] for one, subjects in zip(self.sets, self.subjects, strict=True)]
        return hashlib.blake2b(repr((decisive, self.entries)).encode(), digest_size=16).hexdigest()

    @cached_property
    def templates(self) -> list[Float32[np.ndarray, "subjects D"]]:
        """The scaled templates of every set."""
        return [_templates(one, len(subjects)) for one, subjects in zip(self.sets, self.subjects, strict=True)]

    def length(self, entry: TalkerEntry) -> tuple[int, int]:
        """Returns frames and samples of a record's clip, from the heads of its files.

        Raises SkippedEntry where they cannot be read, and for a clip that is too short.
        """
        folder = self.sets[entry.number].folder
        try:
            frames, samples = npy_shape(folder / entry.annotation)[0], _num_samples(folder / entry.audio)
        except UserError as error:
            raise SkippedEntry(DAMAGED, str(error)) from None
        return clip_length(frames, samples, entry)

    def read(self, entry: TalkerEntry) -> TalkerClip:
        """Reads a record's clip.

        Raises SkippedEntry where a file is damaged or another's, values are not finite, or under
        0.5 s are left.
        """
        one = self.sets[entry.number]
        try:
            annotation = read_npy_file(one.folder / entry.annotation)
            audio = _read_audio(one.folder / entry.audio)
        except UserError as error:
            raise SkippedEntry(DAMAGED, str(error)) from None
        template = self.templates[entry.number][entry.subject]
        if annotation.dtype.kind not in "fiu" or not len(annotation) or annotation[0].size != template.size:
            found = f"{annotation.dtype} {list(annotation.shape)}"
            raise SkippedEntry(DAMAGED, f"{entry.annotation} must hold {template.size} numbers a frame, got {found}")
        frames, samples = clip_length(len(annotation), len(audio), entry)
        motion = annotation[:: STRIDES[entry.fps]][:frames].reshape(frames, -1).astype(np.float32) * np.float32(
            one.scale
        )
        for what, array in (("annotation", motion), ("audio", audio)):
            if not np.isfinite(array).all():
                raise SkippedEntry(NOT_FINITE, f"{what} of {entry.annotation}", frames)
        return TalkerClip(audio[:samples], motion, template, self.offset(entry.number) + entry.subject)


def clip_length(num_frames: int, num_samples: int, entry: TalkerEntry) -> tuple[int, int]:
    """Returns frames and samples of the clip of a record with so many.

    A clip is the first seconds that both have, 20 at most, halves rounded to even. Raises
    SkippedEntry below 0.5 s.
    """
    fps = entry.model_fps
    kept = -(-num_frames // STRIDES[entry.fps])
    seconds = min(num_samples / SAMPLE_RATE, kept / fps, MAX_S)
    if seconds < MIN_S:
        raise SkippedEntry(SHORT, f"{entry.annotation} has {seconds:.2f} s, at least {MIN_S} are needed", kept)
    return round(seconds * fps), round(seconds * SAMPLE_RATE)


def read_pca(folder: Path) -> tuple[Float32[np.ndarray, "n D"], Float32[np.ndarray, " D"]]:
    """Reads all components of a set's `pca.npz` and the mean.

    Raises UserError where it holds none that fit together.
    """
    arrays = read_npz_file(folder / PCA_FILE, ("components_to_data", "original_data_mean"))
    components, mean = (arrays.get(name) for name in ("components_to_data", "original_data_mean"))
    if components is None or mean is None or components.ndim != 2 or components.shape[1] != mean.size or not len(mean):
        found = {name: list(array.shape) for name, array in arrays.items()}
        raise UserError(
            f"{folder / PCA_FILE} must hold components_to_data [n, D] and original_data_mean [D], got {found}"
        )
    return components.astype(np.float32), mean.reshape(-1).astype(np.float32)


def _read_index(number: int, one: TalkerSet, split: str) -> tuple[list[str], list[TalkerEntry]]:
    """Reads subjects and records of a set's split."""
    subjects, rows = _index_parts(one.folder / f"{split}.json")
    trained = one.folder / "train.json"
    if split != "train" and trained.exists() and _index_parts(trained)[0] != subjects:
        raise UserError(f"{one.folder / split}.json lists other subjects than train.json; both must list the same")
    entries, problems = [], []
    for i, row in enumerate(rows):
        try:
            entries.append(_entry(number, row, len(subjects)))
        except ValueError as error:
            problems.append(f"record {i}: {error}")
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"{one.folder / split}.json: {'; '.join(problems[:10])}{more}; mend or leave them out")
    kinds = {entry.kind for entry in entries}
    if len(kinds) > 1:
        raise UserError(f"{one.folder / split}.json mixes the kinds {', '.join(sorted(kinds))}; a set has one")
    return subjects, entries


def _index_parts(path: Path) -> tuple[list[str], list[Any]]:
    """Reads `info.id_list` and `data` of an index file."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"{path} is larger than {MAX_INDEX_BYTES} bytes, no index is; use UniTalker's own")
        tree = json.loads(path.read_bytes())
        subjects, rows = tree["info"]["id_list"], tree["data"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the folder of one of UniTalker's sets"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} must hold info.id_list and data as UniTalker's index does; get a fresh copy") from None
    if not (isinstance(subjects, list) and isinstance(rows, list)):
        raise UserError(f"{path}: info.id_list and data must be lists; get a fresh copy")
    return [str(subject)[:200] for subject in subjects], rows


def _entry(number: int, row: object, num_subjects: int) -> TalkerEntry:
    if not isinstance(row, dict):
        raise ValueError("must be an object")
    for name, kind in _FIELDS.items():
        if type(row.get(name)) is not kind:
            raise ValueError(f"{name} must be {kind.__name__}, got {row.get(name)!r:.60}")
    if not 0 <= row["id"] < num_subjects:
        raise ValueError(f"id must be from 0 to {num_subjects - 1}, got {row['id']}")
    fps = row.get("fps")
    if not isinstance(fps, int | float) or fps not in STRIDES:
        raise ValueError(f"fps must be one of {', '.join(map(str, STRIDES))}, got {fps!r:.40}")
    for name in ("annot_path", "audio_path"):
        path = Path(row[name])
        if path.is_absolute() or ".." in path.parts or "\0" in row[name]:
            raise ValueError(f"{name} must stay in the set's folder, got {row[name]!r:.120}")
    return TalkerEntry(number, row["annot_type"], row["id"], row["annot_path"], row["audio_path"], int(fps))


def _templates(one: TalkerSet, num_subjects: int) -> np.ndarray:
    path = one.folder / TEMPLATES
    array = read_npy_file(path)
    if array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) < num_subjects or not np.isfinite(array).all():
        raise UserError(
            f"{path} must hold finite templates [{num_subjects}, ...], got {array.dtype} {list(array.shape)}"
        )
    return array.reshape(len(array), -1).astype(np.float32) * np.float32(one.scale)


# Bytes of a sample of plain wav files.
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


def _num_samples(path: Path) -> int:
    """Returns the samples at 16 kHz of an audio file, by its head where that can be trusted.

    Compressed sound has its own time (gaps, a late start, damage, chained streams), which only
    reading it tells, and a header may lie about the size.
    """
    if path.suffix == ".npy":
        return npy_shape(path)[0]
    try:
        about = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return len(_read_audio(path))
    width = _SAMPLE_BYTES.get(about.subtype)
    needed = 0 if width is None else about.frames * about.channels * width
    plain = about.format in ("WAV", "WAVEX") and MIN_RATE <= about.samplerate <= MAX_RATE
    if not plain or not 0 < needed <= path.stat().st_size:
        return len(_read_audio(path))
    return -(-about.frames * SAMPLE_RATE // about.samplerate)


def _read_audio(path: Path) -> np.ndarray:
    """Reads 16 kHz mono float32; a .npy holds such samples (int16: full scale is 32768)."""
    if path.suffix != ".npy":
        return read_audio(path)
    samples = read_npy_file(path)
    if samples.ndim != 1 or samples.dtype.kind not in "fi":
        raise UserError(f"{path} must hold samples [N] at 16 kHz, got {samples.dtype} {list(samples.shape)}")
    return samples.astype(np.float32) / np.float32(32768 if samples.dtype == np.int16 else 1)
