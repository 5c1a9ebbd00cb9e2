"""Articulation targets of phones: what jaw and lips do for each letter of IPA.

The numbers are our own, on the scale of the built-in voices' lips: 1 is the opening of their open
vowel at the mean loudness, and lips fully rounded, spread or closed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.phones import VOWELS, Phone, Vowel
from data_pipelines.synthetic.lips import LipTargets

# Opening grows with loudness by this power.
LOUDNESS_POWER = 0.6
# Opening of a close and of an open vowel.
OPENINGS = (0.25, 1.6)


class Viseme(NamedTuple):
    """A consonant's targets, each with how firmly it is held; vowels hold with 1."""

    jaw: float
    jaw_hold: float
    close: float = 0.0
    close_hold: float = 1.0
    teeth: float = 0.0
    round: float = 0.0
    spread: float = 0.0
    # Rounding and spreading are mostly the neighbouring vowels'.
    lips_hold: float = 0.2


_BY_LETTERS = {
    "mbpʙɓ": Viseme(0.08, 3.0, close=0.75, close_hold=5.0),
    "βɸ": Viseme(0.15, 2.0, close=0.5, close_hold=3.0),
    "fvɱ": Viseme(0.15, 2.5, close=0.4, close_hold=3.0, teeth=0.8),
    "ʋ": Viseme(0.25, 1.5, close=0.35, close_hold=2.0, teeth=0.5),
    "wʍɥ": Viseme(0.25, 1.5, close=0.15, round=1.0, lips_hold=1.5),
    "sz": Viseme(0.18, 1.5, teeth=0.7),
    "θð": Viseme(0.25, 1.2, teeth=0.5),
    "ʃʒʂʐɕʑ": Viseme(0.18, 1.5, teeth=0.7, round=0.45, lips_hold=1.0),
    "tdnlɾɫɲʎɬɮʈɖɳɭɽ": Viseme(0.3, 1.0, teeth=0.25),
    "ɹɻrʀʁ": Viseme(0.35, 1.0, teeth=0.1, round=0.25, lips_hold=0.4),
    "jçʝcɟ": Viseme(0.25, 1.0, teeth=0.1, spread=0.6, lips_hold=0.6),
    "kɡgŋxɣqχ": Viseme(0.4, 1.0),
    # Shaped by what is around them.
    "hɦʔħʕ": Viseme(0.4, 0.2),
}


def _of_consonant(viseme: Viseme) -> dict[str, tuple[float, float]]:
    return {
        "open": (viseme.jaw, viseme.jaw_hold),
        "round": (viseme.round, viseme.lips_hold),
        "spread": (viseme.spread, viseme.lips_hold),
        "close": (viseme.close, viseme.close_hold),
        "teeth": (viseme.teeth, 1.0),
    }


def _of_vowel(vowel: Vowel) -> dict[str, tuple[float, float]]:
    opening = OPENINGS[0] + (OPENINGS[1] - OPENINGS[0]) * vowel.openness
    targets = {"open": opening, "round": vowel.round, "spread": vowel.spread, "close": 0.0, "teeth": 0.0}
    return {name: (target, 1.0) for name, target in targets.items()}


# (target, hold) of each latent by letter.
TARGETS = {letter: _of_vowel(vowel) for letter, vowel in VOWELS.items()} | {
    letter: _of_consonant(viseme) for letters, viseme in _BY_LETTERS.items() for letter in letters
}
_OTHER = _of_consonant(Viseme(0.35, 0.6))


def paint_phones(lips: LipTargets, phones: Sequence[Phone]) -> None:
    """Sets the targets of phones, one after another, at the mean loudness.

    A phone of several letters, as a diphthong or an affricate, has a part for each.
    """
    for phone in phones:
        letters = [letter for letter in phone.label if letter in TARGETS] or ["?"]
        borders = np.linspace(phone.start_s, phone.end_s, len(letters) + 1)
        for letter, start_s, end_s in zip(letters, borders, borders[1:], strict=False):
            lips.paint(start_s, end_s, TARGETS.get(letter, _OTHER))


def opened(opening: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """Returns how far a jaw opens at a loudness, 1 the mean; twice the usual at most."""
    return 2 * np.tanh(opening * loudness**LOUDNESS_POWER / 2)
