"""Faces and heads of the synthetic conversation: the events of each person, and the motion they add up to.

Three sources, kept apart in the events: own speech (tight), the other's speech and smiles (loose: that something may
happen, not what or when), and nobody's audio (blinks, gaze, sway, drift).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float16
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from data_pipelines.conversation import Phrase, Plan, SynthConfig
from data_pipelines.voice import Syllable
from unils_jax.motion import EYES, FPS, HEAD, JAW, MOTION_DIM, STANDIN_SHAPES

# Time grid on which movements are drawn: four points a frame.
GRID_HZ = 100
NUM_DRIFTS = 6

# Expression deviations as in tracked data: about 1 for the first ten channels, then 0.5, 0.3 and 0.15.
EXPRESSION_STD = np.repeat([1.0, 0.5, 0.3, 0.15], [10, 20, 30, 40])

# The deviation of each latent over a whole conversation, measured over two hours; scales the fixed mix only.
LATENT_STD = {"open": 0.36, "round": 0.28, "spread": 0.27, "close": 0.09, "teeth": 0.12, "smile": 0.165, "brow": 0.08}
LATENTS = (*LATENT_STD, *(f"drift{i}" for i in range(NUM_DRIFTS)))

# What the named shapes of the stand-in head do, as weights of latents in units of "fully expressed".
NAMED_MIX: dict[str, dict[str, float]] = {
    "smile_left": {"smile": 1.0, "drift0": 0.25},
    "smile_right": {"smile": 1.0, "drift0": 0.25},
    "lip_pucker": {"round": 1.05, "drift1": 0.2},
    "lip_stretch": {"spread": 1.05, "drift2": 0.2},
    "upper_lip_raise": {"open": 0.5, "teeth": 1.0, "close": -0.8, "drift3": 0.2},
    "lower_lip_drop": {"open": 0.75, "teeth": 0.8, "close": -1.0, "drift4": 0.15},
    "blink_left": {},
    "blink_right": {},
    "brow_up_left": {"brow": 1.0, "drift5": 0.28},
    "brow_up_right": {"brow": 1.0, "drift5": 0.28},
    "brow_inner_up": {"brow": 0.6, "drift5": 0.15, "drift1": 0.2},
    "brow_down": {"brow": -0.4, "drift2": -0.25, "drift5": -0.15},
    "squint": {"smile": 0.6, "drift2": 0.2, "drift0": 0.1},
    "eye_wide": {"brow": 0.8, "drift2": -0.25},
    "lip_press": {"close": 1.5, "open": -0.2, "drift3": 0.22},
    "lip_roll": {"close": 1.2, "drift3": 0.2, "drift4": -0.15},
    "mouth_corner_down": {"smile": -0.5, "drift0": -0.25},
    "cheek_raise": {"smile": 0.9, "drift0": 0.2},
    "cheek_puff": {"close": 1.0, "round": 0.2, "drift4": 0.25},
    "nose_wrinkle": {"teeth": 0.3, "drift3": 0.3},
    "mouth_left": {"drift1": 0.3},
    "mouth_right": {"drift1": -0.3},
    "chin_raise": {"close": 1.0, "drift4": 0.3},
    "sneer": {"teeth": 0.5, "drift3": 0.3},
}


def _fixed_mix() -> tuple[np.ndarray, np.ndarray]:
    """The basis all people share: a mix `[latents, 100]` and a neutral face `[100]`, from a constant seed.

    Channels without a name mix all latents at random, scaled to their deviation; their neutral is of its size. Named
    shapes are neutral near zero, so that the stand-in head rests with its eyes open.
    """
    rng = np.random.default_rng(20251209)
    spread = np.array([LATENT_STD.get(name, 1.0) for name in LATENTS])
    mix = rng.standard_normal((len(LATENTS), 100))
    mix *= EXPRESSION_STD / np.linalg.norm(mix, axis=0) / spread[:, None]
    neutral = EXPRESSION_STD * rng.standard_normal(100)
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        mix[:, channel] = [full * NAMED_MIX[name].get(latent, 0.0) for latent in LATENTS]
        neutral[channel] = 0.0
    return mix, neutral


MIX, NEUTRAL = _fixed_mix()


class Habits(NamedTuple):
    """What makes a person: rates, and a gain and an offset per channel `[108]`."""

    blinks_per_min: float
    smiles_per_min: float
    nod_gain: float
    jaw_gain: float
    gain: np.ndarray
    offset: np.ndarray


class Pulse(NamedTuple):
    """A movement with a beginning, a length and a size."""

    start_s: float
    length_s: float
    size: float


class Nod(NamedTuple):
    """`cycles` nods at `rate_hz`; size in radians. One cycle with `rate_hz` of 4 is the beat of an accent."""

    start_s: float
    cycles: int
    rate_hz: float
    size: float


class Gaze(NamedTuple):
    """A fixation that lasts until the next: horizontal and vertical angle against the partner's face, radians."""

    start_s: float
    yaw: float
    pitch: float


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
    """A person's habits. Offsets are about a third of a channel's deviation, and tiny on the eyelids."""
    offset = np.zeros(MOTION_DIM)
    offset[:100] = rng.normal(0, 0.3, 100) * EXPRESSION_STD
    lids = [i for i, name in enumerate(STANDIN_SHAPES) if name.startswith("blink")]
    offset[lids] *= 0.15
    offset[HEAD] = rng.normal(0, 0.06, 3)
    offset[JAW] = rng.normal(0.03, 0.004)
    offset[EYES] = np.tile(rng.normal(0, 0.02, 2), 2)
    gain = rng.lognormal(0, 0.1, MOTION_DIM)
    blinks, smiles = rng.uniform(*config.blinks_per_min), rng.uniform(*config.smiles_per_min)
    return Habits(float(blinks), float(smiles), rng.uniform(0.7, 1.3), rng.lognormal(0, 0.08), gain, offset)


