"""A synthetic voice: syllables with formants, pitch and loudness, and the lips that go with them.

NumPy and SciPy. The formant frequencies are round textbook averages of American vowels; the visemes
are our own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from scipy.signal import butter, lfilter, sosfilt

from data_pipelines.synthetic.conversation import Phrase, SynthConfig
from data_pipelines.synthetic.lips import LipTargets
from unils_jax.motion import SAMPLE_RATE


class Vowel(NamedTuple):
    """Three formants in Hz and the lips: jaw opening, rounding and spreading in 0..1."""

    formants_hz: tuple[float, float, float]
    open: float
    round: float
    spread: float


class Consonant(NamedTuple):
    """A consonant's length, loudness and lips."""

    duration_s: tuple[float, float]
    noise: float  # loudness of its noise relative to the vowel
    voice: float  # loudness of the voice relative to the vowel
    close: float  # lips closed, 0..1
    teeth: float  # teeth shown, 0..1
    jaw: float  # opening as a share of that of the vowel that follows
    # How firmly jaw and closure keep their targets against the neighbours': lips that must meet do.
    hold: float


VOWELS = {
    "a": Vowel((730, 1090, 2440), 1.0, 0.1, 0.1),
    "ae": Vowel((660, 1720, 2410), 0.9, 0.0, 0.5),
    "e": Vowel((530, 1840, 2480), 0.75, 0.0, 0.6),
    "schwa": Vowel((500, 1500, 2500), 0.65, 0.15, 0.1),
    "o": Vowel((570, 840, 2410), 0.8, 0.8, 0.0),
    "i": Vowel((280, 2250, 2950), 0.55, 0.0, 1.0),
    "u": Vowel((310, 870, 2250), 0.55, 1.0, 0.0),
}
CONSONANTS = {
    "none": Consonant((0.0, 0.02), 0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    "liquid": Consonant((0.04, 0.07), 0.0, 0.4, 0.0, 0.2, 0.7, 1.0),
    "nasal": Consonant((0.04, 0.07), 0.0, 0.45, 0.1, 0.2, 0.6, 1.0),
    "fricative": Consonant((0.05, 0.09), 0.4, 0.0, 0.0, 1.0, 0.4, 1.5),
    "plosive": Consonant((0.03, 0.06), 0.15, 0.0, 0.0, 0.6, 0.5, 1.0),
    "bilabial": Consonant((0.05, 0.08), 0.0, 0.15, 1.0, 0.0, 0.1, 3.0),
}
CONSONANT_ODDS = (0.12, 0.2, 0.14, 0.2, 0.2, 0.14)

# How firmly a consonant keeps rounding and spreading from its neighbours: a vowel's are there
# before it sounds.
ROUNDING_HOLD = 0.2

BREATH_S = 0.3


class Voice(NamedTuple):
    """A person's voice."""

    pitch_hz: float  # mean
    syllables_per_s: float
    tract: float  # length of the vocal tract relative to the mean, as a factor of the formants
    lead_s: float  # by how much the lips lead the sound


class Syllable(NamedTuple):
    """A consonant from `start_s`, then a vowel from `vowel_s` to `end_s`."""

    start_s: float
    vowel_s: float
    end_s: float
    consonant: str
    vowel: str
    loudness: float  # 1: the person's mean
    accent: bool


def draw_voice(config: SynthConfig, rng: np.random.Generator) -> Voice:
    """Draws a person's voice."""
    return Voice(
        pitch_hz=float(np.exp(rng.uniform(*np.log(config.pitch_hz)))),
        syllables_per_s=rng.uniform(*config.syllables_per_s),
        tract=rng.uniform(0.92, 1.1),
        lead_s=rng.uniform(*config.lead_s),
    )


def draw_syllables(
    config: SynthConfig, voice: Voice, phrases: list[Phrase], rng: np.random.Generator
) -> list[list[Syllable]]:
    """Draws the syllables of each phrase.

    Loudness swells and fades over a second or so, and falls towards the end. A back-channel is a
    quiet hum: nasals and one vowel.
    """
    vowels, consonants = list(VOWELS), list(CONSONANTS)
    result = []
    for phrase in phrases:
        swell_phase, swell_hz = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
        level = rng.lognormal(-0.05, 0.25) * (0.6 if phrase.backchannel else 1.0)
        start, syllables = phrase.start_s, []
        while start < phrase.end_s - 0.08:
            end = start + rng.lognormal(0, 0.2) / voice.syllables_per_s
            if phrase.end_s - end < 0.12:
                end = phrase.end_s
            consonant = "nasal" if phrase.backchannel else consonants[rng.choice(len(consonants), p=CONSONANT_ODDS)]
            vowel_s = start + min(rng.uniform(*CONSONANTS[consonant].duration_s), 0.5 * (end - start))
            accent = bool(rng.random() < config.accent_probability)
            swell = np.exp(0.6 * np.sin(swell_phase + 2 * np.pi * swell_hz * (start - phrase.start_s)))
            fade = 1 - 0.3 * (start - phrase.start_s) / (phrase.end_s - phrase.start_s)
            loudness = level * swell * fade * (1.4 if accent else 1.0) * rng.lognormal(0, 0.1)
            vowel = "schwa" if phrase.backchannel else vowels[rng.integers(len(vowels))]
            syllables.append(Syllable(start, vowel_s, end, consonant, vowel, float(loudness), accent))
            start = end
        result.append(syllables)
    return result


def synthesize(
    config: SynthConfig,
    voice: Voice,
    phrases: list[Phrase],
    syllables: list[list[Syllable]],
    rng: np.random.Generator,
) -> Float32[np.ndarray, " N"]:
    """Returns the clean voice at 16 kHz, without room and without the other person.

    Breath is drawn before some phrases.
    """
    track = np.zeros(round(config.duration_s * SAMPLE_RATE), np.float32)
    filters = {name: _formant_filter(vowel, voice.tract) for name, vowel in VOWELS.items()}
    hiss = butter(2, [3000, 7000], "bandpass", fs=SAMPLE_RATE, output="sos")
    level = 10 ** (config.voice_db / 20)
    for phrase, members in zip(phrases, syllables, strict=True):
        if not members:
            continue
        origin = round(phrase.start_s * SAMPLE_RATE)
        source = _source(voice, phrase, members, rng)
        for syllable in members:
            first, vowel, last = (round(t * SAMPLE_RATE) - origin for t in syllable[:3])
            sound = _syllable_sound(syllable, source[first:last], vowel - first, filters[syllable.vowel], hiss, rng)
            track[origin + first : origin + first + len(sound)] += level * sound
    breathe(config, track, phrases, rng)
    return track


def mix(
    config: SynthConfig, own: Float32[np.ndarray, " N"], other: Float32[np.ndarray, " N"], rng: np.random.Generator
) -> np.ndarray:
    """Mixes a recorded track `[N]` int16: own voice, a little of the other's, the room's noise."""
    noise = rng.standard_normal(len(own), dtype=np.float32)
    noise = lfilter(np.float32([1.0]), np.float32([1.0, -0.7]), noise) * np.float32(np.sqrt(1 - 0.7**2))
    crosstalk, room = np.float32(10 ** (config.crosstalk_db / 20)), np.float32(10 ** (config.room_noise_db / 20))
    return np.round(np.clip(own + crosstalk * other + room * noise, -1, 1) * 32767).astype(np.int16)


def _formant_filter(vowel: Vowel, tract: float) -> np.ndarray:
    """Returns three two-pole resonators in cascade as second-order sections.

    Each has gain one at 0 Hz.
    """
    sections = []
    for frequency, bandwidth in zip(vowel.formants_hz, (80, 110, 160), strict=True):
        radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        a1 = -2 * radius * np.cos(2 * np.pi * frequency * tract / SAMPLE_RATE)
        a2 = radius**2
        sections.append([1 + a1 + a2, 0, 0, 1, a1, a2])
    return np.array(sections)


def _source(voice: Voice, phrase: Phrase, members: list[Syllable], rng: np.random.Generator) -> np.ndarray:
    """Returns the pulse train of one phrase.

    Pitch falls, or rises at the end, with accents and jitter; there is a little breath.
    """
    num_samples = round(phrase.end_s * SAMPLE_RATE) - round(phrase.start_s * SAMPLE_RATE) + 1
    time = np.arange(num_samples) / SAMPLE_RATE
    place = time / max(time[-1], 1e-6)
    contour = 0.08 - 0.2 * place + (0.45 * np.clip((place - 0.7) / 0.3, 0, 1) if phrase.rising else 0)
    for syllable in members:
        if syllable.accent:
            middle = (syllable.vowel_s + syllable.end_s) / 2 - phrase.start_s
            contour = contour + 0.15 * np.exp(-(((time - middle) / 0.08) ** 2))
    steps = np.repeat(rng.normal(0, 0.02, num_samples // 160 + 1), 160)[:num_samples]
    phase = np.cumsum(voice.pitch_hz * np.exp(contour + steps)) / SAMPLE_RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    pulses += 0.02 * rng.standard_normal(num_samples)
    return lfilter([1.0], [1.0, -0.95], pulses)


def _syllable_sound(
    syllable: Syllable,
    source: np.ndarray,
    num_consonant: int,
    vowel_filter: np.ndarray,
    hiss: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns one syllable at loudness `syllable.loudness`.

    Open vowels are the louder ones, as in nature.
    """
    consonant, vowel = CONSONANTS[syllable.consonant], VOWELS[syllable.vowel]
    sound = sosfilt(vowel_filter, source)
    sound *= (0.4 + 0.6 * vowel.open) * syllable.loudness / max(np.sqrt(np.mean(sound**2)), 1e-6)
    gain = np.ones(len(sound))
    gain[:num_consonant] = consonant.voice
    ramp = 80
    gain = np.convolve(np.pad(gain, (ramp, ramp), mode="edge"), np.ones(2 * ramp + 1) / (2 * ramp + 1), mode="valid")
    edge = np.minimum(1, np.minimum(np.arange(1, len(sound) + 1), np.arange(len(sound), 0, -1)) / ramp)
    sound *= gain * edge
    if consonant.noise and num_consonant > 8:
        noise = sosfilt(hiss, rng.standard_normal(num_consonant)) * np.hanning(num_consonant)
        sound[:num_consonant] += consonant.noise * syllable.loudness * noise
    return sound


def breathe(config: SynthConfig, track: np.ndarray, phrases: list[Phrase], rng: np.random.Generator) -> None:
    """Adds audible breaths of 0.3 s that end just before the voice sets in after a pause."""
    num_samples, last_end_s = round(BREATH_S * SAMPLE_RATE), 0.0
    for phrase in phrases:
        drawn = phrase.start_s - last_end_s > 2 * BREATH_S and rng.random() < config.breath_probability
        last_end_s = phrase.end_s
        if drawn and not phrase.backchannel:
            end = round((phrase.start_s - 0.05) * SAMPLE_RATE)
            noise = 0.8 * lfilter([1.0], [1.0, -0.6], rng.standard_normal(num_samples))
            track[end - num_samples : end] += 10 ** (config.breath_db / 20) * np.hanning(num_samples) * noise


def articulation(
    config: SynthConfig, voice: Voice, syllables: list[list[Syllable]], num_points: int, points_per_s: int
) -> dict[str, np.ndarray]:
    """Returns the lips that make the syllables, as five latents over a time grid `[G]`.

    The latents are `open`, `round`, `spread`, `close` and `teeth`; `open` follows the loudness.
    Targets lead the sound by the voice's `lead_s` and blend over `coarticulation_s`, see
    `LipTargets`.
    """
    lips = LipTargets(num_points, points_per_s, voice.lead_s)
    for syllable in (s for phrase in syllables for s in phrase):
        vowel, consonant = VOWELS[syllable.vowel], CONSONANTS[syllable.consonant]
        # Jaws open no wider than they can: twice the usual, however loud.
        opening = 2 * np.tanh(vowel.open * syllable.loudness / 2)
        held = {
            "open": (consonant.jaw * opening, consonant.hold),
            "round": (0.0, ROUNDING_HOLD),
            "spread": (0.0, ROUNDING_HOLD),
            "close": (consonant.close, consonant.hold),
            "teeth": (consonant.teeth, 1.0),
        }
        lips.paint(syllable.start_s, syllable.vowel_s, held)
        spoken = {"open": opening, "round": vowel.round, "spread": vowel.spread, "close": 0.0, "teeth": 0.0}
        lips.paint(syllable.vowel_s, syllable.end_s, {name: (target, 1.0) for name, target in spoken.items()})
    return lips.blended(config.coarticulation_s)


@dataclass(frozen=True)
class BuiltinTalk:
    """All that one person says in a record with a built-in voice."""

    voice: Voice
    phrases: list[Phrase]
    syllables: list[list[Syllable]]

    @classmethod
    def drawn(cls, config: SynthConfig, voice: Voice, phrases: list[Phrase], rng: np.random.Generator) -> "BuiltinTalk":
        """Draws the syllables of the phrases."""
        return cls(voice, phrases, draw_syllables(config, voice, phrases, rng))

    def sound(self, config: SynthConfig, rng: np.random.Generator) -> Float32[np.ndarray, " N"]:
        """Returns the clean voice, see `synthesize`."""
        return synthesize(config, self.voice, self.phrases, self.syllables, rng)

    def lips(self, config: SynthConfig, num_points: int, points_per_s: int) -> dict[str, np.ndarray]:
        """Returns the lips, see `articulation`."""
        return articulation(config, self.voice, self.syllables, num_points, points_per_s)
