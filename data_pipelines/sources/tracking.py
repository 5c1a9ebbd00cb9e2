"""What readers of face trackers' files share: flags, a folder's mapping, pieces between gaps."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.record import Record
from data_pipelines.sources.base import LENGTHS, NO_FACE, SHORT, Entry, Reading, SkippedEntry, Track, assemble
from data_pipelines.tracks.diarisation import speech_mask
from data_pipelines.tracks.files import read_clip
from data_pipelines.tracks.mapping import Column, Mapping, find_mapping
from data_pipelines.tracks.pieces import MAX_GAP_S, Frames, rate_hint, runs, together
from data_pipelines.windows import is_long_enough
from unils_jax.errors import UserError
from unils_jax.motion import FPS, SAMPLES_PER_FRAME, WINDOW_FRAMES

INSPECTED = 20  # clips, evenly over the folder, that the mapping is found out from


@dataclass(frozen=True)
class TrackOptions:
    """What flags say of a tracker's files."""

    layout: str = "auto"  # a name of `LAYOUTS`; "auto": found out by the names
    keys: dict[str, Column] = field(default_factory=dict)  # parts that are named
    rotations: dict[str, str] = field(default_factory=dict)  # kinds of rotations by part
    fps: float | None = None  # of all files; None: as they or their videos say
    max_gap_s: float = MAX_GAP_S  # of lost tracking that is interpolated; longer gaps are cut out
    vad: str | None = None  # of `DETECTORS`, which finds turns that no file gives; None: none


def mapping_of(clips: Sequence[Path], options: TrackOptions) -> Mapping:
    """Finds out which array is which part, from some clips.

    Raises UserError where none of these can be read.
    """
    samples, problem = [], ""
    for i in np.unique(np.linspace(0, len(clips) - 1, min(INSPECTED, len(clips))).round().astype(int)):
        try:
            samples.append(read_clip(clips[i]))
        except UserError as error:
            problem = str(error)
    if not samples:
        raise UserError(f"none of the clips that were looked at can be read, the last: {problem}")
    return find_mapping(samples, options.layout, options.keys, options.rotations)


class Person(NamedTuple):
    """One person's motion at 25 frames a second and what of it the files have."""

    grid: Frames
    observed: np.ndarray  # [108] bool
    num_frames: int  # of the tracker


class Whole(NamedTuple):
    """An entry before it is cut: everything from the time 0 of its sound on."""

    entry: Entry
    people: list[Person | None]
    audio: list[np.ndarray | None]
    turns: list[list[tuple[float, float]] | None]
    names: tuple[str, ...]


def cut(whole: Whole, notices: tuple[str, ...], source: str) -> Reading:
    """Returns the pieces of a recording between gaps. Raises SkippedEntry where there is none.

    At least one of its people has motion.
    """
    tracked = [person for person in whole.people if person is not None]
    counts = [len(person.grid.covered) for person in tracked]
    frames_in = max(counts)
    _check_lengths(whole, counts, frames_in)
    kept, gaps = runs(together([person.grid for person in tracked]))
    lost = [SkippedEntry(NO_FACE, f"frames {a} to {b - 1} without a face", b - a) for a, b in gaps]
    records: list[Record] = []
    for first, last in kept:
        try:
            records.append(_piece(whole, first, last, source, alone=len(kept) == 1))
        except SkippedEntry as skipped:
            lost.append(SkippedEntry(skipped.reason, f"frames {first} to {last - 1}: {skipped.detail}", last - first))
    if not records:
        reason = SHORT if kept else NO_FACE
        detail = "; ".join(span.detail for span in lost[:5])
        only = lost[0].reason if len(lost) == 1 else reason
        raise SkippedEntry(only, detail, frames_in)
    return Reading(records[0], frames_in, notices, tuple(records[1:]), tuple(lost))


def _check_lengths(whole: Whole, counts: list[int], frames_in: int) -> None:
    seconds = [len(audio) / SAMPLES_PER_FRAME / FPS for audio in whole.audio if audio is not None]
    wrong = [s for s in seconds if abs(s * FPS - frames_in) >= 2]
    if wrong:
        tracked = next(person.num_frames for person in whole.people if person is not None)
        lengths = f"motion {frames_in / FPS:.2f} s, sound {wrong[0]:.2f} s"
        raise SkippedEntry(LENGTHS, lengths + rate_hint(tracked, wrong[0]), frames_in)
    if frames_in - min(counts) > 1:
        raise SkippedEntry(LENGTHS, f"the motion of its people has {' and '.join(map(str, counts))} frames", frames_in)


def _piece(whole: Whole, first: int, last: int, source: str, *, alone: bool) -> Record:
    if not is_long_enough(last - first):
        raise SkippedEntry(SHORT, f"{last - first} frames, at least {WINDOW_FRAMES + 2} are needed")
    tracks = []
    for person, audio, turns, name in zip(whole.people, whole.audio, whole.turns, whole.names, strict=True):
        motion = None if person is None else person.grid.motion[first:last]
        # The grid begins with the sound, and a frame is a whole number of samples.
        cut_out = None if audio is None else audio[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME]
        mask = None if turns is None else speech_mask(turns, last)[first:]
        observed = None if person is None or person.observed.all() else person.observed
        tracks.append(Track(motion, cut_out, mask, observed, name))
    name = whole.entry.name if alone else f"{whole.entry.name}_from{first}"
    entry = dataclasses.replace(whole.entry, name=name, frames=None)
    return assemble(entry, tracks, expression_basis="flame", source=source).record
