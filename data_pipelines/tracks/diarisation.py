"""Who speaks when, from RTTM, and one microphone's sound shared out among two people by it."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from unils_jax.audio import MAX_SECONDS
from unils_jax.errors import UserError, one_line, shown
from unils_jax.files import read_lines
from unils_jax.motion import FPS, SAMPLE_RATE

_FADE_SAMPLES = 81  # 5 ms, so that a turn begins and ends without a click

Turns = dict[str, list[tuple[float, float]]]  # speaker -> start and end in seconds


def read_rttm(path: Path) -> Turns:
    """Reads the turns of each speaker in the file's order. Raises UserError for a bad line."""
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no RTTM that can be read ({one_line(error, 80)}); get a fresh copy") from None
    turns: Turns = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            start, length, speaker = float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError):
            start = length = float("nan")
            speaker = ""
        if not (0 <= start <= MAX_SECONDS and 0 < length <= MAX_SECONDS):  # False for NaN, too
            raise UserError(f"{path} line {number} must be SPEAKER with start and length in seconds; mend it")
        turns.setdefault(speaker, []).append((start, start + length))
    if not turns:
        raise UserError(f"{path} names no turn of a speaker; give the RTTM of this recording")
    return turns


def in_order(turns: Turns, num_people: int, name: str) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """Returns the turns of each person, and what was assumed of whose they are.

    Names that end in 1 and 2 (speaker1, spk_2), or in 0 and 1, are those people; others are taken
    in the order of their first turns. Raises UserError for another number of speakers.
    """
    if len(turns) != num_people:
        raise UserError(f"{name} names {len(turns)} speakers, the motion is of {num_people}; give one for each person")
    ends = {speaker: re.search(r"(\d+)$", speaker) for speaker in turns}
    numbers = {speaker: int(found[1][-9:]) for speaker, found in ends.items() if found}
    if sorted(numbers.values()) in ([1, 2], [0, 1]) or num_people == 1:
        return [turns[speaker] for speaker in sorted(turns, key=lambda one: numbers.get(one, 0))], []
    first = sorted(turns, key=lambda speaker: min(turns[speaker]))
    listed = ", ".join(shown(speaker) for speaker in first)
    return [turns[speaker] for speaker in first], [
        f"speakers of {name} are taken in the order of their turns: {listed}"
    ]


def gated(sound: Float32[np.ndarray, " N"], turns: Sequence[tuple[float, float]]) -> Float32[np.ndarray, " N"]:
    """Returns the sound during a person's turns, silence elsewhere, at the same times."""
    gate = np.zeros(len(sound), np.float32)
    for start, end in turns:
        gate[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 1
    return sound * np.convolve(gate, np.full(_FADE_SAMPLES, 1 / _FADE_SAMPLES, np.float32), "same")[: len(sound)]


def speech_mask(turns: Sequence[tuple[float, float]], num_frames: int) -> Bool[np.ndarray, " T"]:
    """Returns the frames of which at least half is in a turn."""
    mask = np.zeros(num_frames, bool)
    for start, end in turns:
        mask[round(start * FPS) : round(end * FPS)] = True
    return mask
