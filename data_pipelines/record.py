"""The record: one conversation, or one person alone, as readers yield it and the store keeps it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.phones import Speech
from unils_jax.errors import UserError
from unils_jax.motion import BASES, FPS, MOTION_DIM, SAMPLES_PER_FRAME

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One sequence of P people (2: a dialogue, 1: a person alone), T frames at 25 fps.

    Arrays are not checked here: `validate` does that at the borders.
    """

    name: str
    # [P, T, 108] float16 or float32, radians and expression coefficients. The head rotation is
    # *not* centred: windows centre it, in the stored dtype.
    motion: np.ndarray
    audio: np.ndarray | None  # [P, N] int16, or float32 in -1..1
    speech_mask: np.ndarray | None  # [P, T] bool, true while that person speaks
    expression_basis: str  # meaning of the 100 expression channels: `flame` or `standin`
    # Latent events of synthetic records, JSON-able. "speech" holds what was said, see `speech`.
    events: dict[str, Any] = field(default_factory=dict)
    # The name of each person, () where unknown: a style can come from another record of the person.
    identities: tuple[str, ...] = ()
    # [P, 108] bool, false where the source has no such channel: it is zero in `motion` and left out
    # of statistics, losses and metrics. A person without any channel has a voice only. None: all
    # channels are there.
    observed: np.ndarray | None = None
    source: str = ""  # where the record comes from

    @property
    def num_people(self) -> int:
        """P, the number of people in the record."""
        return self.motion.shape[0]

    @property
    def num_frames(self) -> int:
        """T, the number of motion frames."""
        return self.motion.shape[1]

    @property
    def speech(self) -> tuple[Speech, ...]:
        """What each person said, phones with times and the recording; () where not known.

        The store keeps it as `events["speech"]`: `Speech.to_json` of each person.
        """
        return tuple(Speech.from_json(values) for values in self.events.get("speech", ()))


def validate(record: Record) -> None:
    """Checks a record against its description.

    Raises one UserError that names every problem at once.
    """
    problems = _motion_problems(record.motion)
    shaped = not problems
    problems += _text_problems(record)
    if record.expression_basis not in BASES:
        problems.append(f"expression_basis must be one of {BASES}, got {record.expression_basis!r}")
    if shaped and not np.isfinite(record.motion).all():
        frames = np.flatnonzero(~np.isfinite(record.motion).all(axis=(0, 2)))
        problems.append(f"motion holds NaN or infinite values in {len(frames)} frames, the first {frames[0]}")
    if record.audio is not None:
        problems += _audio_problems(record, shaped)
    if record.speech_mask is not None:
        mask = record.speech_mask
        if mask.dtype != np.bool_ or (shaped and mask.shape != record.motion.shape[:2]):
            expected = list(record.motion.shape[:2]) if shaped else "[P, T]"
            problems.append(f"speech_mask must be bool {expected}, got {mask.dtype} {list(mask.shape)}")
    if shaped:
        problems += _people_problems(record)
        problems += _speech_problems(record)
    if problems:
        raise UserError(f"record {record.name!r}: " + "; ".join(problems) + "; mend or leave out the record")


def _motion_problems(motion: np.ndarray) -> list[str]:
    problems = []
    if motion.ndim != 3 or motion.shape[0] not in (1, 2) or motion.shape[1] < 1 or motion.shape[2] != MOTION_DIM:
        problems.append(f"motion must be [1 or 2, at least 1, 108], got {list(motion.shape)}")
    if motion.dtype not in (np.float16, np.float32):
        problems.append(f"motion must be float16 or float32, got {motion.dtype}")
    return problems


def _text_problems(record: Record) -> list[str]:
    problems = [] if record.name else ["name must not be empty"]
    texts = {"name": record.name, "source": record.source}
    texts |= {f"identities[{i}]": text for i, text in enumerate(record.identities)}
    for field_name, text in texts.items():
        if not isinstance(text, str) or not (text.isprintable() and _is_unicode(text)):
            problems.append(f"{field_name} must be text without control characters, got {text!r}")
    return problems


def _is_unicode(text: str) -> bool:
    # A file name that is not UTF-8 arrives with lone surrogates, which nothing can write again.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _people_problems(record: Record) -> list[str]:
    """Checks `identities` and `observed` of each person."""
    problems, observed = [], record.observed
    if record.identities and len(record.identities) != record.num_people:
        problems.append(f"identities must name {record.num_people} people or nobody, got {len(record.identities)}")
    if observed is None:
        return problems
    if observed.dtype != np.bool_ or observed.shape != (record.num_people, MOTION_DIM):
        expected = [record.num_people, MOTION_DIM]
        return [*problems, f"observed must be bool {expected}, got {observed.dtype} {list(observed.shape)}"]
    if not observed.any():
        problems.append("observed marks every channel of every person as missing")
    elif (record.motion.any(axis=1) & ~observed).any():
        channels = np.flatnonzero((record.motion.any(axis=1) & ~observed).any(axis=0))
        problems.append(f"motion must be zero where observed is false, channel {channels[0]} is not")
    return problems


def _speech_problems(record: Record) -> list[str]:
    """Checks what was said: one entry a person, phones in order and within the record."""
    try:
        speech = record.speech
    except (KeyError, TypeError, ValueError) as error:
        return [f"events['speech'] must list {record.num_people} entries of Speech.to_json, got {error!r}"]
    if speech and len(speech) != record.num_people:
        return [f"events['speech'] must have {record.num_people} entries, got {len(speech)}"]
    problems, duration_s = [], record.num_frames / FPS
    for person, said in enumerate(speech):
        last_s = 0.0
        for label, start_s, end_s in said.phones:
            if not last_s - 1e-3 <= start_s <= end_s <= duration_s + 1e-3:
                found = f"{label!r} from {start_s} to {end_s}"
                problems.append(f"phones of person {person} must follow each other in the record, got {found}")
                break
            last_s = end_s
    return problems


def _audio_problems(record: Record, motion_is_shaped: bool) -> list[str]:
    audio, problems = record.audio, []
    if audio.dtype not in (np.int16, np.float32):
        problems.append(f"audio must be int16 or float32, got {audio.dtype}")
    elif not np.isfinite(audio).all():
        problems.append("audio holds NaN or infinite values")
    if audio.ndim != 2:
        problems.append(f"audio must be [P, N], got {list(audio.shape)}")
    elif motion_is_shaped:
        if audio.shape[0] != record.num_people:
            problems.append(f"audio must have as many tracks as motion ({record.num_people}), got {audio.shape[0]}")
        difference_frames = abs(audio.shape[1] / SAMPLES_PER_FRAME - record.num_frames)
        if difference_frames > 25:
            problems.append(
                f"audio of {audio.shape[1]} samples and motion of {record.num_frames} frames differ by "
                f"{difference_frames:.0f} frames, more than one second"
            )
    return problems
