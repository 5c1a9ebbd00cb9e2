"""What readers of published layouts share: entries, tracks of people, the record made of them."""

import hashlib
import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from data_pipelines.record import SPLITS, Record
from data_pipelines.windows import is_long_enough
from unils_jax.audio import MAX_AMPLITUDE, Sound, read_sound
from unils_jax.errors import UserError, shown
from unils_jax.media import NoSoundError
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME, WINDOW_FRAMES

# Why an entry is left out, as the report of a conversion groups them.
DAMAGED = "damaged"
MISSING = "missing"
PARTNER = "missing partner"
LENGTHS = "lengths disagree"
SHORT = "too short"
NOT_FINITE = "NaN or infinite values"
NO_FACE = "lost tracking"
RANGE = "out of range"

# No tracked coefficient is near 1000: larger ones are motion in other units.
MAX_MOTION = 1000.0

# The parts of train, val and test, which sum to 1.
Shares = tuple[float, float, float]

log = logging.getLogger(__name__)


class SkippedEntry(Exception):
    """An entry that cannot become a record: the kind of reason, the detail, and its frames."""

    def __init__(self, reason: str, detail: str, frames: int = 0):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.frames = reason, detail, frames


@dataclass(frozen=True)
class Entry:
    """One future record as a source lists it.

    `problem` is set where the source itself is wrong about it; reading such an entry drops it as
    damaged.
    """

    split: str
    name: str
    parts: tuple[str, ...]  # keys or paths within the source
    frames: int | None = None  # its length, where an index gives it
    problem: str = ""  # what the source says wrongly about it; "": nothing


class Reading(NamedTuple):
    """The records of an entry, one as a rule, and its length in the source."""

    record: Record
    frames_in: int  # those that are in no record and not lost were cut off at its end
    notices: tuple[str, ...] = ()  # sentences on what its files lack or lose
    further: tuple[Record, ...] = ()  # the pieces after the first, where an entry was cut
    lost: tuple[SkippedEntry, ...] = ()  # spans of the entry that are in no record, and why

    @property
    def records(self) -> tuple[Record, ...]:
        """All records of the entry."""
        return (self.record, *self.further)


@runtime_checkable
class Source(Protocol):
    """A published layout on a disk. Picklable: worker processes open it for themselves."""

    def describe(self) -> dict[str, Any]:
        """Returns what distinguishes this source from another, JSON-able."""

    def entries(self) -> list[Entry]:
        """Lists all future records in an order that depends on the source's content alone.

        Raises UserError where the source cannot be read.
        """

    def open(self) -> AbstractContextManager[Callable[[Entry], Reading]]:
        """Opens the source; the reader raises SkippedEntry for an entry that cannot be a record."""


@runtime_checkable
class MappedSource(Source, Protocol):
    """A source that finds out by itself what its files hold, and says so before a conversion."""

    def table(self) -> str:
        """Returns what was found, taken, missing and ignored, in Markdown."""

    def check(self) -> None:
        """Raises UserError, with all problems, where flags must decide which array is what."""


@dataclass(frozen=True)
class Track:
    """One person of an entry."""

    motion: np.ndarray | None  # [T, 108]
    audio: np.ndarray | None  # [N] int16 or float32
    mask: np.ndarray | None = None  # [T] bool, true in speech
    observed: np.ndarray | None = None  # [108] bool; None: every channel is there
    identity: str = ""  # the person's name; "": unknown


class People(NamedTuple):
    """What an entry's files hold, by speaker."""

    motions: dict[str, Any]  # what the layout's reader returned
    sounds: dict[str, Sound]
    frames: int  # the most that one of them has
    notices: list[str]  # sentences on their sound: gaps, damage; more may be added


