"""Record -> training window, pure and seeded, with the release's semantics.

Source: the release's two data sets (unpaired motion, dialogue pairs). Training items start every 50
frames and are jittered; the previous context is the 100 frames before, left-padded with zeros; the
style reference is any 100 frames of the same person; the head rotation is centred over the whole
record, in the stored dtype. A `Window` says how many frames each of them has, 100 in the release.

Windows are cut from a `WindowSource`: a `RecordSource` (a record in memory) or a
`store.StoredRecord` (reads what it needs).
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_pipelines.record import Record
from unils_jax.errors import UserError
from unils_jax.motion import HEAD, SAMPLES_PER_FRAME, WINDOW_FRAMES, Window, center_head, head_mean

STRIDE_FRAMES = 50
RELEASE_WINDOW = Window()

# Draws an integer from low..high, both inclusive.
RandInt = Callable[[int, int], int]


def is_long_enough(frames: int) -> bool:
    """Returns whether the release keeps a sequence of so many frames.

    It keeps those of more than the longer of clip and context, plus one.
    """
    return frames >= least_frames(RELEASE_WINDOW)


def training_index(
    lengths: Sequence[int] | np.ndarray, clip_frames: int = WINDOW_FRAMES, prev_frames: int = WINDOW_FRAMES
) -> Int64[np.ndarray, "items 2"]:
    """Lists the training items `(record, i)` of records with `lengths` frames.

    Starts i are every 50 frames. Records that are not `is_long_enough` are left out.
    """
    frames = np.asarray(lengths, np.int64)
    counts = np.where(frames > max(prev_frames, clip_frames) + 1, -(-(frames - clip_frames) // STRIDE_FRAMES), 0)
    records = np.repeat(np.arange(len(frames)), counts)
    first_item = np.cumsum(counts) - counts
    starts = (np.arange(len(records)) - first_item[records]) * STRIDE_FRAMES
    return np.stack([records, starts], axis=1)


@runtime_checkable
class WindowSource(Protocol):
    """One record that windows are cut from."""

    name: str
    num_people: int
    num_frames: int
    has_audio: bool
    num_samples: int  # of audio, up to T * 640

    def frames(
        self, spans: Sequence[tuple[int, int, int]], *, centred: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Returns motion `[last - first, 108]` and speech mask of each `(person, first, last)`."""

    def audio(self, first: int, last: int) -> np.ndarray:
        """Returns samples `first`..`last` `[P, last - first]` float32, zero behind the end."""


class RecordSource:
    """A record in memory as a source of windows."""

    def __init__(self, record: Record):
        self._record = record
        self._head_mean = head_mean(record.motion)[:, 0]
        self.name, self.num_people, self.num_frames = record.name, record.num_people, record.num_frames
        self.has_audio = record.audio is not None
        samples = 0 if record.audio is None else record.audio.shape[1]
        self.num_samples = min(samples, self.num_frames * SAMPLES_PER_FRAME)

    def frames(
        self, spans: Sequence[tuple[int, int, int]], *, centred: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Returns motion `[last - first, 108]` and speech mask of each `(person, first, last)`.

        The head rotation is `centred` or as it was.
        """
        out, mask = [], self._record.speech_mask
        for person, first, last in spans:
            motion = self._record.motion[person, first:last].copy()
            if centred:
                motion[:, HEAD] -= self._head_mean[person]
            out.append((motion, None if mask is None else mask[person, first:last]))
        return out

    def audio(self, first: int, last: int) -> np.ndarray:
        """Returns samples `first`..`last` `[P, last - first]` float32.

        They are zero behind the end of the track and behind T * 640.
        """
        track = self._record.audio
        end = min(last, self.num_samples)
        samples = np.zeros((self.num_people, last - first), np.float32)
        if end > first:
            samples[:, : end - first] = to_float(track[:, first:end])
        return samples


def cut_window(
    source: WindowSource,
    i: int,
    randint: RandInt,
    window: Window = RELEASE_WINDOW,
    *,
    centred: bool = True,
    audio: bool = True,
) -> dict[str, np.ndarray]:
    """Cuts the jittered training window of item `i` (a multiple of 50 out of `training_index`).

    Returns `motion [P, T, 108]`, `prev` and `style` `[P, F, 108]` (F the `context_frames`) in the
    stored dtype, head rotation `centred` or as it was, and where the source has them `audio [P, N]`
    float32 of the window's `audio_span`, if it is asked for, and `speech_mask [P, T]` bool.
    `randint(low, high)` includes both ends and is called for the start, then for the style of each
    person in turn. People share the start. Raises UserError for a record too short to cut.
    """
    frames, people, context = source.num_frames, range(source.num_people), window.context_frames
    _check_length(source.name, frames, window)
    start = min(randint(i, i + STRIDE_FRAMES), frames - window.frames)
    styles = [randint(0, frames - context) for _ in people]
    before = min(start, context)
    spans = [(person, start - before, start + window.frames) for person in people]
    spans += [(person, first, first + context) for person, first in zip(people, styles, strict=True)]
    cuts = source.frames(spans, centred=centred)
    current, style = cuts[: len(people)], cuts[len(people) :]
    prev = np.zeros((len(people), context, current[0][0].shape[-1]), current[0][0].dtype)
    for person, (motion, _) in enumerate(current):
        prev[person, context - before :] = motion[:before]
    cut = {
        "motion": np.stack([motion[before:] for motion, _ in current]),
        "prev": prev,
        "style": np.stack([motion for motion, _ in style]),
    }
    if source.has_audio and audio:
        cut["audio"] = padded_audio(source, *window.audio_span(start))
    if current[0][1] is not None:
        cut["speech_mask"] = np.stack([mask[before:] for _, mask in current])
    return cut


def padded_audio(source: WindowSource, first: int, last: int) -> np.ndarray:
    """Returns samples `first`..`last` of a source, zero before the record and behind its end."""
    audio = source.audio(max(first, 0), last)
    return np.pad(audio, ((0, 0), (-first, 0))) if first < 0 else audio


def whole_sequence(record: Record, style_frames: int = WINDOW_FRAMES) -> dict[str, np.ndarray]:
    """Returns the validation and test item: the whole record, without randomness.

    It holds `motion [P, T, 108]` and `style [P, F, 108]` of F `style_frames` (from frame `min(T //
    2, T - F)` of the same record) in the stored dtype, head rotation centred, and where the record
    has them `audio [P, T * 640]` float32 and `speech_mask [P, T]` bool. Raises UserError for a
    record too short to have a style.
    """
    frames = record.num_frames
    _check_length(record.name, frames, Window(style_frames))
    motion = center_head(record.motion)
    middle = min(frames // 2, frames - style_frames)
    item = {"motion": motion, "style": motion[:, middle : middle + style_frames].copy()}
    if record.audio is not None:
        item["audio"] = RecordSource(record).audio(0, frames * SAMPLES_PER_FRAME)
    if record.speech_mask is not None:
        item["speech_mask"] = record.speech_mask
    return item


def to_float(audio: np.ndarray) -> np.ndarray:
    """Returns stored samples as float32 in -1..1."""
    return audio * np.float32(1 / 32768) if audio.dtype == np.int16 else audio


def least_frames(window: Window) -> int:
    """Returns the frames of the shortest record that windows are cut from."""
    return max(window.context_frames, window.frames) + 2


def _check_length(name: str, frames: int, window: Window) -> None:
    if frames < least_frames(window):
        raise UserError(
            f"record {name!r} has {frames} frames, a window needs at least {least_frames(window)}; leave the record out"
        )
