"""A folder of any face tracker's files with the sound or the video that they are of.

`NAME.npz` (or .npy, .pkl, .json, .pt, .frame), or a folder `NAME/` with a file for each frame, or
with a file for each array; of two people `NAME_speaker1` and `NAME_speaker2`. The sound is
`NAME.wav`, any other sound or the video; for two people each one's own file, one of two channels,
or one microphone with `NAME.rttm` or a detector of voices. `people.csv` may name the persons.
"""

import contextlib
import dataclasses
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

from data_pipelines.sources.base import (
    DAMAGED,
    MISSING,
    PARTNER,
    Entry,
    Reading,
    Shares,
    SkippedEntry,
    hashed_splits,
    mix_sound,
    split_of_files,
)
from data_pipelines.sources.folder import VIDEO, rank
from data_pipelines.sources.tracking import Person, TrackOptions, Whole, cut, mapping_of
from data_pipelines.tracks.diarisation import gated, in_order, read_rttm
from data_pipelines.tracks.files import SUFFIXES, read_clip
from data_pipelines.tracks.mapping import Mapping
from data_pipelines.tracks.motion import Clip, extract
from data_pipelines.tracks.people import group_by_person, read_people_table
from data_pipelines.tracks.pictures import picture_times
from data_pipelines.tracks.pieces import even_times, on_grid
from data_pipelines.tracks.voice_activity import Turns, find_speech, share_by_jaws, turns_of
from unils_jax.audio import Sound, read_sound
from unils_jax.errors import UserError, shown
from unils_jax.media import NoSoundError, media_extensions
from unils_jax.motion import FPS, JAW, SAMPLES_PER_FRAME

RATES_WITHIN = 5e-4  # a file's rate and its video's that differ by more are both said

log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Matches a file's recording, speaker and suffix, or those of a folder with a slash."""
    suffixes = "|".join(re.escape(s) for s in sorted({*SUFFIXES, "rttm", *(m[1:] for m in media_extensions())}))
    return re.compile(rf"(.+?)(?:_speaker([12]))?(?:\.({suffixes})|/)", re.IGNORECASE | re.DOTALL)


class _Files(NamedTuple):
    """The files of an entry by speaker, "" where they are of all people."""

    motions: dict[str, str]
    sounds: dict[str, list[str]]  # best first
    rttm: str | None


def _sorted_files(entry: Entry) -> _Files:
    files = _Files({}, {}, None)
    for part in entry.parts:
        _, speaker, suffix = _pattern().fullmatch(_name(part)).groups(default="")
        kind = suffix.lower()
        if kind == "rttm":
            files = files._replace(rttm=part)
        elif kind in SUFFIXES or not kind:
            if speaker in files.motions:
                raise SkippedEntry(DAMAGED, f"both {files.motions[speaker]} and {part} hold its motion; keep one")
            files.motions[speaker] = part
        else:
            files.sounds.setdefault(speaker, []).append(part)
    return files._replace(sounds={speaker: sorted(parts, key=rank) for speaker, parts in files.sounds.items()})


def _name(part: str) -> str:
    """Returns the last name of a path, with the slash of a folder."""
    return part.removesuffix("/").rpartition("/")[2] + ("/" if part.endswith("/") else "")


