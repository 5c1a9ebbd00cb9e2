"""Record -> training window, pure and seeded, with the release's semantics.

Source: the release's two data sets (unpaired motion, dialogue pairs). Training items start every 50 frames and
are jittered; the previous context is the 100 frames before, left-padded with zeros; the style reference is any 100
frames of the same person; the head rotation is centred over the whole record, in the stored dtype.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.schema import Record
from unils_jax.errors import UserError
from unils_jax.motion import SAMPLES_PER_FRAME, WINDOW_FRAMES, center_head

STRIDE_FRAMES = 50

# Draws an integer from low..high, both inclusive.
RandInt = Callable[[int, int], int]


def is_long_enough(frames: int, clip_frames: int = WINDOW_FRAMES, prev_frames: int = WINDOW_FRAMES) -> bool:
    """Whether the release keeps a sequence of so many frames: more than the longer of clip and context, plus one."""
    return frames > max(prev_frames, clip_frames) + 1


def training_index(
    lengths: Sequence[int], clip_frames: int = WINDOW_FRAMES, prev_frames: int = WINDOW_FRAMES
) -> list[tuple[int, int]]:
    """The training items `(record, i)` of records with `lengths` frames: starts i every 50 frames.

    Records that are not `is_long_enough` are left out.
    """
    return [
        (record, i)
        for record, frames in enumerate(lengths)
        if is_long_enough(frames, clip_frames, prev_frames)
        for i in range(0, frames - clip_frames, STRIDE_FRAMES)
    ]


def centered(record: Record) -> Record:
    """The record with every person's head rotation centred over the whole record, in the stored dtype."""
    return dataclasses.replace(record, motion=center_head(record.motion))


def one_person(record: Record, person: int) -> Record:
    """One person of a record as a record of its own, without audio: the view of the codec and the prior."""
    mask = None if record.speech_mask is None else record.speech_mask[person : person + 1]
    return dataclasses.replace(record, motion=record.motion[person : person + 1], audio=None, speech_mask=mask)


def cut_window(record: Record, i: int, randint: RandInt) -> dict[str, np.ndarray]:
    """The jittered training window of item `i` (a multiple of 50 out of `training_index`).

    Returns `motion`, `prev` and `style` `[P, 100, 108]` in the stored dtype, head rotation centred, and where the
    record has them `audio [P, 64000]` float32 and `speech_mask [P, 100]` bool. `randint(low, high)` includes both
    ends and is called for the start, then for the style of each person in turn. People share the start.
    Raises UserError for a record too short to cut.
    """
    return cut_centered(centered(record), i, randint)


def cut_centered(record: Record, i: int, randint: RandInt) -> dict[str, np.ndarray]:
    """`cut_window` of a record that `centered` has made: centring is done once, not once a window."""
    frames = record.num_frames
    _check_length(record)
    start = min(randint(i, i + STRIDE_FRAMES), frames - WINDOW_FRAMES)
    styles = [randint(0, frames - WINDOW_FRAMES) for _ in range(record.num_people)]
    window = {
        "motion": record.motion[:, start : start + WINDOW_FRAMES],
        "prev": _frames_before(record.motion, start),
        "style": _style(record.motion, styles),
    }
    if record.audio is not None:
        first_sample = start * SAMPLES_PER_FRAME
        window["audio"] = _audio(record, first_sample, first_sample + WINDOW_FRAMES * SAMPLES_PER_FRAME)
    if record.speech_mask is not None:
        window["speech_mask"] = record.speech_mask[:, start : start + WINDOW_FRAMES]
    return window


def whole_sequence(record: Record) -> dict[str, np.ndarray]:
    """The validation and test item: the whole record, without randomness.

    Returns `motion [P, T, 108]` and `style [P, 100, 108]` (from frame `min(T // 2, T - 100)` of the same record) in
    the stored dtype, head rotation centred, and where the record has them `audio [P, T * 640]` float32 and
    `speech_mask [P, T]` bool. Raises UserError for a record too short to have a style.
    """
    frames = record.num_frames
    _check_length(record)
    motion = centered(record).motion
    middle = min(frames // 2, frames - WINDOW_FRAMES)
    item = {"motion": motion, "style": _style(motion, [middle] * record.num_people)}
    if record.audio is not None:
        item["audio"] = _audio(record, 0, frames * SAMPLES_PER_FRAME)
    if record.speech_mask is not None:
        item["speech_mask"] = record.speech_mask
    return item


def _check_length(record: Record) -> None:
    if not is_long_enough(record.num_frames):
        raise UserError(
            f"record {record.name!r} has {record.num_frames} frames, a window needs at least {WINDOW_FRAMES + 2}; "
            "leave the record out"
        )


def _frames_before(motion: np.ndarray, start: int) -> np.ndarray:
    before = motion[:, max(0, start - WINDOW_FRAMES) : start]
    missing = WINDOW_FRAMES - before.shape[1]
    return np.pad(before, ((0, 0), (missing, 0), (0, 0)))


def _style(motion: np.ndarray, starts: list[int]) -> np.ndarray:
    return np.stack([motion[p, s : s + WINDOW_FRAMES] for p, s in enumerate(starts)])


def _audio(record: Record, first: int, last: int) -> np.ndarray:
    """Samples `first`..`last` of all tracks as float32: what lies behind the track or behind T * 640 is zero."""
    end = min(last, record.audio.shape[1], record.num_frames * SAMPLES_PER_FRAME)
    samples = np.zeros((record.num_people, last - first), np.float32)
    if end > first:
        piece = record.audio[:, first:end]
        samples[:, : end - first] = piece / np.float32(32768) if piece.dtype == np.int16 else piece
    return samples
