"""The files of Seamless Interaction as they are downloaded, in folders or inside .tar archives.

`{improvised,naturalistic}/{train,dev,test}/NNNN/NNNN/V00_S0809_I00000582_P0947.{wav,npz,json,mp4}`:
vendor, session, interaction and participant. The files of an interaction may be in several folders
or archives.
"""

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.tracks.files import read_json
from unils_jax.audio import MAX_SECONDS
from unils_jax.errors import UserError, one_line

SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}  # of folders -> of stores
LABELS = ("improvised", "naturalistic")
FILE_ID = re.compile(r"(V[0-9A-Za-z]+_S[0-9A-Za-z]+_I[0-9A-Za-z]+)_(P[0-9A-Za-z]+)")
_FILE = re.compile(FILE_ID.pattern + r"\.(wav|npz|json|mp4)")
MAX_MEMBERS = 100_000  # of an archive
MAX_MEMBER_BYTES = 4 << 30  # of a file inside an archive, which is copied to be read
# What the library raises on broken archives.
_BROKEN = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)

Turns = list[tuple[float, float]]  # start and end in seconds


class Participant(NamedTuple):
    """The files of one participant in one interaction."""

    name: str  # like P0947
    parts: dict[str, str]  # suffix -> path below the source; a member of an archive is as in a folder


def find_files(folder: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """Finds all files of the set below a folder, by interaction and path, with their sizes.

    Of a file that is both in a folder and in an archive, or in several, the first is taken, folders
    first. Raises UserError, naming it, for an archive that is damaged.
    """
    found = (os.path.join(inside, name) for inside, _, names in os.walk(folder) for name in names)
    below = sorted(os.path.relpath(path, folder) for path in found if os.path.isfile(path))
    listed = [(part, os.stat(folder / part).st_size) for part in below if _FILE.fullmatch(Path(part).name)]
    for archive in (part for part in below if part.endswith(".tar")):
        listed += [(f"{archive}/{name}", size) for name, size in _members(folder / archive)]
    interactions: dict[str, dict[str, tuple[str, int]]] = {}
    for part, size in listed:
        name = part.rpartition("/")[2]
        interactions.setdefault(_FILE.fullmatch(name)[1], {}).setdefault(name, (part, size))
    return interactions


def participants(parts: tuple[str, ...]) -> list[Participant]:
    """Returns the participants of an interaction in the order of their names."""
    people: dict[str, dict[str, str]] = {}
    for part in parts:
        _, person, suffix = _FILE.fullmatch(part.rpartition("/")[2]).groups()
        people.setdefault(person, {})[suffix] = part
    return [Participant(name, people[name]) for name in sorted(people)]


def split_of(folder: Path, part: str) -> str:
    """Returns the split that the folders of a file name, "" where none does."""
    inside = [name for name in part.split("/")[:-1] if name in SPLITS]
    if inside:
        return SPLITS[inside[0]]
    above = folder.resolve().parts
    # Only next to the name of a half of the set: any folder may be in one called `test`.
    named = [split for label, split in zip(above, above[1:], strict=False) if label in LABELS and split in SPLITS]
    return SPLITS[named[-1]] if named else ""


def _members(archive: Path) -> list[tuple[str, int]]:
    """Lists the files of the set in an archive, by the last part of their names."""
    with _opened(archive) as opened:
        found = [(m.name.rpartition("/")[2], m.size) for m in _bounded(opened, archive) if _is_plain(m)]
    return [(name, size) for name, size in found if _FILE.fullmatch(name)]


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _bounded(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(opened):
        if count >= MAX_MEMBERS:
            raise UserError(f"{archive} holds over {MAX_MEMBERS} members, which no archive of the set does; unpack it")
        yield member


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, "r:") as opened:
            yield opened
    except _BROKEN as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot copy files out of {archive}: {error.strerror}; check disk and path") from None
        raise UserError(f"{archive} is damaged ({one_line(error, 80)}); download it again") from None


@contextlib.contextmanager
def as_file(folder: Path, part: str) -> Iterator[Path]:
    """Gives a part as a file: itself, or for as long as it is read a copy out of its archive.

    Raises UserError where the archive does not hold it whole.
    """
    before, tar, name = part.rpartition(".tar/")
    if not tar or (folder / part).is_file():
        yield folder / part
        return
    archive = folder / f"{before}.tar"
    with tempfile.TemporaryDirectory(prefix="unils-") as scratch:
        copy = Path(scratch) / name
        with _opened(archive) as opened:
            member = next((m for m in _bounded(opened, archive) if m.name.rpartition("/")[2] == name), None)
            if member is None or not _is_plain(member) or member.size > MAX_MEMBER_BYTES:
                raise UserError(f"{archive} does not hold {name} as a file of up to 4 GiB; download it again")
            with opened.extractfile(member) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        if copy.stat().st_size != member.size:
            raise UserError(f"{archive} ends within {name}; download it again")
        yield copy


def read_turns(path: Path) -> tuple[Turns | None, list[str]]:
    """Reads when a participant speaks, from `metadata:vad`; None where it is not there.

    The second value names the other keys. Raises UserError for turns that are none.
    """
    read = read_json(path)
    if not isinstance(read, dict):
        raise UserError(f"{path} must hold an object with metadata:vad, got {type(read).__name__}; download it again")
    others = [str(key) for key in read if key not in ("id", "metadata:vad")]
    listed = read.get("metadata:vad")
    if listed is None:
        return None, others
    turns = [_turn(item) for item in listed] if isinstance(listed, list) else [None]
    wrong = [number for number, turn in enumerate(turns) if turn is None]
    if wrong:
        rule = "segments with start and end in seconds, start first"
        raise UserError(f"{path} must list in metadata:vad {rule}, segment {wrong[0]} is none; download it again")
    return [turn for turn in turns if turn is not None], others


def _turn(item: object) -> tuple[float, float] | None:
    start, end = (item.get("start"), item.get("end")) if isinstance(item, Mapping) else (None, None)
    if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in (start, end)):
        return None
    # Bounded before they are counted in frames; False for NaN, too.
    return (float(start), float(end)) if 0 <= start <= end <= MAX_SECONDS else None