@dataclass(frozen=True)
class TracksSource:
    """A folder with the splits' folders inside, or of one split, or split by hashes of names."""

    folder: Path
    split: str = ""  # the split of the whole folder; "": by the folders inside, or by hashes
    shares: Shares | None = None  # of train, val and test where hashes split; None: 80/10/10
    options: TrackOptions = TrackOptions()

    def describe(self) -> dict[str, Any]:
        """Returns a checksum of the names and sizes of all files, and how they are read."""
        options = {"fps": self.options.fps, "max_gap_s": self.options.max_gap_s}
        options |= {"vad": self.options.vad} if self.options.vad else {}
        parts = {part: [str(column), column.kind] for part, column in self.mapping.parts.items()}
        return {"layout": "tracks", "files": self._digest(), "parts": parts, **options}

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for entry in self.entries():
            files = [path for part in entry.parts for path in _all_files(self.folder / part)]
            digest.update(repr((entry, [os.stat(path).st_size for path in files])).encode())
        return digest.hexdigest()

    def entries(self) -> list[Entry]:
        """Lists all recordings by name. Raises UserError where the folder holds none."""
        entries = split_of_files(self.folder, self.split, _pattern(), self.shares, with_folders=True)
        if not any(self._has_motion(part) for entry in entries for part in entry.parts):
            raise UserError(
                f"{self.folder} holds no motion of a tracker (NAME.{', .'.join(SUFFIXES)}, or a folder for each clip)"
            )
        people = read_people_table(self.folder)
        inside = any("/" in part.removesuffix("/") for entry in entries for part in entry.parts)
        if not people or self.split or inside:
            return entries
        # A person in training and in another split would be recognised there.
        groups = group_by_person([entry.name for entry in entries], people)
        splits = hashed_splits(sorted(set(groups.values())), self.shares)
        return [dataclasses.replace(entry, split=splits[groups[entry.name]]) for entry in entries]

    def _has_motion(self, part: str) -> bool:
        return part.endswith("/") or part.rpartition(".")[2].lower() in SUFFIXES

    def notes(self) -> tuple[str, ...]:
        """Returns what is taken from where, a sentence for each part."""
        return tuple(f"{part}: {array}, {what}" for part, array, what in self.mapping.rows)

    @functools.cached_property
    def mapping(self) -> Mapping:
        """Which array is which part, found out from some clips.

        Raises UserError where no clip can be read.
        """
        clips = [part for entry in self.entries() for part in entry.parts if self._has_motion(part)]
        return mapping_of([self.folder / clip for clip in clips], self.options)

    def table(self) -> str:
        """Returns what was found in the files and what is taken, in Markdown."""
        return self.mapping.table()

    def check(self) -> None:
        """Raises UserError, with all problems, where flags must decide which array is what."""
        if self.mapping.problems:
            raise UserError("; ".join(self.mapping.problems))

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Returns the reader; files are opened one by one. Raises UserError as `check`."""
        self.check()
        people = read_people_table(self.folder)
        yield lambda entry: self._read(entry, people.get(entry.name, ()))

    def _read(self, entry: Entry, names: tuple[str, ...]) -> Reading:
        files, notices = _sorted_files(entry), []
        sounds, problems = self._sounds(files, notices)
        frames = max((sound.channels.shape[1] // SAMPLES_PER_FRAME for sound in sounds.values()), default=0)
        if not files.motions:
            raise SkippedEntry(MISSING, "no file of a tracker", frames)
        speakers = sorted(files.motions) if "" in files.motions else ["1", "2"]
        if "" in files.motions and len(files.motions) > 1:
            raise SkippedEntry(DAMAGED, "motion both without and with _speaker1 or _speaker2 in its name", frames)
        if "" not in files.motions and files.rttm is None and len(files.motions.keys() | (sounds.keys() - {""})) < 2:
            raise SkippedEntry(PARTNER, "a recording of two people needs files of _speaker1 and _speaker2", frames)
        try:
            people = [self._frames(files, speaker, notices) for speaker in speakers]
            audio, masks = ([], []) if problems else self._audio(entry, files, sounds, people, notices)
        except UserError as error:
            raise SkippedEntry(DAMAGED, str(error).replace(f"{self.folder}/", ""), frames) from None
        if problems:
            tracked = max((len(person.grid.covered) for person in people if person is not None), default=frames)
            raise SkippedEntry(DAMAGED, "; ".join(problems), tracked)
        if len(names) not in (0, len(speakers)):
            notices.append(f"people.csv names {len(names)} persons of {len(speakers)}; they are not kept")
            names = ()
        whole = Whole(entry, people, audio, masks, names or ("",) * len(speakers))
        for notice in notices:
            log.warning("%s: %s", shown(entry.name), notice)
        return cut(whole, tuple(notices), "tracks")

    def _sounds(self, files: _Files, notices: list[str]) -> tuple[dict[str, Sound], list[str]]:
        """Returns the sound of each speaker's best file that has any, and what cannot be read."""
        sounds, problems = {}, []
        for speaker, parts in files.sounds.items():
            for part in parts:
                try:
                    sounds[speaker] = read_sound(self.folder / part)
                except NoSoundError:
                    continue
                except UserError as error:
                    problems.append(str(error).replace(f"{self.folder}/", ""))
                    break
                notices += [f"{shown(part)}: {notice}" for notice in sounds[speaker].notices]
                break
        if len(sounds) > 1 and "" in sounds:
            del sounds[""]  # each person's own file has what the mixture has
        return sounds, problems

    def _frames(self, files: _Files, speaker: str, notices: list[str]) -> Person | None:
        """Reads one person's motion and brings it to 25 frames a second; None without a file."""
        if speaker not in files.motions:
            return None
        part = files.motions[speaker]
        said: list[str] = []
        try:
            clip = extract(read_clip(self.folder / part), self.mapping)
            times = self._times(clip, files.sounds.get(speaker) or files.sounds.get("") or [], said)
            grid = on_grid(clip.values, clip.valid, times, self.options.max_gap_s)
        except UserError as error:
            raise UserError(f"{shown(part)}: {error}") from None
        notices += [f"{shown(part)}: {notice}" for notice in (*clip.notices, *said, *grid.notices)]
        # Zeros where the files have nothing, as the mask of channels says.
        return Person(grid, clip.observed, len(times))

    def _times(self, clip: Clip, media: list[str], said: list[str]) -> np.ndarray:
        """Returns the seconds of a clip's frames: by flag, file, video, or an assumed rate."""
        count = len(clip.values)
        if self.options.fps is not None:
            return even_times(count, self.options.fps)
        if clip.times is not None:
            return clip.times
        videos = [part for part in media if Path(part).suffix[1:].lower() in VIDEO]
        pictures = picture_times(self.folder / videos[0]) if videos else None
        if pictures is not None:
            rate = (len(pictures) - 1) / (pictures[-1] - pictures[0])
            if clip.fps is not None and abs(rate / clip.fps - 1) > RATES_WITHIN:
                said.append(f"it says {clip.fps:.6g} frames a second, its video has {rate:.6g}, which are taken")
            if len(pictures) == count:
                return pictures
            said.append(f"its video has {len(pictures)} pictures for {count} frames; their rate alone is taken")
            return even_times(count, rate)
        if clip.fps is None:
            said.append(f"no file says its rate, taken to be {FPS:g} frames a second; --fps says otherwise")
        return even_times(count, clip.fps or FPS)

    def _audio(
        self, entry: Entry, files: _Files, sounds: dict[str, Sound], people: list[Person | None], notices: list[str]
    ) -> tuple[list[np.ndarray | None], list[Turns | None]]:
        """Returns the sound and the turns of each person, None where there are none."""
        num_people = len(people)
        turns: list[Turns | None] = [None] * num_people
        if files.rttm is not None:
            turns, assumed = in_order(read_rttm(self.folder / files.rttm), num_people, shown(files.rttm))
            notices += assumed
        if not sounds:
            notices.append("no sound")
            return [None] * num_people, turns
        if "" not in sounds:
            if len(sounds) != num_people:
                raise SkippedEntry(PARTNER, f"sound of {len(sounds)} people, {num_people} are needed")
            audio = [mix_sound(entry, sounds[speaker], notices) for speaker in sorted(sounds)]
            return audio, self._found(audio, turns)
        if num_people == 1:
            audio = [mix_sound(entry, sounds[""], notices)]
            return audio, self._found(audio, turns)
        channels, _ = sounds[""].split()
        if len(channels) == 2:
            return list(channels), self._found(list(channels), turns)
        if turns[0] is None and self.options.vad is None:
            raise SkippedEntry(
                PARTNER, f"sound of {len(channels)} channels for two people, no .rttm, and no --vad to find their turns"
            )
        mixed = mix_sound(entry, sounds[""], notices)
        shared = self._shared(mixed, people, notices) if turns[0] is None else turns
        return [gated(mixed, spoken) for spoken in shared if spoken is not None], shared

    def _found(self, audio: list[np.ndarray], turns: list[Turns | None]) -> list[Turns | None]:
        """Returns the turns, found in each person's own sound where no file gives them."""
        if self.options.vad is None or turns[0] is not None:
            return turns
        return [turns_of(speech) for speech in find_speech(audio, self.options.vad)]

    def _shared(self, mixed: np.ndarray, people: list[Person | None], notices: list[str]) -> list[Turns | None]:
        """Returns the turns found in one microphone's sound, each given to the jaw that moves."""
        tracked = [person for person in people if person is not None and person.observed[JAW].all()]
        if len(tracked) < len(people):
            raise SkippedEntry(PARTNER, "one microphone for two people, no .rttm, and no jaws to tell who speaks")
        frames = min(len(person.grid.motion) for person in tracked)
        jaws = np.stack([person.grid.motion[:frames, JAW.start] for person in tracked])
        speech = share_by_jaws(find_speech([mixed], self.options.vad or "")[0], jaws)
        seconds = " and ".join(f"{count / FPS:.1f}" for count in speech.sum(axis=1))
        notices.append(f"one microphone: the moving jaw says who speaks, {seconds} s of speech")
        return [turns_of(person) for person in speech]


def _all_files(path: Path) -> list[str]:
    """Returns a file, or all files of a folder and those inside, in order."""
    if not path.is_dir():
        return [str(path)]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