def read_people(
    folder: Path,
    entry: Entry,
    pattern: re.Pattern[str],
    read_motion: Callable[[Path], Any],
    num_frames: Callable[[Any], int],
) -> People:
    """Reads the motion and the sound in an entry's .npz and media files.

    Raises SkippedEntry with the problems of all files.

    Args:
        folder: The source's folder.
        entry: Its parts are file names within `folder`.
        pattern: Gives a name's recording, speaker ("1", "2"; "" where it has none) and suffix.
        read_motion: Reads an .npz.
        num_frames: Counts the frames of what `read_motion` returned.

    """
    motions, sounds, problems, notices = {}, {}, [], []
    for part in entry.parts:
        _, speaker, suffix = pattern.fullmatch(Path(part).name).groups(default="")
        try:
            if suffix.lower() == "npz":
                motions[speaker] = read_motion(folder / part)
            else:
                sounds[speaker] = read_sound(folder / part)
                notices += [f"{shown(part)}: {notice}" for notice in sounds[speaker].notices]
        except NoSoundError:
            continue  # a video of pictures alone, like a rendered one, beside its motion
        except UserError as error:
            problems.append(str(error).replace(f"{folder}/", ""))
    frames = max(map(num_frames, motions.values()), default=0)
    frames = frames or max((sound.channels.shape[1] // SAMPLES_PER_FRAME for sound in sounds.values()), default=0)
    for notice in notices:
        log.warning("%s", notice)
    if problems:
        raise SkippedEntry(DAMAGED, "; ".join(problems), frames)
    return People(motions, sounds, frames, notices)


def assemble(entry: Entry, tracks: list[Track], *, expression_basis: str, source: str) -> Reading:
    """Makes the record of one or two people, cut to what all of them have.

    Motion, masks and the index must agree to a frame and audio to less than two frames; all is cut
    to the shortest (audio is left short: windows pad it with zeros). A person without motion has
    zeros, marked as not observed. Raises SkippedEntry where lengths disagree, the rest is too
    short, or values are not finite or in other units.
    """
    motions = [track.motion for track in tracks if track.motion is not None]
    if not motions:
        raise SkippedEntry(MISSING, "nobody in it has motion", entry.frames or _audio_frames(tracks))
    lengths = {f"motion of person {i + 1}": len(t.motion) for i, t in enumerate(tracks) if t.motion is not None}
    lengths |= {f"mask of person {i + 1}": len(t.mask) for i, t in enumerate(tracks) if t.mask is not None}
    lengths |= {} if entry.frames is None else {"the index": entry.frames}
    frames_in = max(map(len, motions)) if entry.frames is None else entry.frames
    frames = min(lengths.values())
    sounds = {f"audio of person {i + 1}": len(t.audio) for i, t in enumerate(tracks) if t.audio is not None}
    wrong = max(lengths.values()) - frames > 1
    if wrong or any(abs(n / SAMPLES_PER_FRAME - frames) >= 2 for n in sounds.values()):
        listed = lengths | {name: round(n / SAMPLES_PER_FRAME, 1) for name, n in sounds.items()}
        raise SkippedEntry(LENGTHS, ", ".join(f"{name} {n} frames" for name, n in listed.items()), frames_in)
    if not is_long_enough(frames):
        raise SkippedEntry(SHORT, f"{frames} frames, at least {WINDOW_FRAMES + 2} are needed", frames_in)
    dtype = np.result_type(*motions)
    record = Record(
        name=entry.name,
        motion=np.stack([_motion(track, frames, dtype) for track in tracks]),
        audio=_stack_audio(tracks, frames),
        speech_mask=_stack_masks(tracks, frames),
        expression_basis=expression_basis,
        identities=tuple(track.identity for track in tracks),
        observed=_observed(tracks),
        source=source,
    )
    _check_values(record, frames_in)
    return Reading(record, frames_in)


def _audio_frames(tracks: list[Track]) -> int:
    return max((len(t.audio) // SAMPLES_PER_FRAME for t in tracks if t.audio is not None), default=0)


def _motion(track: Track, frames: int, dtype: np.dtype) -> np.ndarray:
    if track.motion is None:
        return np.zeros((frames, MOTION_DIM), dtype)
    return track.motion[:frames].astype(dtype, copy=False)


def _stack_audio(tracks: list[Track], frames: int) -> np.ndarray | None:
    sounds = [track.audio for track in tracks]
    if any(sound is None for sound in sounds):
        return None
    if len({sound.dtype for sound in sounds}) > 1:
        sounds = [s / np.float32(32768) if s.dtype == np.int16 else s for s in sounds]
    num_samples = min(max(map(len, sounds)), frames * SAMPLES_PER_FRAME)
    stacked = np.zeros((len(sounds), num_samples), sounds[0].dtype)
    for row, sound in zip(stacked, sounds, strict=True):
        row[: len(sound)] = sound[:num_samples]
    return stacked


def _stack_masks(tracks: list[Track], frames: int) -> np.ndarray | None:
    masks = [track.mask for track in tracks]
    return None if any(mask is None for mask in masks) else np.stack([mask[:frames] for mask in masks])


def _observed(tracks: list[Track]) -> np.ndarray | None:
    if all(track.motion is not None and track.observed is None for track in tracks):
        return None
    rows = np.ones((len(tracks), MOTION_DIM), bool)
    for row, track in zip(rows, tracks, strict=True):
        row[:] = False if track.motion is None else True if track.observed is None else track.observed
    return rows


def _check_values(record: Record, frames_in: int) -> None:
    bad = np.flatnonzero(~np.isfinite(record.motion).all(axis=(0, 2)))
    if len(bad):
        raise SkippedEntry(NOT_FINITE, f"motion in {len(bad)} frames, the first {bad[0]}", frames_in)
    largest = float(np.abs(record.motion).max())
    if largest > MAX_MOTION:
        raise SkippedEntry(RANGE, f"motion reaches {largest:.4g}, at most {MAX_MOTION:g} is motion", frames_in)
    if record.audio is None or record.audio.dtype == np.int16:
        return
    if not np.isfinite(record.audio).all():
        raise SkippedEntry(NOT_FINITE, f"audio in {int((~np.isfinite(record.audio)).sum())} samples", frames_in)
    loudest = float(np.abs(record.audio).max(initial=0))
    if loudest > MAX_AMPLITUDE:
        raise SkippedEntry(RANGE, f"audio reaches {loudest:.4g}, floating point audio is -1..1", frames_in)


def mix_sound(entry: Entry, sound: Sound, notices: list[str]) -> np.ndarray:
    """Returns a file's sound as one person's `[N]`; logs and notes what mixing its channels did."""
    mixed, said = sound.mixed()
    for notice in said:
        log.warning("%s: %s", shown(entry.name), notice)
        notices.append(notice)
    return mixed


def split_of_files(
    folder: Path, split: str, pattern: re.Pattern, shares: Shares | None = None, with_folders: bool = False
) -> list[Entry]:
    """Lists the files of a folder whose names match the pattern, as entries by its first group.

    With `with_folders` folders are listed as files are, with a "/" at the end of their names.

    Where `split` is empty the folders `train`, `val` and `test` inside are the splits; without
    those, names are split by `hashed_splits` in these shares. Raises UserError for a folder that
    is not there, and for shares of a folder that is split already.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; check the path")
    if split not in ("", *SPLITS):
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    inside = [name for name in SPLITS if (folder / name).is_dir()]
    if shares and (split or inside):
        held = f"--split {split} is given" if split else f"{folder} has the folders {', '.join(inside)}"
        raise UserError(f"--splits divides a folder without splits, but {held}; leave --splits out")
    if split or not inside:
        groups = _grouped(folder, "", pattern, with_folders)
        splits = hashed_splits(list(groups), shares) if not split else dict.fromkeys(groups, split)
        return [Entry(splits[name], name, parts) for name, parts in groups.items()]
    groups = {
        (name, key): parts for name in inside for key, parts in _grouped(folder, name, pattern, with_folders).items()
    }
    return [Entry(name, key, parts) for (name, key), parts in groups.items()]


def folders_left_out(folder: Path) -> list[str]:
    """Lists the other folders next to the splits' in `folder`, like DualTalk's `ood`.

    There are none where it has no splits.
    """
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [name for name in inside if name not in SPLITS] if set(inside) & set(SPLITS) else []


def _grouped(folder: Path, inside: str, pattern: re.Pattern, with_folders: bool) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    listed = [file.name for file in os.scandir(folder / inside) if file.is_file()]
    if with_folders:
        listed += [f"{one.name}/" for one in os.scandir(folder / inside) if one.is_dir() and one.name[0] != "."]
    for file in sorted(listed):
        found = pattern.fullmatch(file)
        if found:
            groups.setdefault(found[1], []).append(f"{inside}/{file}" if inside else file)
    return {name: tuple(groups[name]) for name in sorted(groups)}


def listed_digest(folder: Path, entries: list[Entry]) -> str:
    """Returns a checksum of the entries and of the sizes of their files.

    Copies of a folder give the same.
    """
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        sizes = [(folder / part).stat().st_size for part in entry.parts]
        digest.update(repr((entry, sizes)).encode())  # repr escapes what is not UTF-8
    return digest.hexdigest()


def parse_shares(text: str) -> Shares:
    """Reads the shares of train, val and test, like "0.8,0.1,0.1".

    Raises UserError unless they are three numbers that sum to 1, none negative.
    """
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        train = val = test = float("nan")
    shares = (train, val, test)
    # Written so that NaN fails, too.
    if not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6):
        raise UserError(f"--splits must be three shares of train, val and test that sum to 1, got {text!r}")
    return shares


def hashed_splits(names: list[str], shares: Shares | None = None) -> dict[str, str]:
    """Splits names whose source has no splits, by the order of their hashes.

    By default about 80/10/10: from three names up each split has at least one; fewer names are all
    `train`. With `shares` each split whose share is above 0 has at least one name as far as there
    are names, train first. The same names and shares give the same splits.
    """
    ranked = sorted(names, key=lambda name: hashlib.blake2b(os.fsencode(name), digest_size=8).digest())
    if shares is None:
        num_val = num_test = 0 if len(names) < 3 else max(1, len(names) // 10)
    else:
        num_val, num_test = _held_out(len(names), shares)
    held_out = num_test + num_val
    parts = [("test", ranked[:num_test]), ("val", ranked[num_test:held_out]), ("train", ranked[held_out:])]
    return {name: split for split, some in parts for name in some}


def _held_out(count: int, shares: Shares) -> tuple[int, int]:
    """Returns how many of `count` names are val and test."""
    filled = [i for i, share in enumerate(shares) if share > 0][:count]  # splits that get a name at all
    counts = [max(1, round(count * shares[i])) if i in filled else 0 for i in range(3)]
    # Rounding up may take too many: the largest split gives them back, or takes what is left.
    largest = int(np.argmax(counts))
    counts[largest] += count - sum(counts)
    return counts[1], counts[2]