def draw_own(
    config: SynthConfig,
    habits: Habits,
    phrases: list[Phrase],
    syllables: list[list[Syllable]],
    rng: np.random.Generator,
) -> Own:
    """Blinks, own smiles, gaze, and what goes with own accents."""
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
    return Own(_blinks(config, habits, rng), _smiles(config, habits, rng), _gazes(config, phrases, rng), brows, beats)


def _blinks(config: SynthConfig, habits: Habits, rng: np.random.Generator) -> list[Pulse]:
    blinks, mean_gap = [], 60 / habits.blinks_per_min
    start = rng.exponential(mean_gap)
    while start < config.duration_s - 0.3:
        length = rng.uniform(*config.blink_s)
        blinks.append(Pulse(start, length, 1.0))
        # Renewal: a pause in which no blink can follow, then an exponential wait; the mean gap is as configured.
        pause = length + config.blink_pause_s
        start += pause + rng.exponential(max(mean_gap - pause, 0.1))
    return blinks


def _smiles(config: SynthConfig, habits: Habits, rng: np.random.Generator) -> list[Pulse]:
    smiles, start = [], rng.exponential(60 / habits.smiles_per_min)
    while start < config.duration_s - 1:
        smiles.append(Pulse(start, rng.uniform(*config.smile_s), rng.uniform(0.4, 1.0)))
        start += smiles[-1].length_s + rng.exponential(60 / habits.smiles_per_min)
    return smiles


def _gazes(config: SynthConfig, phrases: list[Phrase], rng: np.random.Generator) -> list[Gaze]:
    gazes, start = [], 0.0
    while start < config.duration_s:
        speaking = any(p.start_s <= start < p.end_s for p in phrases)
        to_partner = config.look_at_partner_speaking if speaking else config.look_at_partner_listening
        if rng.random() < to_partner:
            gazes.append(Gaze(start, rng.normal(0, 0.04), rng.normal(0, 0.04)))
        else:
            gazes.append(Gaze(start, rng.normal(0, 0.36), rng.normal(0, 0.26)))
        start += rng.uniform(*config.fixation_s)
    return gazes


def draw_answers(
    config: SynthConfig, habits: Habits, plan: Plan, person: int, other: Own, rng: np.random.Generator
) -> Answers:
    """Nods after the other's phrases, smiles after their smiles, brows on their rising pitch: each with a chance."""
    own_phrases = plan.phrases[person]
    nods, brows = [], []
    for phrase in plan.phrases[1 - person]:
        silent = not any(p.start_s < phrase.end_s + 0.3 and phrase.end_s < p.end_s for p in own_phrases)
        if phrase.backchannel or not silent:
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


