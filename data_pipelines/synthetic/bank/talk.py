"""Phrases spoken with the bank: utterances chosen by length, stretched, and their lips."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter1d

from data_pipelines.phones import Phone, Speech, vowels_of
from data_pipelines.synthetic.bank.bank import GRID_HZ, LEVEL_DB, Bank, Utterance
from data_pipelines.synthetic.bank.speakers import Speaker
from data_pipelines.synthetic.bank.stretch import stretch
from data_pipelines.synthetic.bank.visemes import opened, paint_phones
from data_pipelines.synthetic.conversation import Phrase, SynthConfig
from data_pipelines.synthetic.lips import LipTargets
from data_pipelines.synthetic.voice import Syllable, breathe
from unils_jax.motion import SAMPLE_RATE

# Raised whenever the same bank would give other records.
TALK_VERSION = 2
# Limits of the factor by which an utterance's length changes.
STRETCH = (0.85, 1.2)
# Of so many utterances nearest in length one is drawn, so that speakers repeat themselves less.
NUM_NEAREST = 5
# What a phrase leaves free before the next one and at the end of the record.
SPACE_S = 0.08
LOUDNESS = (0.1, 2.5)  # limits of a voice's loudness where lips follow it
EFFORT_S = 0.02  # time over which they do


class Piece(NamedTuple):
    """An utterance at its place in the record, with its own loudness over time."""

    utterance: Utterance
    start_s: float
    factor: float  # of its length
    level: float
    swell_phase: float
    swell_hz: float
    accents_s: tuple[float, ...]  # middles of accented vowels, from the start of the record

    @property
    def length_s(self) -> float:
        """The length as it is spoken."""
        return self.utterance.length_s * self.factor

    def phones(self) -> list[Phone]:
        """Returns the phones at their times in the record."""
        start, factor = self.start_s, self.factor
        return [Phone(p.label, start + factor * p.start_s, start + factor * p.end_s) for p in self.utterance.phones]

    def gain(self, times_s: np.ndarray) -> np.ndarray:
        """Returns how loud the piece is at times of the record: swells, fading and accents."""
        since = times_s - self.start_s
        gain = self.level * np.exp(0.3 * np.sin(self.swell_phase + 2 * np.pi * self.swell_hz * since))
        gain *= 1 - 0.3 * np.clip(since / self.length_s, 0, 1)
        for middle in self.accents_s:
            gain *= 1 + 0.35 * np.exp(-(((times_s - middle) / 0.09) ** 2))
        return gain

    def loudness(self, times_s: np.ndarray) -> np.ndarray:
        """Returns the loudness at times of the record, 1 the mean; within what lips follow."""
        points = (times_s - self.start_s) / self.factor * GRID_HZ
        own = np.interp(points, np.arange(len(self.utterance.loudness)) + 0.5, self.utterance.loudness)
        return np.clip(own, *LOUDNESS) * self.gain(times_s)


@dataclass(frozen=True)
class Talk:
    """All that one person says in a record."""

    speaker: Speaker
    lead_s: float
    phrases: list[Phrase]  # the plan's, each as long as what is said in it
    pieces: list[Piece]
    syllables: list[list[Syllable]]

    def sound(self, config: SynthConfig, rng: np.random.Generator) -> Float32[np.ndarray, " N"]:
        """Returns the clean voice at 16 kHz with breaths, without room and the other person."""
        track = np.zeros(round(config.duration_s * SAMPLE_RATE), np.float32)
        scale = 10 ** ((config.voice_db - LEVEL_DB) / 20)
        for piece in self.pieces:
            spoken = stretch(piece.utterance.samples, round(piece.length_s * SAMPLE_RATE))
            first = round(piece.start_s * SAMPLE_RATE)
            coarse = np.arange(0, len(spoken) + 80, 80)  # 5 ms
            gain = piece.gain(piece.start_s + coarse / SAMPLE_RATE)
            track[first : first + len(spoken)] += (
                spoken * np.float32(scale) * np.interp(np.arange(len(spoken)), coarse, gain).astype(np.float32)
            )
        breathe(config, track, self.phrases, rng)
        return track

    def lips(self, config: SynthConfig, num_points: int, points_per_s: int) -> dict[str, np.ndarray]:
        """Returns the lips as `voice.articulation` does, from the phones."""
        lips = LipTargets(num_points, points_per_s, self.lead_s)
        loudness = np.ones(num_points)
        for piece in self.pieces:
            paint_phones(lips, piece.phones())
            # Lips lead the sound, and so does the effort that makes it loud.
            first = max(0, round((piece.start_s - self.lead_s) * points_per_s))
            times = np.arange(first, min(num_points, first + round(piece.length_s * points_per_s))) / points_per_s
            loudness[first : first + len(times)] = piece.loudness(times + self.lead_s)
        blended = lips.blended(config.coarticulation_s)
        blended["open"] = opened(blended["open"], gaussian_filter1d(loudness, EFFORT_S * points_per_s))
        return blended

    def speech(self, recording: dict[str, float | str]) -> Speech:
        """Returns what the record keeps; `recording` are the conditions of the track."""
        return Speech(
            phones=tuple(phone for piece in self.pieces for phone in piece.phones()),
            engine=self.speaker.engine,
            speaker=self.speaker.name,
            language=self.speaker.language,
            lead_s=self.lead_s,
            sentences=tuple(
                (piece.utterance.text, piece.start_s, piece.start_s + piece.length_s, piece.factor)
                for piece in self.pieces
            ),
            recording=recording,
        )


class Cast:
    """The speakers of one split as persons of a set: person n is always the same speaker.

    With an even number of speakers two persons whose numbers differ by an odd one, as those of a
    conversation do, are never the same.
    """

    def __init__(self, bank: Bank, split: str, seed: int):
        self._bank = bank
        numbers = bank.of_split(split)
        self._order = [numbers[i] for i in np.random.default_rng([seed, len(numbers)]).permutation(len(numbers))]

    def speaker(self, person: int) -> Speaker:
        """Returns the speaker of a person."""
        return self._bank.speakers[self._number(person)]

    def talk(
        self, config: SynthConfig, person: int, lead_s: float, phrases: list[Phrase], rng: np.random.Generator
    ) -> Talk:
        """Draws what a person says in the phrases of a plan.

        Each phrase ends when its utterance does; one without room for any is left out.
        """
        utterances = self._bank.utterances(self._number(person))
        kept, pieces = [], []
        for i, phrase in enumerate(phrases):
            following = phrases[i + 1].start_s if i + 1 < len(phrases) else config.duration_s
            piece = _piece(config, utterances, phrase, following - SPACE_S, rng)
            if piece is not None:
                pieces.append(piece)
                kept.append(phrase._replace(end_s=piece.start_s + piece.length_s))
        syllables = [_syllables(piece) for piece in pieces]
        return Talk(self.speaker(person), lead_s, kept, pieces, syllables)

    def _number(self, person: int) -> int:
        return self._order[person % len(self._order)]


def _piece(
    config: SynthConfig, utterances: list[Utterance], phrase: Phrase, limit_s: float, rng: np.random.Generator
) -> Piece | None:
    """Draws what is said in a phrase; None where nothing ends before `limit_s`."""
    wanted, room = phrase.end_s - phrase.start_s, limit_s - phrase.start_s
    # All numbers are drawn whatever is chosen: one phrase does not shift the next one's.
    pick, level, phase, hz = rng.random(), rng.lognormal(-0.02, 0.2), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    accents = rng.random(200) < config.accent_probability
    lengths = np.array([u.length_s for u in utterances])
    fits = np.flatnonzero(lengths * STRETCH[0] <= room)
    if not len(fits):
        return None
    distance = np.abs(np.log(np.clip(wanted / lengths[fits], None, room / lengths[fits])))
    nearest = fits[np.argsort(distance, kind="stable")[:NUM_NEAREST]]
    # Those that a stretch brings to the length, or the nearest one alone.
    reached = [i for i in nearest if STRETCH[0] <= wanted / lengths[i] <= STRETCH[1]] or [nearest[0]]
    chosen = utterances[reached[int(pick * len(reached))]]
    factor = float(np.clip(wanted / chosen.length_s, *STRETCH))
    factor = min(factor, room / chosen.length_s)
    quiet = 0.7 if phrase.backchannel else 1.0
    piece = Piece(chosen, phrase.start_s, factor, float(level * quiet), float(phase), float(hz), ())
    vowels = [p for p in piece.phones() if vowels_of(p.label)]
    middles = [(p.start_s + p.end_s) / 2 for p, accent in zip(vowels, accents, strict=False) if accent]
    return piece if phrase.backchannel else piece._replace(accents_s=tuple(middles))


def _syllables(piece: Piece) -> list[Syllable]:
    """Returns the vowels of a piece, each with the consonant before it."""
    phones, syllables = piece.phones(), []
    middles = np.array([(phone.start_s + phone.end_s) / 2 for phone in phones])
    loudness = piece.loudness(middles)
    for i, phone in enumerate(phones):
        if not vowels_of(phone.label):
            continue
        before = phones[i - 1] if i else None
        if before is None or vowels_of(before.label) or phone.start_s - before.end_s > 0.01:
            before = Phone("none", phone.start_s, phone.start_s)
        times, accent = (before.start_s, phone.start_s, phone.end_s), bool(middles[i] in piece.accents_s)
        syllables.append(Syllable(*times, before.label, phone.label, float(loudness[i]), accent))
    return syllables
