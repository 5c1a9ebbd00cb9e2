"""The speech engines: programs that are called, and what they answer with.

flite is called once a sentence; espeak-ng through the C interface of its library in a child process
(`espeak_child`). Neither is loaded into this process. Both repeat: the same speaker and the same
texts in the same order give the same samples, as long as the engine's version is the same.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32
from scipy.signal import resample_poly

from data_pipelines.phones import Phone, ipa
from data_pipelines.synthetic.bank.speakers import Speaker
from unils_jax.errors import UserError, one_line
from unils_jax.motion import SAMPLE_RATE

INSTALL = "apt-get install flite espeak-ng libespeak-ng1"
_TIMEOUT_S = 120
_ESPEAK_CHILD = Path(__file__).with_name("espeak_child.py")  # run as a program, never imported
_CLOSURE_STEPS = 60  # of 2 ms: the longest closure that is looked for


class Spoken(NamedTuple):
    """One spoken text: 16 kHz samples in -1..1, and its phones without silences."""

    samples: Float32[np.ndarray, " N"]
    phones: list[Phone]


@runtime_checkable
class Engine(Protocol):
    """A speech engine."""

    def missing(self) -> str:
        """Returns what is not installed, "" where all is there."""

    def version(self) -> str:
        """Returns a text that changes when the engine's sound may."""

    def speak(self, speaker: Speaker, texts: Sequence[str]) -> list[Spoken]:
        """Speaks texts one after another. Raises UserError where the engine fails."""


class Flite:
    """The program `flite`: English voices, phones with their end times on standard output."""

    def missing(self) -> str:
        """Returns the program's name where it is not on the path."""
        return "" if shutil.which("flite") else "flite"

    def version(self) -> str:
        """Returns the line in which the program tells its version."""
        found = _run(["flite", "--version"], ends_with=1).decode("utf-8", "replace")
        return next((line.split(":", 1)[1].strip() for line in found.splitlines() if "version:" in line), "unknown")

    def speak(self, speaker: Speaker, texts: Sequence[str]) -> list[Spoken]:
        """Speaks each text lower and slower than wanted, and plays it faster: a shorter tract."""
        settings = [
            "-voice", speaker.voice,
            "--seti", f"int_f0_target_mean={round(speaker.pitch_hz / speaker.tract)}",
            "--setf", f"duration_stretch={speaker.tract / speaker.pace:.4f}",
        ]  # fmt: skip
        spoken = []
        with tempfile.TemporaryDirectory() as folder:
            wav = str(Path(folder) / "said.wav")
            for text in texts:
                listed = _run(["flite", *settings, "-t", text, "-o", wav, "-psdur"])
                samples, rate = soundfile.read(wav, dtype="float32")
                samples = _resampled(
                    samples, Fraction(SAMPLE_RATE, rate) / Fraction(speaker.tract).limit_denominator(100)
                )
                spoken.append(Spoken(samples, _flite_phones(listed.decode(), speaker.tract, text)))
        return spoken


class Espeak:
    """The library of espeak-ng in a child process: many languages and voice variants."""

    def missing(self) -> str:
        """Returns the program's name where it is not on the path; its library comes with it."""
        return "" if shutil.which("espeak-ng") else "espeak-ng"

    def version(self) -> str:
        """Returns what the program `espeak-ng` tells, without the place of its data."""
        found = _run(["espeak-ng", "--version"]).decode("utf-8", "replace")
        return found.split("Data at")[0].split(":")[-1].strip() or "unknown"

    def speak(self, speaker: Speaker, texts: Sequence[str]) -> list[Spoken]:
        """Speaks all texts in one child, so that their order is always the same."""
        asked = {
            # British English and French have no voice by their whole name.
            "voices": [f"{name}+{speaker.voice}" for name in (speaker.language, speaker.language.split("-")[0])],
            "rate": round(160 * speaker.pace),  # words a minute
            "pitch": round(speaker.pitch_hz),
            "texts": list(texts),
        }
        answer = _run([sys.executable, "-I", str(_ESPEAK_CHILD)], json.dumps(asked).encode())
        head, _, raw = answer.partition(b"\n")
        described = json.loads(head)
        rate, every, at, spoken = described["rate"], np.frombuffer(raw, np.int16), 0, []
        for count, phonemes in described["spoken"]:
            samples = every[at : at + count].astype(np.float32) / np.float32(32768)
            at += count
            phones = _espeak_phones(samples, rate, [(label, first) for label, first in phonemes])
            spoken.append(Spoken(_resampled(samples, Fraction(SAMPLE_RATE, rate)), phones))
        return spoken


