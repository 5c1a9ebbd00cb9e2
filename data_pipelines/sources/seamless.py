"""Meta's Seamless Interaction as it is downloaded: two participants of an interaction are a record.

The set has sound, turns and a body's joints, and no FLAME. Its head rotation is the product of the
SMPL-H rotations from the pelvis to the head; expression, jaw and eyes are not observed. The files
of a FLAME tracker, named by the same ids in a folder of their own, are taken instead.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_pipelines.sources.base import (
    DAMAGED,
    LENGTHS,
    MISSING,
    PARTNER,
    Entry,
    Reading,
    Shares,
    SkippedEntry,
    hashed_splits,
    mix_sound,
)
from data_pipelines.sources.seamless_files import (
    FILE_ID,
    Participant,
    Turns,
    as_file,
    find_files,
    participants,
    read_turns,
    split_of,
)
from data_pipelines.sources.tracking import Person, TrackOptions, Whole, cut, mapping_of
from data_pipelines.sources.unils_lmdb import identity
from data_pipelines.tracks.files import SUFFIXES, read_clip
from data_pipelines.tracks.mapping import Mapping
from data_pipelines.tracks.motion import extract
from data_pipelines.tracks.people import group_by_person
from data_pipelines.tracks.pieces import even_times, on_grid
from data_pipelines.tracks.rotations import compose
from unils_jax.audio import read_sound
from unils_jax.errors import UserError, counted, shown
from unils_jax.files import markdown_table, npz_names, read_npz_file
from unils_jax.motion import FPS, HEAD, MOTION_DIM, SAMPLES_PER_FRAME

FEATURE_FPS = 30.0
ORIENT, BODY, VALID = "smplh:global_orient", "smplh:body_pose", "smplh:is_valid"
BODY_JOINTS = 21
CHAIN = (2, 5, 8, 11, 14)  # of body_pose: spine1, spine2, spine3, neck, head
# The camera's y points down and its z away from it, FLAME's y up and z to the camera.
CAMERA_TO_FLAME = np.array([np.pi, 0.0, 0.0])
OBSERVED = np.zeros(MOTION_DIM, bool)
OBSERVED[HEAD] = True
MAX_EXCESS_S = 0.5  # by which the files of an interaction may differ; all are cut to the shortest
INSPECTED = 3  # feature files whose arrays the table lists

# Why an array is not taken, by the beginning of its name; the first that fits.
_IGNORED = (
    (r"movement\w*:expression", "coefficients of Meta's own face model, which are not FLAME's"),
    (r"movement\w*:FAU", "action units, which do not determine FLAME's coefficients"),
    (r"movement\w*:(gaze|head)_encodings", "encodings whose axes are not published"),
    (r"movement\w*:alignment_head_rotation", "angles whose axes and order are not published; SMPL-H has the head"),
    (r"movement\w*:[Ee]motion", "emotions, which have no channel"),
    (r"movement\w*:(frame_latent|hypernet)", "features of a network"),
    (r"movement\w*:is_valid", "flags of features that are not taken"),
    (r"smplh:\w+_hand_pose", "hands, which have no channel"),
    (r"\w+:\w*translation", "position of the head, which motion does not have"),
    (r"boxes_and_keypoints:", "places in the picture"),
    (r"metadata:transcript", "words, which records do not keep"),
)

log = logging.getLogger(__name__)


class _Features(NamedTuple):
    """One participant's files, read."""

    person: Person | None
    sound: np.ndarray  # [N] at 16 kHz
    turns: Turns | None


