"""Conversations in a folder or a list of audio files."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from unils_jax.audio import read_audio
from unils_jax.errors import UserError

log = logging.getLogger(__name__)

SPEAKERS = ("_speaker1", "_speaker2")
AUDIO_SUFFIXES = {f".{name}" for name in "wav flac ogg opus mp3 m4a aac aif aiff mp4 mov mkv webm".split()}


@dataclass(frozen=True)
class Recording:
    """The audio files of one conversation."""

    name: str  # of its motion file
    tracks: tuple[Path, ...]  # one a person: one or two


def find_recordings(source: Path) -> list[Recording]:
    """Finds the conversations of a folder or a list (.txt), sorted by name.

    In a folder NAME_speaker1.EXT and NAME_speaker2.EXT are the two tracks of NAME, and every other
    audio file is a conversation of one track. A list has one conversation a line: one file, or two
    with a tab between them. Raises UserError where there is none, where a line of the list is of
    another form, and where two have the same name.
    """
    found = _in_folder(source) if source.is_dir() else _in_list(source)
    if not found:
        raise UserError(f"{source} names no audio file; give a folder or a list with some")
    count = Counter(recording.name for recording in found)
    if twice := sorted(name for name, number in count.items() if number > 1):
        raise UserError(f"{source}: several conversations are called {', '.join(twice)}; rename their files")
    return sorted(found, key=lambda recording: recording.name)


def _in_folder(folder: Path) -> list[Recording]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith("."))
    second = {p.stem.removesuffix(SPEAKERS[1]): p for p in files if p.stem.endswith(SPEAKERS[1])}
    found, paired = [], set()
    for path in files:
        name = path.stem.removesuffix(SPEAKERS[0])
        if path.stem.endswith(SPEAKERS[0]) and name in second:
            found.append(Recording(name, (path, second[name])))
            paired |= {path, second[name]}
    return found + [Recording(path.stem, (path,)) for path in files if path not in paired]


def _in_list(path: Path) -> list[Recording]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read ({error}); give a text file") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line.split("\t")]
        if not line.strip() or line.startswith("#"):
            continue
        if len(words) > 2 or not all(words):
            raise UserError(f"{path} line {number} must be one file, or two with a tab between them, got {line!r:.80}")
        tracks = tuple(path.parent / word for word in words)
        name = tracks[0].stem
        found.append(Recording(name.removesuffix(SPEAKERS[0]) if len(tracks) == 2 else name, tracks))
    return found


def read_recordings(
    recordings: Iterable[Recording], failures: list[str]
) -> Iterator[tuple[Recording, list[Float32[np.ndarray, " N"]]]]:
    """Reads the tracks of one conversation after the other; adds to `failures` what is wrong."""
    for recording in recordings:
        try:
            tracks = [read_audio(path) for path in recording.tracks]
        except UserError as error:
            log.warning("%s: %s", recording.name, error)
            failures.append(f"{recording.name}: {error}")
            continue
        yield recording, tracks
