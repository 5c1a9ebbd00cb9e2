"""The settings of the synthetic set and the plan of turns, phrases and back-channels.

A semi-Markov conversation of two. All rates are in `SynthConfig`; all draws are a pure function of
the generator that is passed in. Times are seconds from the start of the record.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from unils_jax.errors import UserError
from unils_jax.motion import FPS


@dataclass(frozen=True)
class SynthConfig:
    """Every rate of the synthetic conversation. Pairs are ranges (low, high)."""

    minutes: float = 2.0  # length of one conversation
    meetings_per_person: int = 2  # conversations of a split in which each person appears, about

    # Turns.
    turn_median_s: float = 4.0
    turn_log_std: float = 0.6  # deviation of the logarithm of a turn's length
    turn_s: tuple[float, float] = (1.0, 20.0)  # limits of a turn's length
    gap_mean_s: float = 0.2  # from one turn's end to the next turn's start; negative gaps overlap
    gap_std_s: float = 0.3
    silence_probability: float = 0.06  # that a gap is a longer silence
    silence_s: tuple[float, float] = (1.0, 3.0)  # length of such a silence
    phrase_s: tuple[float, float] = (1.0, 3.0)  # length of a phrase within a turn
    pause_s: tuple[float, float] = (0.15, 0.35)  # between phrases
    rising_probability: float = 0.3  # that a phrase ends like a question
    backchannels_per_min: float = 5.0  # of both people together
    backchannel_s: tuple[float, float] = (0.3, 0.6)  # length of a back-channel
    mask_closing_s: float = 0.4  # shorter pauses count as speech in the mask

    # Voice. Levels are against full scale.
    pitch_hz: tuple[float, float] = (90.0, 250.0)  # mean pitch of a person
    syllables_per_s: tuple[float, float] = (3.2, 5.0)
    accent_probability: float = 0.2  # that a syllable carries an accent
    breath_probability: float = 0.5  # that a breath precedes a phrase after a pause
    breath_db: float = -46.0
    voice_db: float = -24.0
    room_noise_db: float = -50.0
    crosstalk_db: float = -35.0  # the other's voice, relative to its own track

    # Lips and jaw.
    lead_s: tuple[float, float] = (0.04, 0.08)  # by how much the lips lead the sound
    coarticulation_s: float = 0.08  # time over which lip targets blend

    # Movements that no audio explains.
    blinks_per_min: tuple[float, float] = (10.0, 25.0)
    blink_s: tuple[float, float] = (0.15, 0.30)  # length of a blink
    blink_pause_s: float = 0.5  # after a blink, in which no other begins
    fixation_s: tuple[float, float] = (0.3, 2.0)  # length of a gaze
    look_at_partner_listening: float = 0.75  # share of gazes on the partner's face
    look_at_partner_speaking: float = 0.5
    smiles_per_min: tuple[float, float] = (2.0, 5.0)
    smile_s: tuple[float, float] = (1.0, 4.0)  # length of a smile

    # Loose answers to the other person, and beats of one's own accents.
    nod_probability: float = 0.4  # that a phrase of the other is answered by a nod
    nod_delay_s: tuple[float, float] = (0.3, 0.8)  # after the phrase's end
    nod_cycles: tuple[int, int] = (1, 4)
    nod_hz: tuple[float, float] = (2.0, 4.0)  # cycles a second
    smile_back_probability: float = 0.3  # that a smile of the other is answered
    brow_answer_probability: float = 0.2  # that raised brows answer a rising phrase
    accent_brow_probability: float = 0.25  # that the brows go with an own accent
    accent_nod_probability: float = 0.25  # that the head goes with an own accent

    # Tracking.
    jitter: float = 0.03  # noise in parts of a channel's deviation
    dropouts_per_min: float = 0.3  # stretches in which the tracker holds its last frame
    dropout_frames: tuple[int, int] = (2, 5)  # length of such a stretch

    def __post_init__(self):
        problems = []
        if not 0.1 <= self.minutes <= 120:
            problems.append(f"minutes must be in 0.1..120, got {self.minutes}")
        for name, value in vars(self).items():
            if isinstance(value, tuple) and (len(value) != 2 or not 0 < value[0] <= value[1] < np.inf):
                problems.append(f"{name} must be a range (low, high) above 0, got {value}")
            if name.endswith(("probability", "_listening", "_speaking")) and not 0 <= value <= 1:
                problems.append(f"{name} must be in 0..1, got {value}")
            if name.endswith("_per_min") and not isinstance(value, tuple) and not 0 <= value < np.inf:
                problems.append(f"{name} must not be negative, got {value}")
        if self.meetings_per_person < 1:
            problems.append(f"meetings_per_person must be at least 1, got {self.meetings_per_person}")
        if not 0 <= self.jitter <= 1:
            problems.append(f"jitter must be in 0..1, got {self.jitter}")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def num_frames(self) -> int:
        """Frames of one conversation at 25 fps."""
        return round(self.minutes * 60 * FPS)

    @property
    def duration_s(self) -> float:
        """Length of one conversation, a whole number of frames."""
        return self.num_frames / FPS


class Phrase(NamedTuple):
    """A stretch of one person's voice without a pause; `rising` ends like a question."""

    start_s: float
    end_s: float
    rising: bool
    backchannel: bool


