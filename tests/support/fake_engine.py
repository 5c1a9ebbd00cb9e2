"""A speech engine for tests: letters as phones of 80 ms, vowels as tones and consonants as noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.phones import VOWELS, Phone
from data_pipelines.synthetic.bank.engines import Spoken
from data_pipelines.synthetic.bank.speakers import Speaker
from unils_jax.errors import UserError

PHONE_S = 0.08


@dataclass
class FakeEngine:
    absent: bool = False
    number: str = "1"
    calls: int = 0
    fails_at: int = -1  # the call that fails, -1 none

    def missing(self) -> str:
        return "fake" if self.absent else ""

    def version(self) -> str:
        return self.number

    def speak(self, speaker: Speaker, texts: Sequence[str]) -> list[Spoken]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise UserError("fake failed")
        return [self._speak(speaker, text) for text in texts]

    def _speak(self, speaker: Speaker, text: str) -> Spoken:
        letters = [letter for letter in text.lower() if letter in "aeioumbpfvstkln"]
        letters = letters[: round(40 / speaker.pace)] or ["a"]
        count, rng = round(PHONE_S * 16000), np.random.default_rng(len(text))
        time = np.arange(count) / 16000
        pieces, phones = [np.zeros(1600, np.float32)], []
        for i, letter in enumerate(letters):
            tone = 0.3 * np.sin(2 * np.pi * speaker.pitch_hz * time) + 0.1 * np.sin(2 * np.pi * 1200 * time)
            quiet = 0.02 * rng.standard_normal(count)
            pieces.append((tone if letter in VOWELS else quiet).astype(np.float32))
            phones.append(Phone(letter, 0.1 + i * PHONE_S, 0.1 + (i + 1) * PHONE_S))
        return Spoken(np.concatenate([*pieces, np.zeros(3200, np.float32)]), phones)


SPEAKERS = tuple(
    Speaker("fake", f"{split}{i}", "en-us", 100.0 + 20 * i, 1.0, 1.0 + 0.1 * i, split)
    for split in ("train", "val", "test")
    for i in range(2)
)