def _walk(num_points: int, columns: int, corner_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Correlated random walks `[G, columns]` of deviation one: spectrum flat to `corner_hz`, then falling as 1/f^2.

    Smoothed over 60 ms, as necks do, so that it falls faster above about 3 Hz.
    """
    keep = np.exp(-2 * np.pi * corner_hz / GRID_HZ)
    kicks = rng.standard_normal((num_points, columns))
    kicks[1:] *= np.sqrt(1 - keep**2)
    return gaussian_filter1d(lfilter([1.0], [1.0, -keep], kicks, axis=0), 0.06 * GRID_HZ, axis=0, mode="nearest")


def _rise_and_fall(pulses: list[Pulse], num_points: int) -> np.ndarray:
    """Sum of symmetric raised cosines `[G]`, bounded by 1."""
    track = np.zeros(num_points)
    for pulse in pulses:
        _add(track, pulse.start_s, pulse.size * np.hanning(max(3, round(pulse.length_s * GRID_HZ))))
    return np.minimum(track, 1.0)


def _lids(blinks: list[Pulse], num_points: int) -> np.ndarray:
    """How far the lids are closed, 0..1 `[G]`: down in a third of the blink, a moment shut, up more slowly."""
    track = np.zeros(num_points)
    for blink in blinks:
        place = (np.arange(round(blink.length_s * GRID_HZ)) + 0.5) / round(blink.length_s * GRID_HZ)
        closed = np.interp(place, [0, 0.3, 0.5, 1], [0, 1, 1, 0])
        _add(track, blink.start_s, closed**2 * (3 - 2 * closed))
    return np.minimum(track, 1.0)


def _nodding(nods: list[Nod], num_points: int) -> np.ndarray:
    """Head pitch of all nods `[G]`, radians, down first."""
    track = np.zeros(num_points)
    for nod in nods:
        length = max(4, round(nod.cycles / nod.rate_hz * GRID_HZ))
        time = np.arange(length) / GRID_HZ
        _add(track, nod.start_s, nod.size * np.sin(2 * np.pi * nod.rate_hz * time) * np.sqrt(np.hanning(length)))
    return track


def _add(track: np.ndarray, start_s: float, shape: np.ndarray) -> None:
    first = round(start_s * GRID_HZ)
    skip = max(0, -first)
    piece = shape[skip : skip + max(0, len(track) - max(first, 0))]
    track[max(first, 0) : max(first, 0) + len(piece)] += piece


def compose(
    config: SynthConfig,
    habits: Habits,
    lips: dict[str, np.ndarray],
    own: Own,
    answers: Answers,
    rng: np.random.Generator,
) -> Float16[np.ndarray, "T 108"]:
    """The motion of one person from lips (see `voice.articulation`, on a grid of 100 points a second) and events."""
    num_points = config.num_frames * GRID_HZ // round(FPS)
    tracks = dict(lips)
    tracks["smile"] = _rise_and_fall(own.smiles + answers.smiles, num_points)
    tracks["brow"] = _rise_and_fall(own.accent_brows + answers.brows, num_points)
    drifts = _walk(num_points, NUM_DRIFTS, 0.08, rng)
    tracks |= {f"drift{i}": drifts[:, i] for i in range(NUM_DRIFTS)}
    motion = np.zeros((num_points, MOTION_DIM))
    motion[:, :100] = NEUTRAL + np.stack([tracks[name] for name in LATENTS], axis=1) @ MIX
    lids = _lids(own.blinks, num_points)
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        if name.startswith("blink"):
            motion[:, channel] = full * lids
    motion[:, HEAD], motion[:, EYES] = _head_and_eyes(own, answers, num_points, rng)
    motion[:, JAW] = habits.jaw_gain * 0.155 * lips["open"][:, None]
    motion[:, :100] *= habits.gain[:100]
    motion += habits.offset
    # A frame shows the middle of its 40 ms.
    frames = motion[2 :: GRID_HZ // round(FPS)].copy()
    noise = np.concatenate([0.03 * EXPRESSION_STD, [0.002] * 3, [0.002], [0.004] * 4])
    frames += noise * rng.standard_normal(frames.shape)
    for start in rng.integers(1, len(frames), rng.poisson(config.dropouts_per_min * config.duration_s / 60)):
        frames[start : start + int(rng.integers(2, 6))] = frames[start - 1]
    return frames.astype(np.float16)


def _head_and_eyes(
    own: Own, answers: Answers, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Head rotation `[G, 3]` (pitch, yaw, roll) and both eyes `[G, 4]`, radians; the eyes lead, the head follows."""
    starts = np.array([round(g.start_s * GRID_HZ) for g in own.gazes])
    fixation = np.searchsorted(starts, np.arange(num_points), side="right") - 1
    target = np.array([(g.pitch, g.yaw) for g in own.gazes])[fixation]
    follow = 0.4 * gaussian_filter1d(_delayed(target, 0.2), 0.15 * GRID_HZ, axis=0, mode="nearest")
    posture = _walk(num_points, 3, 0.03, rng) * [0.07, 0.10, 0.09]
    sway = _walk(num_points, 3, 0.3, rng) * [0.06, 0.08, 0.07]
    head = posture + sway
    head[:, :2] += follow
    head[:, 0] += _nodding(answers.nods + own.beats, num_points)
    tremor = _walk(num_points, 2, 1.0, rng) * 0.01
    gaze = gaussian_filter1d(target, 0.02 * GRID_HZ, axis=0, mode="nearest") - follow + tremor
    return head, np.tile(gaze, 2)


def _delayed(track: np.ndarray, delay_s: float) -> np.ndarray:
    shift = round(delay_s * GRID_HZ)
    return np.concatenate([np.repeat(track[:1], shift, axis=0), track[: len(track) - shift]])
