"""What people do in the synthetic conversation: habits, and events that move face and head.

Three sources, kept apart: own speech (tight), the other's speech and smiles (loose: they decide
that something may happen, not what or when), and no audio at all (blinks, gaze, smiles). `faces`
turns events into motion. Times are seconds from the start of the record, angles radians; head and
eyes turn down and to the person's left with positive angles.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.synthetic.conversation import Phrase, Plan, SynthConfig
from data_pipelines.synthetic.voice import Syllable
from unils_jax.motion import EYES, HEAD, JAW, MOTION_DIM, STANDIN_SHAPES

# Deviations as in tracked data: about 1 for the first ten channels, then 0.5, 0.3 and 0.15.
EXPRESSION_STD = np.repeat([1.0, 0.5, 0.3, 0.15], [10, 20, 30, 40])


class Habits(NamedTuple):
    """The habits of one person."""

    blinks_per_min: float
    smiles_per_min: float
    nod_gain: float
    gain: np.ndarray  # [108], per channel
    offset: np.ndarray  # [108], per channel


class Pulse(NamedTuple):
    """A movement with a beginning, a length and a size."""

    start_s: float
    length_s: float
    size: float


class Nod(NamedTuple):
    """`cycles` nods at `rate_hz`; size in radians. One cycle of 4 Hz is the beat of an accent."""

    start_s: float
    cycles: int
    rate_hz: float
    size: float


class Gaze(NamedTuple):
    """A fixation that lasts until the next one: angles against the partner's face, radians."""

    start_s: float
    yaw: float
    pitch: float


class Laugh(NamedTuple):
    """A bout of laughter: bursts of an open mouth under a smile, the head thrown back."""

    start_s: float
    length_s: float
    rate_hz: float  # bursts a second
    size: float  # how far the head goes back, 0..1


class Dropout(NamedTuple):
    """Frames in which the tracker shows its last frame before them."""

    start_frame: int
    num_frames: int


class Movements(NamedTuple):
    """All that a face and head do apart from speaking."""

    blinks: list[Pulse]
    smiles: list[Pulse]
    brows: list[Pulse]
    nods: list[Nod]
    gazes: list[Gaze]
    laughs: list[Laugh]
    sway: float = 1.0  # gain on what the head does by itself
    drift: float = 1.0  # gain on what the face does by itself


class Own(NamedTuple):
    """Events that depend on this person alone."""

    blinks: list[Pulse]
    smiles: list[Pulse]
    gazes: list[Gaze]
    accent_brows: list[Pulse]
    beats: list[Nod]


class Answers(NamedTuple):
    """Events that answer the other person."""

    nods: list[Nod]
    smiles: list[Pulse]
    brows: list[Pulse]


def draw_habits(config: SynthConfig, rng: np.random.Generator) -> Habits:
    """Draws a person's habits.

    Offsets are about a third of a channel's deviation, and tiny on the eyelids; both eyes turn
    alike.
    """
    offset = np.zeros(MOTION_DIM)
    offset[:100] = rng.normal(0, 0.3, 100) * EXPRESSION_STD
    lids = [i for i, name in enumerate(STANDIN_SHAPES) if name.startswith("blink")]
    offset[lids] *= 0.15
    offset[HEAD] = rng.normal(0, 0.06, 3)
    offset[JAW] = rng.normal(0.03, 0.004)
    offset[EYES] = np.tile(rng.normal(0, 0.02, 2), 2)
    gain = rng.lognormal(0, 0.1, MOTION_DIM)
    gain[EYES] = np.tile(gain[EYES][:2], 2)
    return Habits(
        blinks_per_min=rng.uniform(*config.blinks_per_min),
        smiles_per_min=rng.uniform(*config.smiles_per_min),
        nod_gain=rng.uniform(0.7, 1.3),
        gain=gain,
        offset=offset,
    )


def draw_own(
    config: SynthConfig,
    habits: Habits,
    phrases: list[Phrase],
    syllables: list[list[Syllable]],
    rng: np.random.Generator,
) -> Own:
    """Draws blinks, own smiles, gaze, and what goes with own accents."""
    accents = [s for phrase in syllables for s in phrase if s.accent]
    brows = [
        Pulse(s.vowel_s - 0.1, 0.5, rng.uniform(0.3, 0.8))
        for s in accents
        if rng.random() < config.accent_brow_probability
    ]
    beats = [
        Nod(s.vowel_s - 0.05, 1, 4.0, rng.uniform(0.02, 0.06))
        for s in accents
        if rng.random() < config.accent_nod_probability
    ]
    return Own(
        draw_blinks(config, habits, rng),
        draw_smiles(config, habits, rng),
        draw_gazes(config, phrases, rng),
        brows,
        beats,
    )