class Turn(NamedTuple):
    """One person's turn at talk."""

    person: int
    start_s: float
    end_s: float


class Plan(NamedTuple):
    """Turns in order, and the phrases of each person sorted by start, back-channels among them."""

    turns: list[Turn]
    phrases: tuple[list[Phrase], list[Phrase]]


def plan_conversation(config: SynthConfig, rng: np.random.Generator) -> Plan:
    """Draws who talks when over the length of one conversation."""
    turns = _turns(config, rng)
    phrases: tuple[list[Phrase], list[Phrase]] = ([], [])
    for turn in turns:
        phrases[turn.person].extend(_phrases(config, turn, rng))
    backchannels = _backchannels(config, turns, phrases, rng)
    for person in range(2):
        phrases[person].extend(backchannels[person])
        phrases[person].sort()
    return Plan(turns, phrases)


def _turns(config: SynthConfig, rng: np.random.Generator) -> list[Turn]:
    turns: list[Turn] = []
    last_end = [-1.0, -1.0]
    person, start = int(rng.integers(2)), rng.uniform(0.2, 0.8)
    while start < config.duration_s - config.turn_s[0]:
        length = float(np.clip(config.turn_median_s * rng.lognormal(0, config.turn_log_std), *config.turn_s))
        turns.append(Turn(person, start, min(start + length, config.duration_s - 0.2)))
        last_end[person] = turns[-1].end_s
        gap = rng.normal(config.gap_mean_s, config.gap_std_s)
        if rng.random() < config.silence_probability:
            gap = rng.uniform(*config.silence_s)
        person = 1 - person
        # A person never overlaps themselves, and the next turn starts after this one has.
        start = max(turns[-1].end_s + gap, start + 0.5, last_end[person] + 0.5)
    return turns


def _phrases(config: SynthConfig, turn: Turn, rng: np.random.Generator) -> list[Phrase]:
    phrases, start = [], turn.start_s
    while start < turn.end_s - 0.3:
        end = start + rng.uniform(*config.phrase_s)
        # What would be left as a scrap joins this phrase.
        if turn.end_s - end < 0.8:
            end = turn.end_s
        phrases.append(Phrase(start, end, bool(rng.random() < config.rising_probability), False))
        start = end + rng.uniform(*config.pause_s)
    return phrases


def _backchannels(
    config: SynthConfig, turns: list[Turn], phrases: tuple[list[Phrase], list[Phrase]], rng: np.random.Generator
) -> tuple[list[Phrase], list[Phrase]]:
    candidates = []
    for talker in range(2):
        listener = 1 - talker
        for phrase in phrases[talker]:
            start = phrase.end_s + rng.uniform(-0.2, 0.2)
            end = start + rng.uniform(*config.backchannel_s)
            clear = all(end + 0.5 < t.start_s or t.end_s + 0.5 < start for t in turns if t.person == listener)
            if clear and end < config.duration_s - 0.2:
                candidates.append((listener, Phrase(start, end, False, True)))
    wanted = config.backchannels_per_min * config.duration_s / 60
    backchannels: tuple[list[Phrase], list[Phrase]] = ([], [])
    for listener, phrase in candidates:
        if rng.random() * len(candidates) < wanted:
            backchannels[listener].append(phrase)
    return backchannels


def speech_mask(config: SynthConfig, phrases: list[Phrase]) -> Bool[np.ndarray, " T"]:
    """Returns the frames where the voice is active, pauses under `mask_closing_s` closed."""
    mask = np.zeros(config.num_frames, bool)
    last_end = -np.inf
    for phrase in phrases:
        start = last_end if phrase.start_s - last_end < config.mask_closing_s else phrase.start_s
        mask[round(start * FPS) : round(phrase.end_s * FPS)] = True
        last_end = phrase.end_s
    return mask
