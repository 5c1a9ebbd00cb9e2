"""The record: one conversation, or one person alone, as every reader yields it and the store keeps it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unils_jax.errors import UserError
from unils_jax.motion import BASES, MOTION_DIM, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Record:
    """One sequence of P people (2: a dialogue, 1: a person alone), T frames at 25 fps, N samples at 16 kHz.

    `motion [P, T, 108]` is float16 or float32, radians and expression coefficients, the head rotation *not*
    centred (windows centre it, in the stored dtype). `audio [P, N]` is int16 or float32 in -1..1, or None.
    `speech_mask [P, T]` is bool, true while that person speaks, or None. `expression_basis` says what the 100
    expression channels mean (`flame` or `standin`). `events` holds the latent events of synthetic records, as
    JSON-able values. Arrays are not checked here: `validate` does that at the borders.
    """

    name: str
    motion: np.ndarray
    audio: np.ndarray | None
    speech_mask: np.ndarray | None
    expression_basis: str
    events: dict[str, Any] = field(default_factory=dict)

    @property
    def num_people(self) -> int:
        """P, the number of people in the record."""
        return self.motion.shape[0]

    @property
    def num_frames(self) -> int:
        """T, the number of motion frames."""
        return self.motion.shape[1]


def validate(record: Record) -> None:
    """Checks a record against its description. Raises one UserError that names every problem at once."""
    problems = _motion_problems(record.motion)
    shaped = not problems
    if not record.name:
        problems.append("name must not be empty")
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
    if problems:
        raise UserError(f"record {record.name!r}: " + "; ".join(problems) + "; mend or leave out the record")


def _motion_problems(motion: np.ndarray) -> list[str]:
    problems = []
    if motion.ndim != 3 or motion.shape[0] not in (1, 2) or motion.shape[1] < 1 or motion.shape[2] != MOTION_DIM:
        problems.append(f"motion must be [1 or 2, at least 1, 108], got {list(motion.shape)}")
    if motion.dtype not in (np.float16, np.float32):
        problems.append(f"motion must be float16 or float32, got {motion.dtype}")
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
