"""Conversations in a folder or a list of audio files."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from unils_jax.audio import read_audio, read_tracks
from unils_jax.errors import UserError, one_line, shown
from unils_jax.files import read_lines
from unils_jax.media import is_media
from unils_jax.motion import load_motion
from unils_jax.runtime import expand_home

log = logging.getLogger(__name__)

SPEAKERS = ("_speaker1", "_speaker2")


@dataclass(frozen=True)
class Recording:
    """The audio files of one conversation."""

    name: str  # of its motion file
    tracks: tuple[Path, ...]  # one a person: one or two


def find_recordings(source: Path, *, quiet: bool = False) -> list[Recording]:
    """Finds the conversations of a folder or a list (.txt), sorted by name.

    In a folder NAME_speaker1.EXT and NAME_speaker2.EXT are the two tracks of NAME, and every other
    audio file is a conversation of one track. A list has one conversation a line: one file, or two
    with a tab between them, in quotes or without; any editor or shell may have written it. With
    `quiet` no line names a folder's other files. Raises UserError where there is none, where a line
    of the list is of another form, where two have the same name, and where a conversation has two
    second tracks.
    """
    found = _in_folder(source, quiet) if source.is_dir() else _in_list(source)
    if not found:
        raise UserError(f"{source} names no audio file; give a folder or a list with some")
    count = Counter(recording.name for recording in found)
    if twice := sorted(name for name, number in count.items() if number > 1):
        raise UserError(
            f"{source}: several conversations are called {', '.join(map(shown, twice))}; rename their files"
        )
    return sorted(found, key=lambda recording: recording.name)


def _in_folder(folder: Path, quiet: bool) -> list[Recording]:
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    # A link to nothing is a file that cannot be read; a pipe would be waited for.
    there = [path for path in visible if path.is_file() or (path.is_symlink() and not path.exists())]
    files = [path for path in there if is_media(path)]
    odd = [shown(path.name) for path in visible if path not in there and not path.is_dir()]
    if odd and not quiet:
        log.warning("%s: left out, no plain files: %s", shown(folder), ", ".join(odd))
    others = [shown(path.name) for path in there if not is_media(path)]
    if others and not quiet:
        log.warning("%s: left out, no audio or video by their names: %s", shown(folder), ", ".join(others))
    second: dict[str, Path] = {}
    for path in (p for p in files if p.stem.lower().endswith(SPEAKERS[1])):
        one = second.setdefault(path.stem[: -len(SPEAKERS[1])], path)
        if one != path:
            raise UserError(
                f"{shown(folder)}: {shown(one.name)} and {shown(path.name)} are second tracks of one conversation; "
                "move one of them away"
            )
    found, paired = [], set()
    for path in files:
        name = path.stem[: -len(SPEAKERS[0])]
        if path.stem.lower().endswith(SPEAKERS[0]) and name in second:
            found.append(Recording(name, (path, second[name])))
            paired |= {path, second[name]}
    return found + [Recording(path.stem, (path,)) for path in files if path not in paired]


def _in_list(path: Path) -> list[Recording]:
    try:
        lines = read_lines(path, names=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read ({one_line(error)}); give a text file") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line.split("\t")]
        if not line.strip() or line.startswith("#"):
            continue
        if len(words) > 2 or not all(words):
            raise UserError(f"{path} line {number} must be one file, or two with a tab between them, got {line!r:.80}")
        tracks = tuple(_listed_file(path.parent, word) for word in words)
        name = tracks[0].stem
        found.append(Recording(name.removesuffix(SPEAKERS[0]) if len(tracks) == 2 else name, tracks))
    return found


def _listed_file(folder: Path, word: str) -> Path:
    """Returns the file that a list names, with quotes around it or without."""
    file = folder / expand_home(word)
    in_quotes = len(word) > 2 and word[0] == word[-1] and word[0] in "\"'"
    return folder / expand_home(word[1:-1]) if in_quotes and not file.exists() else file


def read_conversation(
    paths: Sequence[str | Path], channels: Literal["mix", "split"] = "mix", tracks: Sequence[int] = (0, 0)
) -> list[Float32[np.ndarray, " N"]]:
    """Reads the sound of each person of one conversation, from one file or from two.

    Args:
        paths: The files, one a person; a single one has both people where `channels` is "split".
        channels: "mix" makes one person of a file's channels, "split" makes each channel a person.
        tracks: The audio track of each file, counted from 1; 0 takes the first.

    Raises:
        UserError: Where a file cannot be read, and where "split" gives more than two people.
    """
    if channels == "mix":
        return [read_audio(path, track) for path, track in zip(paths, tracks, strict=False)]
    if len(paths) == 2:
        raise UserError("--channels split takes both people from one file; leave --audio2 away")
    people = list(read_tracks(paths[0], channels, tracks[0]))
    if len(people) > 2:
        raise UserError(f"{shown(paths[0])} has {len(people)} channels, a conversation 2; give the right ones as files")
    return people


def read_recordings(
    recordings: Iterable[Recording], failures: list[str]
) -> Iterator[tuple[Recording, list[Float32[np.ndarray, " N"]]]]:
    """Reads the tracks of one conversation after the other; adds to `failures` what is wrong."""
    for recording in recordings:
        try:
            tracks = [read_audio(path) for path in recording.tracks]
        except UserError as error:
            log.warning("%s: %s", shown(recording.name), error)
            failures.append(f"{shown(recording.name)}: {error}")
            continue
        yield recording, tracks


def is_decoded(
    path: Path, people: int, source: dict[str, Any], inputs: Iterable[str | Path], *, finished: bool
) -> bool:
    """Returns whether a motion file is there, of so many people, whole and up to date.

    It is where its `source` (model, audio and settings) and whether it is `finished` are those
    given, and where none of the files `inputs` has changed since it was written.
    """
    try:
        file = load_motion(path)
        changed = max((Path(name).stat().st_mtime for name in inputs), default=0.0)
        # Through JSON, as the file has it: tuples are lists there.
        return (
            len(file.motion) == people
            and file.finished == finished
            and file.source == json.loads(json.dumps(source))
            and path.stat().st_mtime >= changed
        )
    except (UserError, OSError):
        return False