ENGINES: dict[str, Engine] = {"flite": Flite(), "espeak-ng": Espeak()}


def missing(engines: dict[str, Engine] = ENGINES) -> str:
    """Returns one line on what is not installed and how to get it, "" where all engines are."""
    lacking = [found for engine in engines.values() if (found := engine.missing())]
    return f"{' and '.join(lacking)} not found; get the speech engines with `{INSTALL}`" if lacking else ""


def _run(command: Sequence[str], given: bytes = b"", *, ends_with: int = 0) -> bytes:
    """Runs a program; returns its standard output. Raises UserError, naming it, where it fails."""
    name = command[0] if command[0] != sys.executable else "espeak-ng"
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{name} does not run ({one_line(error)}); {INSTALL}, or use --voices builtin") from None
    if done.returncode not in (0, ends_with):
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200] or f"status {done.returncode}"
        raise UserError(f"{name} failed ({said}); install it again, or use --voices builtin")
    return done.stdout


def _resampled(samples: np.ndarray, ratio: Fraction) -> np.ndarray:
    if ratio == 1:
        return samples
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)


def _flite_phones(listed: str, tract: float, text: str) -> list[Phone]:
    """Returns the phones of a line such as `pau:0.224 m:0.260 ay:0.367`, each with its end."""
    phones, start_s = [], 0.0
    try:
        for pair in listed.split():
            label, _, end = pair.rpartition(":")
            end_s = float(end) / tract
            if (name := ipa(label)) and end_s > start_s:
                phones.append(Phone(name, start_s, end_s))
            start_s = end_s
    except (KeyError, ValueError):
        raise UserError(
            f"flite lists no phones for {text!r}: {' '.join(listed.split())[:80]}; use --voices builtin"
        ) from None
    return phones


def _espeak_phones(samples: np.ndarray, rate: int, phonemes: list[tuple[str, int]]) -> list[Phone]:
    """Returns phones from the first sample of each phoneme.

    An event of a voiceless stop is at its burst. Its closure is the gap before, which the phone
    before it gives up.
    """
    step = rate // 500  # 2 ms
    levels = np.sqrt(np.mean(samples[: len(samples) // step * step].reshape(-1, step) ** 2, axis=1))
    quiet = levels < 0.02 * levels.max(initial=0)
    starts, stops = [], ("p", "t", "k", "c", "q", "ʈ")
    for label, first in phonemes:
        at = lowest = first // step
        # Not before the phone before it begins, or phones would overlap.
        floor = max(lowest - _CLOSURE_STEPS, -(-starts[-1] // step) if starts else 0)
        while _plain(label)[:1] in stops and at > floor and quiet[at - 1]:
            at -= 1
        starts.append(first if at == lowest else at * step)
    ends = [*starts[1:], len(samples)]
    return [
        Phone(_plain(label), start / rate, end / rate)
        for (label, _), start, end in zip(phonemes, starts, ends, strict=True)
        if _plain(label) and end > start
    ]


def _plain(label: str) -> str:
    """Returns an IPA label without stress, length and what is no letter; "" for a pause."""
    return "".join(letter for letter in label if letter.isalpha() and letter not in "ˈˌːˑʲʰ")
