"""Any folder of .wav and our motion .npz: one person or two a recording.

`NAME.npz` holds the motion of all people; its audio is `NAME.wav` (one person; for two a stereo
file, a channel each) or `NAME_speaker1.wav` and `NAME_speaker2.wav`. Or each person has both files:
`NAME_speakerK.npz`, `NAME_speakerK.wav`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources.base import (
    DAMAGED,
    MISSING,
    PARTNER,
    Entry,
    Reading,
    SkippedEntry,
    Track,
    assemble,
    listed_digest,
    read_people,
    read_wav,
    read_wav_channels,
    split_of_files,
)
from unils_jax.errors import UserError
from unils_jax.motion import MotionFile, load_motion

_FILE = re.compile(r"(.+?)(?:_speaker([12]))?\.(npz|wav)")


@dataclass(frozen=True)
class FilesSource:
    """A folder with the splits' folders inside, or of one split (`split`; empty: by hashes)."""

    folder: Path
    split: str = ""

    def describe(self) -> dict[str, Any]:
        """Returns a checksum of the names and sizes of all files."""
        return {"layout": "files", "files": listed_digest(self.folder, self.entries())}

    def entries(self) -> list[Entry]:
        """Lists all recordings by name. Raises UserError where the folder holds none."""
        entries = split_of_files(self.folder, self.split, _FILE)
        if not any(part.endswith(".npz") for entry in entries for part in entry.parts):
            raise UserError(f"{self.folder} holds no motion .npz with .wav files beside them; see `unils decode --out`")
        return entries

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Returns the reader; files are opened one by one."""
        yield self._read

    def _read(self, entry: Entry) -> Reading:
        """Reads a recording, motion first: it says how many people there are."""
        motions, sounds, frames = read_people(
            self.folder, entry, _FILE, load_motion, _read_sound, num_frames=lambda file: file.motion.shape[1]
        )
        if not motions:
            raise SkippedEntry(MISSING, "no motion .npz", frames)
        if len({m.expression_basis for m in motions.values()}) > 1:
            raise SkippedEntry(DAMAGED, "its people's motion is of different expression bases", frames)
        tracks = [Track(motion, audio) for motion, audio in _people(motions, sounds, frames)]
        return assemble(entry, tracks, expression_basis=next(iter(motions.values())).expression_basis, source="files")


def _read_sound(path: Path, speaker: str) -> np.ndarray:
    return read_wav(path) if speaker else read_wav_channels(path)


def _people(
    motions: dict[str, MotionFile], sounds: dict[str, np.ndarray], frames: int
) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """Returns motion `[T, 108]` and audio `[N]` of each person; one of them may be missing."""
    if "" in motions:
        if len(motions) > 1:
            raise SkippedEntry(DAMAGED, "motion both of all people in one file and of each in its own", frames)
        rows = list(motions[""].motion)
        return list(zip(rows, _audio_of(len(rows), sounds, frames), strict=True))
    if any(len(m.motion) != 1 for m in motions.values()):
        raise SkippedEntry(DAMAGED, "a _speaker1 or _speaker2 file must hold one person", frames)
    if len(sounds.keys() | motions.keys()) < 2 or "" in sounds:
        raise SkippedEntry(PARTNER, "a recording of two people needs files of _speaker1 and _speaker2", frames)
    rows = [motions[speaker].motion[0] if speaker in motions else None for speaker in "12"]
    return list(zip(rows, _audio_of(2, sounds, frames), strict=True))


def _audio_of(num_people: int, sounds: dict[str, np.ndarray], frames: int) -> list[np.ndarray | None]:
    if not sounds:
        return [None] * num_people
    if "" not in sounds:
        tracks = [sounds.get(speaker) for speaker in "12"[:num_people]]
        if len(sounds) != num_people or any(track is None for track in tracks):
            raise SkippedEntry(PARTNER, f"audio of {len(sounds)} people, motion of {num_people}", frames)
        return tracks
    channels = sounds[""]
    if len(sounds) > 1:
        raise SkippedEntry(DAMAGED, "audio both of all people in one file and of each in its own", frames)
    if num_people == 1:
        return [channels.mean(axis=0, dtype=np.float32)]
    if len(channels) != 2:
        raise SkippedEntry(PARTNER, f"audio of {len(channels)} channels for two people", frames)
    return list(channels)
