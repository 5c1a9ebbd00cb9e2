"""Any folder of sound and our motion .npz: one person or two a recording.

`NAME.npz` holds the motion of all people; its audio is `NAME.wav` (one person; for two a file of
two channels) or `NAME_speaker1.wav` and `NAME_speaker2.wav`. Or each person has both files:
`NAME_speakerK.npz`, `NAME_speakerK.wav`. Sound may be of any format that is read, video included.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources.base import (
    DAMAGED,
    MISSING,
    PARTNER,
    Entry,
    People,
    Reading,
    Shares,
    SkippedEntry,
    Track,
    assemble,
    listed_digest,
    mix_sound,
    read_people,
    split_of_files,
)
from unils_jax.errors import UserError, shown
from unils_jax.media import media_extensions
from unils_jax.motion import load_motion

# Of several files with the same sound the first kind of these is read, then any sound, then video.
_LOSSLESS = ("wav", "wave", "bwf", "w64", "rf64", "aif", "aiff", "caf", "flac")
VIDEO = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "wmv", "mpg", "mpeg", "ts", "mts", "m2ts", "flv", "3gp", "ogv")


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Matches a file's recording, speaker and suffix; built when asked, because FFmpeg is."""
    suffixes = "|".join(re.escape(suffix[1:]) for suffix in sorted(media_extensions()))
    return re.compile(rf"(.+?)(?:_speaker([12]))?\.(npz|{suffixes})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class FilesSource:
    """A folder with the splits' folders inside, or of one split, or split by hashes of names."""

    folder: Path
    split: str = ""  # the split of the whole folder; "": by the folders inside, or by hashes
    shares: Shares | None = None  # of train, val and test where hashes split; None: 80/10/10

    def describe(self) -> dict[str, Any]:
        """Returns a checksum of the names and sizes of all files."""
        return {"layout": "files", "files": listed_digest(self.folder, self.entries())}

    def entries(self) -> list[Entry]:
        """Lists all recordings by name. Raises UserError where the folder holds none."""
        entries, _ = self._chosen()
        if not any(part.lower().endswith(".npz") for entry in entries for part in entry.parts):
            raise UserError(f"{self.folder} holds no motion .npz with sound of its name; see `unils decode --out`")
        return entries

    def notes(self) -> tuple[str, ...]:
        """Returns a sentence on files not read because another has the same part of a recording."""
        _, passed_over = self._chosen()
        if not passed_over:
            return ()
        named = ", ".join(shown(part) for part in passed_over[:10])
        more = f" and {len(passed_over) - 10} more" if len(passed_over) > 10 else ""
        return (f"passed over, because another file has the same sound or motion: {named}{more}",)

    def _chosen(self) -> tuple[list[Entry], list[str]]:
        """Returns the recordings with one file for each part, and the files passed over."""
        entries, passed_over = [], []
        for entry in split_of_files(self.folder, self.split, _pattern(), self.shares):
            kept = _chosen_parts(entry.parts)
            entries.append(dataclasses.replace(entry, parts=kept))
            passed_over += [part for part in entry.parts if part not in kept]
        return entries, passed_over

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Returns the reader; files are opened one by one."""
        yield self._read

    def _read(self, entry: Entry) -> Reading:
        """Reads a recording, motion first: it says how many people there are."""
        people = read_people(self.folder, entry, _pattern(), load_motion, num_frames=lambda file: file.motion.shape[1])
        motions, frames = people.motions, people.frames
        if not motions:
            raise SkippedEntry(MISSING, "no motion .npz", frames)
        if len({m.expression_basis for m in motions.values()}) > 1:
            raise SkippedEntry(DAMAGED, "its people's motion is of different expression bases", frames)
        tracks = [Track(motion, audio) for motion, audio in _people(entry, people)]
        basis = next(iter(motions.values())).expression_basis
        reading = assemble(entry, tracks, expression_basis=basis, source="files")
        return reading._replace(notices=tuple(people.notices))


def _chosen_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the files of a recording without those whose sound or motion a better one has."""
    best: dict[tuple[str, bool], str] = {}
    for part in sorted(parts, key=rank):
        _, speaker, suffix = _pattern().fullmatch(Path(part).name).groups(default="")
        best.setdefault((speaker, suffix.lower() == "npz"), part)
    whole = best.get(("", False), "")
    # People's own files have what a mixture, like a rendered video's, has.
    if whole and not whole.lower().endswith(".wav") and any(not motion and who for who, motion in best):
        del best["", False]
    return tuple(part for part in parts if part in best.values())


def rank(part: str) -> tuple[int, str]:
    """Returns the place of a file among those with the same sound: lossless, other, video."""
    suffix = Path(part).suffix[1:].lower()
    if suffix in _LOSSLESS:
        return _LOSSLESS.index(suffix), part
    return len(_LOSSLESS) + (suffix in VIDEO), part


def _people(entry: Entry, people: People) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """Returns motion `[T, 108]` and audio `[N]` of each person; one of them may be missing."""
    motions, sounds, frames, _ = people
    if "" in motions:
        if len(motions) > 1:
            raise SkippedEntry(DAMAGED, "motion both of all people in one file and of each in its own", frames)
        rows = list(motions[""].motion)
        if len(rows) > 2:
            raise SkippedEntry(DAMAGED, f"motion of {len(rows)} people, a record has one or two", frames)
        return list(zip(rows, _audio_of(entry, len(rows), people), strict=True))
    if any(len(m.motion) != 1 for m in motions.values()):
        raise SkippedEntry(DAMAGED, "a _speaker1 or _speaker2 file must hold one person", frames)
    if len(sounds.keys() | motions.keys()) < 2 or "" in sounds:
        raise SkippedEntry(PARTNER, "a recording of two people needs files of _speaker1 and _speaker2", frames)
    rows = [motions[speaker].motion[0] if speaker in motions else None for speaker in "12"]
    return list(zip(rows, _audio_of(entry, 2, people), strict=True))


def _audio_of(entry: Entry, num_people: int, people: People) -> list[np.ndarray | None]:
    _, sounds, frames, notices = people
    if not sounds:
        return [None] * num_people
    if "" not in sounds:
        tracks = [sounds.get(speaker) for speaker in "12"[:num_people]]
        if len(sounds) != num_people or any(track is None for track in tracks):
            raise SkippedEntry(PARTNER, f"audio of {len(sounds)} people, motion of {num_people}", frames)
        return [mix_sound(entry, track, notices) for track in tracks]
    if len(sounds) > 1:
        raise SkippedEntry(DAMAGED, "audio both of all people in one file and of each in its own", frames)
    if num_people == 1:
        return [mix_sound(entry, sounds[""], notices)]
    channels, said = sounds[""].split()
    if len(channels) != 2:
        why = "".join(f" ({notice})" for notice in said)
        raise SkippedEntry(PARTNER, f"audio of {len(channels)} channels for two people{why}", frames)
    return list(channels)
