"""Phones with times: what was said in a track, and what lips and jaw do for each phone.

Labels are IPA. Silence has no phone: it is what lies between them. Vowels are described by their
place in the IPA chart; the numbers are our own reading of its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from unils_jax.motion import FPS


class Phone(NamedTuple):
    """A phone from `start_s` to `end_s`, seconds from the start of the record."""

    label: str  # IPA, as "m" or "aɪ"; length and stress marks are allowed
    start_s: float
    end_s: float


class Vowel(NamedTuple):
    """A vowel's jaw and lips, each 0..1."""

    openness: float  # height in the IPA chart: 0 close, 1 open
    round: float
    spread: float


class PhoneClass(StrEnum):
    """The groups of phones that lips can be judged by."""

    BILABIAL = "bilabial"  # lips meet: m, b, p
    LABIODENTAL = "labiodental"  # lower lip at the upper teeth: f, v
    VOWEL = "vowel"
    OTHER = "other"  # any other consonant


@dataclass(frozen=True)
class Speech:
    """The phones of one person's track and how it was made, as a record's events keep them."""

    phones: tuple[Phone, ...]  # in order, without overlap
    engine: str = ""  # the program that spoke, "" unknown
    speaker: str = ""  # the engine's voice with its variation
    language: str = ""  # as the engine names it: "en-us"
    lead_s: float = 0.0  # by how much the lips in the record lead the sound
    # Each sentence as (text, start s, end s, factor by which its length was stretched).
    sentences: tuple[tuple[str, float, float, float], ...] = ()
    # Conditions of the recording by name: level_db, snr_db, crosstalk_db, room_s, ...
    recording: dict[str, float | str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Speech":
        """Builds it from what `to_json` returned."""
        phones = tuple(Phone(*phone) for phone in values["phones"])
        sentences = tuple(tuple(sentence) for sentence in values.get("sentences", ()))
        return cls(**{**values, "phones": phones, "sentences": sentences})

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, times rounded to a tenth of a millisecond."""
        phones = [[p.label, round(p.start_s, 4), round(p.end_s, 4)] for p in self.phones]
        sentences = [[text, *(round(v, 4) for v in numbers)] for text, *numbers in self.sentences]
        return {**vars(self), "phones": phones, "sentences": sentences, "lead_s": round(self.lead_s, 4)}


VOWELS: dict[str, Vowel] = {
    "i": Vowel(0.0, 0.0, 1.0),
    "y": Vowel(0.0, 1.0, 0.1),
    "ɨ": Vowel(0.0, 0.0, 0.5),
    "ʉ": Vowel(0.0, 0.8, 0.0),
    "ɯ": Vowel(0.0, 0.0, 0.5),
    "u": Vowel(0.0, 1.0, 0.0),
    "ɪ": Vowel(0.2, 0.0, 0.6),
    "ᵻ": Vowel(0.2, 0.0, 0.4),
    "ʏ": Vowel(0.2, 0.7, 0.1),
    "ʊ": Vowel(0.2, 0.7, 0.0),
    "e": Vowel(0.35, 0.0, 0.7),
    "ø": Vowel(0.35, 0.8, 0.1),
    "ɘ": Vowel(0.35, 0.0, 0.3),
    "ɵ": Vowel(0.35, 0.6, 0.0),
    "ɤ": Vowel(0.35, 0.0, 0.2),
    "o": Vowel(0.35, 0.9, 0.0),
    "ə": Vowel(0.5, 0.1, 0.1),
    "ɚ": Vowel(0.4, 0.3, 0.0),
    "ɛ": Vowel(0.65, 0.0, 0.5),
    "œ": Vowel(0.65, 0.6, 0.1),
    "ɜ": Vowel(0.55, 0.2, 0.0),
    "ɝ": Vowel(0.4, 0.3, 0.0),
    "ɞ": Vowel(0.65, 0.5, 0.0),
    "ʌ": Vowel(0.7, 0.0, 0.1),
    "ɔ": Vowel(0.65, 0.7, 0.0),
    "æ": Vowel(0.85, 0.0, 0.5),
    "ɐ": Vowel(0.85, 0.0, 0.2),
    "a": Vowel(1.0, 0.0, 0.2),
    "ɶ": Vowel(1.0, 0.4, 0.0),
    "ɑ": Vowel(1.0, 0.0, 0.0),
    "ɒ": Vowel(0.9, 0.5, 0.0),
}
_BILABIAL, _LABIODENTAL = frozenset("mbpʙɓ"), frozenset("fvɱ")

# The alphabet of flite and of the usual English pronunciation dictionaries.
ARPABET: dict[str, str] = dict(
    pair.split(":")
    for pair in (
        "aa:ɑ ae:æ ah:ʌ ao:ɔ aw:aʊ ax:ə axr:ɚ ay:aɪ eh:ɛ er:ɝ ey:eɪ ih:ɪ ix:ɨ iy:i ow:oʊ oy:ɔɪ uh:ʊ uw:u "
        "b:b ch:tʃ d:d dh:ð dx:ɾ el:l em:m en:n f:f g:ɡ hh:h hv:h jh:dʒ k:k l:l m:m n:n ng:ŋ nx:ŋ p:p q:ʔ r:ɹ "
        "s:s sh:ʃ t:t th:θ v:v w:w wh:ʍ y:j z:z zh:ʒ"
    ).split()
)
_SILENCES = frozenset(("", "pau", "sil", "h#", "ssil", "<sil>", "sp", "spn", "_", "_:", "(en)"))


def ipa(label: str) -> str:
    """Returns an ARPABET label of any case, with or without stress digit, in IPA.

    Silences become "". Raises KeyError for what is no label of the alphabet.
    """
    plain = label.strip().lower().rstrip("012")
    return "" if plain in _SILENCES else ARPABET[plain]


def vowels_of(label: str) -> tuple[Vowel, ...]:
    """Returns the vowels of an IPA label in order: two for a diphthong, none for a consonant."""
    return tuple(VOWELS[letter] for letter in label if letter in VOWELS)


def phone_class(label: str) -> PhoneClass:
    """Returns the class of an IPA label; its first letter with a class decides."""
    for letter in label:
        if letter in VOWELS:
            return PhoneClass.VOWEL
        if letter in _BILABIAL:
            return PhoneClass.BILABIAL
        if letter in _LABIODENTAL:
            return PhoneClass.LABIODENTAL
    return PhoneClass.OTHER


def openness(label: str) -> float | None:
    """Returns how open a vowel is, 0 (close) to 1 (open); None for a consonant.

    A diphthong has the mean of its vowels.
    """
    vowels = vowels_of(label)
    return sum(vowel.openness for vowel in vowels) / len(vowels) if vowels else None


class PhoneTracks(NamedTuple):
    """The phones of one person, frame by frame: shares of a frame, 0..1, each `[T]`.

    The shares and that of other consonants add up to one.
    """

    bilabial: Float32[np.ndarray, " T"]
    labiodental: Float32[np.ndarray, " T"]
    vowel: Float32[np.ndarray, " T"]
    silence: Float32[np.ndarray, " T"]
    openness: Float32[np.ndarray, " T"]  # mean over the vowels in the frame; NaN without a vowel


def phone_tracks(phones: Sequence[Phone], num_frames: int) -> PhoneTracks:
    """Returns the phones as tracks at 25 fps; frame t covers t/25 to (t + 1)/25 seconds.

    Times are those of the sound: lips lead it by `Speech.lead_s`.
    """
    per_frame = round(1000 / FPS)  # points of a millisecond
    points = {name: np.zeros(num_frames * per_frame, np.float32) for name in ("silence", *PhoneClass)}
    points["silence"][:] = 1
    opened = np.zeros(num_frames * per_frame, np.float32)
    for phone in phones:
        span = slice(max(0, round(phone.start_s * 1000)), max(0, round(phone.end_s * 1000)))
        points[phone_class(phone.label)][span] = 1
        points["silence"][span] = 0
        vowels = vowels_of(phone.label)
        length = len(opened[span])
        if vowels and length:
            turn = np.minimum(np.arange(length) * len(vowels) // length, len(vowels) - 1)
            opened[span] = np.array([vowel.openness for vowel in vowels], np.float32)[turn]
    shares = {name: track.reshape(num_frames, per_frame).mean(axis=1) for name, track in points.items()}
    total = (opened * points["vowel"]).reshape(num_frames, per_frame).mean(axis=1)
    mean = np.full(num_frames, np.nan, np.float32)
    np.divide(total, shares["vowel"], out=mean, where=shares["vowel"] > 0)
    return PhoneTracks(shares["bilabial"], shares["labiodental"], shares["vowel"], shares["silence"], mean)