def draw_blinks(config: SynthConfig, habits: Habits, rng: np.random.Generator) -> list[Pulse]:
    """Draws blinks as a renewal process at the person's rate."""
    blinks, mean_gap = [], 60 / habits.blinks_per_min
    start = rng.exponential(mean_gap)
    while start < config.duration_s - 0.3:
        length = rng.uniform(*config.blink_s)
        blinks.append(Pulse(start, length, 1.0))
        # Renewal: a pause in which no blink can follow, then an exponential wait. The mean gap is
        # as configured.
        pause = length + config.blink_pause_s
        start += pause + rng.exponential(max(mean_gap - pause, 0.1))
    return blinks


def draw_smiles(config: SynthConfig, habits: Habits, rng: np.random.Generator) -> list[Pulse]:
    """Draws smiles that answer no other smile, one at a time."""
    smiles, start = [], rng.exponential(60 / habits.smiles_per_min)
    while start < config.duration_s - 1:
        smiles.append(Pulse(start, rng.uniform(*config.smile_s), rng.uniform(0.4, 1.0)))
        start += smiles[-1].length_s + rng.exponential(60 / habits.smiles_per_min)
    return smiles


def draw_gazes(config: SynthConfig, phrases: list[Phrase], rng: np.random.Generator) -> list[Gaze]:
    """Draws fixations one after another, on the partner's face or away from it."""
    gazes, start = [], 0.0
    while start < config.duration_s:
        speaking = any(p.start_s <= start < p.end_s for p in phrases)
        to_partner = config.look_at_partner_speaking if speaking else config.look_at_partner_listening
        if rng.random() < to_partner:
            gazes.append(Gaze(start, rng.normal(0, 0.04), rng.normal(0, 0.04)))
        else:
            gazes.append(Gaze(start, rng.normal(0, 0.36), rng.normal(0, 0.33)))
        start += rng.uniform(*config.fixation_s)
    return gazes


def invites_nod(phrase: Phrase, own_phrases: list[Phrase]) -> bool:
    """Returns whether the other's phrase may be answered by a nod.

    It must be no back-channel, and its end must meet a silent listener.
    """
    silent = not any(p.start_s < phrase.end_s + 0.3 and phrase.end_s < p.end_s for p in own_phrases)
    return silent and not phrase.backchannel


def draw_answers(
    config: SynthConfig, habits: Habits, plan: Plan, person: int, other: Own, rng: np.random.Generator
) -> Answers:
    """Draws answers to the other person, each with a chance.

    Nods follow the other's phrases, smiles their smiles, brows their rising pitch.
    """
    own_phrases = plan.phrases[person]
    nods, brows = [], []
    for phrase in plan.phrases[1 - person]:
        if not invites_nod(phrase, own_phrases):
            continue
        delay, cycles = rng.uniform(*config.nod_delay_s), int(rng.integers(*config.nod_cycles, endpoint=True))
        nod = Nod(phrase.end_s + delay, cycles, rng.uniform(*config.nod_hz), habits.nod_gain * rng.uniform(0.06, 0.16))
        if rng.random() < config.nod_probability:
            nods.append(nod)
        brow = Pulse(phrase.end_s + rng.uniform(-0.1, 0.6), rng.uniform(0.5, 1.2), rng.uniform(0.4, 1.0))
        if phrase.rising and rng.random() < config.brow_answer_probability:
            brows.append(brow)
    smiles = [
        Pulse(s.start_s + rng.uniform(0.3, 1.0), s.length_s * rng.uniform(0.7, 1.2), s.size * rng.uniform(0.6, 1.1))
        for s in other.smiles
        if rng.random() < config.smile_back_probability
    ]
    return Answers(nods, smiles, brows)


def together(own: Own, answers: Answers) -> Movements:
    """Joins a person's own events and answers."""
    return Movements(
        own.blinks,
        own.smiles + answers.smiles,
        own.accent_brows + answers.brows,
        own.beats + answers.nods,
        own.gazes,
        [],
    )


def draw_dropouts(config: SynthConfig, rng: np.random.Generator) -> list[Dropout]:
    """Draws where tracking fails, sorted; never at the first frame."""
    expected = config.dropouts_per_min * config.duration_s / 60
    starts = np.sort(rng.integers(1, config.num_frames, rng.poisson(expected)))
    return [Dropout(int(start), int(rng.integers(*config.dropout_frames, endpoint=True))) for start in starts]
