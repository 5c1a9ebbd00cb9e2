"""The bank's 48 speakers: engines' voices with other tracts, pitches and languages.

Each speaker belongs to one split. Those of the test split have base voices that no other split has,
and three of their languages. A split has an even number of speakers, see `talk.Cast`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speaker:
    """One speaker of the bank: a voice of an engine, varied."""

    engine: str  # name of an engine, "flite" or "espeak-ng"
    voice: str  # of the engine: "slt", or a variant as "f3"
    language: str
    pitch_hz: float  # of flite, mean; of espeak-ng, its setting 0..99
    tract: float  # factor of the formants: above 1 a shorter vocal tract
    pace: float  # factor of the engine's usual speed
    split: str

    @property
    def name(self) -> str:
        """A name for people and files, of its settings."""
        return f"{self.engine}-{self.voice}-{self.language}-{self.pitch_hz:g}-{self.tract:g}-{self.pace:g}"


# (pitch in Hz, tract, pace): the sound is played faster by `tract`, after a voice of lower pitch.
_FLITE = {
    "awb": (
        (105, 0.92, 1.0), (125, 0.96, 1.12), (140, 1.0, 0.95), (160, 1.04, 1.05), (190, 1.09, 0.92),
        (215, 1.15, 1.1), (95, 0.9, 1.08), (150, 1.02, 1.2),
    ),
    "slt": (
        (165, 0.91, 1.05), (180, 0.95, 0.95), (205, 1.0, 1.1), (225, 1.05, 1.0), (245, 1.1, 1.15),
        (130, 0.88, 0.92), (150, 0.9, 1.2), (265, 1.16, 1.02),
    ),
    "kal16": (
        (100, 0.94, 1.0), (115, 1.0, 1.1), (135, 1.05, 0.95), (155, 0.98, 1.05), (185, 1.1, 1.15),
        (210, 1.14, 0.95), (110, 0.91, 1.2),
    ),
    "rms": ((90, 0.93, 1.0), (100, 0.98, 1.1), (110, 1.03, 0.95), (120, 1.1, 1.05), (130, 1.17, 1.12)),
}  # fmt: skip
# Variant, language and pitch 0..99 of espeak-ng, then the pace.
_ESPEAK = (
    ("f1", "en-us", 55, 1.0), ("m1", "en-gb", 45, 1.1), ("m3", "de", 40, 1.0), ("f2", "fr-fr", 60, 0.95),
    ("m5", "es", 50, 1.1), ("f4", "nl", 55, 1.0), ("m4", "pt-br", 42, 1.0), ("m6", "ru", 38, 1.05),
    ("belinda", "cs", 58, 1.0), ("m2", "fi", 47, 0.95), ("klatt2", "en-us", 45, 1.0), ("adam", "hu", 50, 1.0),
)  # fmt: skip
_ESPEAK_VAL = (("f5", "tr", 57, 1.0), ("klatt4", "fr-fr", 42, 1.0), ("linda", "de", 62, 1.1))
_ESPEAK_TEST = (
    ("f3", "it", 60, 1.0), ("m7", "pl", 45, 1.0), ("max", "sv", 48, 1.05), ("steph", "en-gb", 55, 1.0),
    ("pablo", "es", 44, 0.9),
)  # fmt: skip


def _speakers() -> tuple[Speaker, ...]:
    speakers = []
    for voice, variations in _FLITE.items():
        for i, (pitch, tract, pace) in enumerate(variations):
            # The last variation of each voice that training has is for validation.
            split = "test" if voice == "rms" else "val" if i == len(variations) - 1 else "train"
            speakers.append(Speaker("flite", voice, "en-us", float(pitch), tract, pace, split))
    for split, group in (("train", _ESPEAK), ("val", _ESPEAK_VAL), ("test", _ESPEAK_TEST)):
        for voice, language, pitch, pace in group:
            speakers.append(Speaker("espeak-ng", voice, language, float(pitch), 1.0, pace, split))
    return tuple(speakers)


SPEAKERS = _speakers()