@dataclass(frozen=True)
class SeamlessSource:
    """A folder of the set, or of any part of it, with its folders or archives inside."""

    folder: Path
    split: str = ""  # the split of the whole folder; "": by the folders' names, or by hashes
    shares: Shares | None = None  # of train, val and test where hashes split; None: 80/10/10
    motion_folder: Path | None = None  # of a tracker's files named by ids; None: only the set's own
    options: TrackOptions = TrackOptions()  # of the tracker's files

    def describe(self) -> dict[str, Any]:
        """Returns a checksum of the names and sizes of all files, and how a tracker's are read."""
        digest = hashlib.blake2b(digest_size=16)
        for name, files in sorted(self._found.items()):
            digest.update(repr((name, sorted(files.values()))).encode())
        for name, clip in sorted(self._clips.items()):
            below = [clip] if clip.is_file() else sorted(path for path in clip.rglob("*") if path.is_file())
            digest.update(repr((name, [(path.name, path.stat().st_size) for path in below])).encode())
        parts = {part: [str(column), column.kind] for part, column in (self.mapping or _NOTHING).parts.items()}
        options = {"fps": self.options.fps, "max_gap_s": self.options.max_gap_s}
        return {"layout": "seamless", "files": digest.hexdigest(), "parts": parts, **options}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the list of all files, which processes that read entries do not need."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_found", "_ids")}

    @functools.cached_property
    def _found(self) -> dict[str, dict[str, tuple[str, int]]]:
        return find_files(self.folder)

    @functools.cached_property
    def _ids(self) -> set[str]:
        return {name.rpartition(".")[0] for files in self._found.values() for name in files}

    @functools.cached_property
    def _clips(self) -> dict[str, Path]:
        """The tracker's file, or folder, of each id."""
        clips: dict[str, Path] = {}
        for inside, folders, files in os.walk(self.motion_folder) if self.motion_folder else ():
            for name in sorted(folders):
                if FILE_ID.fullmatch(name):
                    clips.setdefault(name, Path(inside, name))
            folders[:] = [name for name in sorted(folders) if not FILE_ID.fullmatch(name)]
            for path in (Path(inside, name) for name in sorted(files)):
                if path.suffix[1:].lower() in SUFFIXES and FILE_ID.fullmatch(path.stem) and path.is_file():
                    clips.setdefault(path.stem, path)
        return clips

    @functools.cached_property
    def mapping(self) -> Mapping | None:
        """Which array of the tracker's files is which part of the face; None without files."""
        return mapping_of([self._clips[name] for name in sorted(self._clips)], self.options) if self._clips else None

    def entries(self) -> list[Entry]:
        """Lists all interactions by name. Raises UserError where the folder holds none."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder; check the path")
        if not self._found:
            raise UserError(f"{self.folder} holds no V.._S.._I.._P...wav, .npz or .json, in folders or .tar archives")
        parts = {name: tuple(sorted(part for part, _ in files.values())) for name, files in self._found.items()}
        splits = {name: {self.split or split_of(self.folder, part) for part in parts[name]} for name in parts}
        named = any(held != {""} for held in splits.values())
        if named and self.shares:
            raise UserError("--splits divides a folder without splits, but its folders or --split name them; leave it")
        if not named:
            people = {name: tuple(_identity(name, p.name) for p in participants(parts[name])) for name in parts}
            groups = group_by_person(list(parts), people)
            hashed = hashed_splits(sorted(set(groups.values())), self.shares)
            splits = {name: {hashed[groups[name]]} for name in parts}
        return [_entry(name, parts[name], splits[name]) for name in sorted(parts)]

    def table(self) -> str:
        """Returns what is taken from which files, what is missing and what is ignored, and why."""
        ids = self._ids
        tracked = len(ids & self._clips.keys())
        rows = [
            ("part", "array", "taken as"),
            ("layout", "seamless", f"{counted(len(self._found), 'interaction')} of {counted(len(ids), 'file id')}"),
            ("sound", ".wav", "16 kHz"),
            ("speech", "metadata:vad", "masks of speech"),
            ("head", f"{ORIENT}, {BODY}{list(CHAIN)}", "product of the rotations, from the camera's axes to FLAME's"),
            ("valid", VALID, "frames with a face"),
            *((part, "missing", "marked as missing") for part in ("expression", "jaw", "eyes")),
            *_ignored(self._inspected()),
        ]
        if self.motion_folder is None:
            return "\n".join(markdown_table(rows))
        instead = f"instead of the head above for {tracked} of {counted(len(ids), 'file id')}"
        rows.append(("motion", shown(str(self.motion_folder)), instead))
        return "\n".join(markdown_table([*rows, *(() if self.mapping is None else self.mapping.rows)]))

    def check(self) -> None:
        """Raises UserError where no file of the tracker has an id, or flags must decide."""
        if self.motion_folder is None:
            return
        if not self._ids & self._clips.keys():
            one = min(self._ids)
            raise UserError(f"{self.motion_folder} holds no file of a tracker named like {one}; name them by the ids")
        self._check_mapping()

    def _check_mapping(self) -> None:
        if self.mapping is not None and self.mapping.problems:
            raise UserError("; ".join(self.mapping.problems))

    def _inspected(self) -> list[str]:
        """Lists the arrays of the first feature files that can be read, and the keys of a .json."""
        names: dict[str, None] = {}
        parts = [part for files in self._found.values() for part, _ in files.values()]
        for part in [part for part in parts if part.endswith(".npz")][:INSPECTED]:
            with contextlib.suppress(UserError), as_file(self.folder, part) as path:
                names |= dict.fromkeys(npz_names(path))
        for part in [part for part in parts if part.endswith(".json")][:INSPECTED]:
            with contextlib.suppress(UserError), as_file(self.folder, part) as path:
                names |= dict.fromkeys(read_turns(path)[1])
        return list(names)

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Returns the reader; files are opened one by one.

        Raises UserError where flags must decide which array of a tracker is what.
        """
        self._check_mapping()
        yield self._read

    def _read(self, entry: Entry) -> Reading:
        people, notices, problems = participants(entry.parts), [], []
        if len(people) != 2:
            listed = ", ".join(person.name for person in people)
            count = counted(len(people), "participant")
            raise SkippedEntry(PARTNER, f"{count} ({listed}), two are needed", self._num_frames(people))
        without = [person.name for person in people if "wav" not in person.parts]
        if without:
            raise SkippedEntry(MISSING, f"no .wav of {' and '.join(without)}", self._num_frames(people))
        read: list[_Features] = []
        for person in people:
            try:
                read.append(self._features(entry, person, notices))
            except UserError as error:
                problems.append(_named(str(error), self.folder, self.motion_folder))
        if problems:
            frames = max((len(one.sound) // SAMPLES_PER_FRAME for one in read), default=0)
            raise SkippedEntry(DAMAGED, "; ".join(problems), frames)
        whole, frames_in = _fitted(entry, people, read, notices)
        for notice in notices:
            log.warning("%s: %s", shown(entry.name), notice)
        return cut(whole, tuple(notices), "seamless")._replace(frames_in=frames_in)

    def _num_frames(self, people: list[Participant]) -> int:
        """Returns how long the features of an interaction last, 0 where none can be read."""
        for part in (person.parts["npz"] for person in people if "npz" in person.parts):
            with contextlib.suppress(UserError), as_file(self.folder, part) as path:
                return round(len(np.atleast_1d(read_npz_file(path, (ORIENT,)).get(ORIENT, ()))) * FPS / FEATURE_FPS)
        return 0

    def _features(self, entry: Entry, person: Participant, notices: list[str]) -> _Features:
        """Reads the files of one participant. Raises UserError for a damaged one."""
        with as_file(self.folder, person.parts["wav"]) as path:
            heard = read_sound(path)
        said = [*heard.notices]
        sound, turns, motion = mix_sound(entry, heard, said), None, None
        if "json" in person.parts:
            with as_file(self.folder, person.parts["json"]) as path:
                turns, _ = read_turns(path)
        if turns is None:
            said.append("no metadata:vad, so that no mask of speech is kept")
        clip = self._clips.get(f"{entry.name}_{person.name}")
        if clip is not None:
            motion = self._tracked(clip, said)
        elif "npz" in person.parts:
            with as_file(self.folder, person.parts["npz"]) as path:
                motion = self._head(path, said)
        else:
            said.append("no motion: neither .npz nor a tracker's file; kept as sound")
        notices += [f"{person.name}: {notice}" for notice in said]
        return _Features(motion, sound, turns)

    def _tracked(self, path: Path, said: list[str]) -> Person:
        """Reads the motion of a tracker's file."""
        clip = extract(read_clip(path), self.mapping or _NOTHING)
        times = clip.times
        if self.options.fps is not None or times is None:
            if self.options.fps is None and clip.fps is None:
                said.append(f"{path.name} does not say its rate, taken to be the set's {FEATURE_FPS:g} frames a second")
            times = even_times(len(clip.values), self.options.fps or clip.fps or FEATURE_FPS)
        grid = on_grid(clip.values, clip.valid, times, self.options.max_gap_s)
        said += [f"{path.name}: {notice}" for notice in (*clip.notices, *grid.notices)]
        return Person(grid, clip.observed, len(times))

    def _head(self, path: Path, said: list[str]) -> Person:
        """Reads the head's rotation out of a feature file."""
        arrays = read_npz_file(path, (ORIENT, BODY, VALID))
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        numeric = all(array.dtype.kind in "biuf" for array in arrays.values())
        count = shapes.get(ORIENT, [0])[0] if shapes.get(ORIENT) else 0
        bodies = ([count, BODY_JOINTS, 3], [count, BODY_JOINTS * 3])
        if not (numeric and count and shapes[ORIENT] == [count, 3] and shapes.get(BODY) in bodies):
            wanted = f"{ORIENT} [T, 3] and {BODY} [T, {BODY_JOINTS}, 3]"
            raise UserError(f"{path} must hold {wanted}, got {shapes or 'neither'}; download it again")
        values = np.zeros((count, MOTION_DIM))
        values[:, HEAD] = head_rotation(arrays[ORIENT], arrays[BODY].reshape(count, BODY_JOINTS, 3))
        valid = np.isfinite(values[:, HEAD]).all(axis=1)
        if VALID in arrays and arrays[VALID].size == count:
            valid &= arrays[VALID].reshape(count) > 0.5
        elif VALID in arrays:
            said.append(f"its {VALID} is {shapes[VALID]} and not one a frame; it is ignored")
        grid = on_grid(values, valid, even_times(count, FEATURE_FPS), self.options.max_gap_s)
        said += grid.notices
        return Person(grid, OBSERVED, count)


_NOTHING = Mapping({}, "", ())


def head_rotation(
    global_orient: Float64[np.ndarray, "T 3"], body_pose: Float64[np.ndarray, "T 21 3"]
) -> Float64[np.ndarray, "T 3"]:
    """Returns the head's rotation in FLAME's axes, NaN where one of its joints is not finite."""
    joints = [global_orient, *(body_pose[:, joint] for joint in CHAIN)]
    start = np.broadcast_to(CAMERA_TO_FLAME, global_orient.shape)
    return functools.reduce(compose, [joint.astype(np.float64) for joint in joints], start.copy())


def _identity(interaction: str, participant: str) -> str:
    """Returns the person, like V00_P0947, as the release's records name it: ids are per vendor."""
    return identity(f"{interaction}_{participant}") or participant


def _entry(name: str, parts: tuple[str, ...], splits: set[str]) -> Entry:
    """Returns an entry; where its files disagree about the split, it is one with a problem."""
    known = sorted(splits - {""})
    if len(splits) == 1 and known:
        return Entry(known[0], name, parts)
    where = (
        f"its files are in the splits {' and '.join(known)}" if known else "no folder above it is train, dev or test"
    )
    return Entry(known[0] if known else "train", name, parts, problem=where)


def _ignored(names: list[str]) -> list[tuple[str, str, str]]:
    """Returns a row for all arrays that are not taken for the same reason."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        if name not in (ORIENT, BODY, VALID):
            why = next((why for known, why in _IGNORED if re.match(known, name)), "no part of the face has this name")
            reasons.setdefault(why, []).append(shown(name))
    return [("-", ", ".join(held), f"ignored: {why}") for why, held in reasons.items()]


def _named(text: str, *folders: Path | None) -> str:
    """Returns an error with files named from the source on, or alone where they were copies."""
    for folder in folders:
        text = text.replace(f"{folder}/", "") if folder else text
    return re.sub(r"\S*/unils-[^/\s]+/", "", text)


def _fitted(entry: Entry, people: list[Participant], read: list[_Features], notices: list[str]) -> tuple[Whole, int]:
    """Cuts all to the shortest; also returns the frames of the longest motion.

    Raises SkippedEntry where both lack motion, and where lengths differ by too much.
    """
    lengths = {f"sound of {p.name}": len(one.sound) // SAMPLES_PER_FRAME for p, one in zip(people, read, strict=True)}
    motions = {p.name: len(one.person.grid.covered) for p, one in zip(people, read, strict=True) if one.person}
    lengths |= {f"motion of {name}": count for name, count in motions.items()}
    shortest, longest = min(lengths.values()), max(lengths.values())
    if not motions:
        raise SkippedEntry(MISSING, "nobody in it has motion", longest)
    if longest - shortest > MAX_EXCESS_S * FPS:
        listed = ", ".join(f"{name} {count / FPS:.2f} s" for name, count in lengths.items())
        raise SkippedEntry(LENGTHS, listed, max(motions.values()))
    if longest - shortest > 1:
        notices.append(f"its files differ by {(longest - shortest) / FPS:.2f} s; all are cut to the shortest")
    persons = [one.person and _shortened(one.person, shortest) for one in read]
    audio = [one.sound[: shortest * SAMPLES_PER_FRAME] for one in read]
    names = tuple(_identity(entry.name, person.name) for person in people)
    return Whole(entry, persons, audio, [one.turns for one in read], names), max(motions.values())


def _shortened(person: Person, frames: int) -> Person:
    grid = person.grid
    return person._replace(grid=grid._replace(motion=grid.motion[:frames], covered=grid.covered[:frames]))
