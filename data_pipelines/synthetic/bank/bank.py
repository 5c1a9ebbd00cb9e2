"""The bank: some 50 minutes of speech with phone times by 48 speakers, made once and kept.

A pure function of its seed and the engines' versions. One file a speaker, each written whole: what
was killed goes on where it was, and several processes that make the same bank share the work.
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from scipy.ndimage import gaussian_filter1d

from data_pipelines.phones import Phone
from data_pipelines.synthetic.bank.engines import ENGINES, Engine, Spoken, missing
from data_pipelines.synthetic.bank.speakers import SPEAKERS, Speaker
from data_pipelines.synthetic.bank.words import sentence
from unils_jax.errors import UserError, one_line
from unils_jax.files import atomic_output, read_npz_file
from unils_jax.motion import SAMPLE_RATE
from unils_jax.runtime import local_path, user_cache

log = logging.getLogger(__name__)

# Raised whenever the same seed and engines would give another bank.
BANK_VERSION = 1
# What each speaker says: so many words in each sentence, 0 for a back-channel.
WORDS = (0,) * 6 + (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 13)
# Samples are kept at this level over the phones; margins around the first and the last phone.
LEVEL_DB = -20.0
MARGIN_S = 0.03
GRID_HZ = 100  # of loudness

# Opened while the bank speaks; takes the hours that are done and the share of the work, 0 to 1.
Progress = Callable[[], AbstractContextManager[Callable[[float, float], None]]]


class Utterance(NamedTuple):
    """One text of one speaker: 16 kHz samples at `LEVEL_DB`, phones, and how loud they are."""

    text: str
    short: bool  # a back-channel
    samples: Float32[np.ndarray, " N"]
    phones: tuple[Phone, ...]
    loudness: Float64[np.ndarray, " G"]  # `GRID_HZ` points a second, 1 is the mean over the phones

    @property
    def length_s(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


class Bank:
    """A bank of utterances in a folder; `make` makes it.

    Without a folder it is in `UNILS_CACHE`, else in the user's cache folder. Raises UserError where
    an engine is missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        *,
        seed: int = 0,
        speakers: Sequence[Speaker] = SPEAKERS,
        engines: dict[str, Engine] = ENGINES,
        progress: Progress | None = None,
    ):
        if seed < 0:
            raise UserError(f"the bank's seed must not be negative, got {seed}")
        if lacking := missing(engines):
            raise UserError(lacking)
        self.seed, self.speakers, self._engines, self._progress = seed, tuple(speakers), engines, progress
        self.settings: dict[str, Any] = {
            "version": BANK_VERSION,
            "seed": seed,
            "engines": {name: engine.version() for name, engine in engines.items()},
            "words": len(WORDS),
            "speakers": len(self.speakers),
        }
        named = json.dumps([self.settings, [s.name for s in self.speakers]], sort_keys=True)
        self.folder = _root(folder) / hashlib.sha256(named.encode()).hexdigest()[:16]
        self._load = lru_cache(maxsize=None)(self._read)

    def make(self) -> None:
        """Speaks what is not there yet.

        Raises UserError where an engine fails; what is done stays.
        """
        numbers = [i for i in range(len(self.speakers)) if not self._path(i).is_file()]
        if numbers:
            log.info("the bank of voices is made once, in some two minutes, in %s", self.folder)
            with self._progress() if self._progress else nullcontext(lambda hours, share: None) as progress:
                self._make(numbers, progress)

    def _make(self, numbers: list[int], progress: Callable[[float, float], None]) -> None:
        # Each process takes another order, so that those that make one bank share the work.
        random.Random(os.getpid()).shuffle(numbers)
        done, samples = len(self.speakers) - len(numbers), 0
        pool = ThreadPoolExecutor(os.cpu_count() or 1)  # threads wait for the engines' processes
        try:
            for future in as_completed([pool.submit(self._speak, number) for number in numbers]):
                done, samples = done + 1, samples + future.result()
                progress(samples / SAMPLE_RATE / 3600, done / len(self.speakers))
        finally:
            pool.shutdown(cancel_futures=True)

    def of_split(self, split: str) -> list[int]:
        """Returns the numbers of the speakers of a split."""
        return [i for i, speaker in enumerate(self.speakers) if speaker.split == split]

    def utterances(self, number: int) -> list[Utterance]:
        """Returns what speaker `number` says, read once. Raises UserError for a damaged file."""
        return self._load(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:02d}-{self.speakers[number].name}.npz"

    def _speak(self, number: int) -> int:
        """Makes the file of one speaker; returns how many samples it has."""
        speaker, path = self.speakers[number], self._path(number)
        if path.is_file():
            return 0
        rng = np.random.default_rng([self.seed, number])
        texts = [sentence(speaker.language, speaker.split, count, rng) for count in WORDS]
        spoken = [_trimmed(said) for said in self._engines[speaker.engine].speak(speaker, texts)]
        described = [
            {"text": text, "short": count == 0, "samples": len(said.samples), "phones": said.phones}
            for text, count, said in zip(texts, WORDS, spoken, strict=True)
        ]
        every = np.concatenate([said.samples for said in spoken])
        samples = np.clip(np.rint(every * np.float32(32768)), -32768, 32767).astype(np.int16)
        text = np.frombuffer(json.dumps(described).encode(), np.uint8)
        with atomic_output(path) as partial, open(partial, "wb") as file:
            np.savez(file, samples=samples, described=text)
        return len(samples)

    def _read(self, number: int) -> list[Utterance]:
        path = self._path(number)
        arrays = read_npz_file(path, ("samples", "described"))
        try:
            described = json.loads(arrays["described"].tobytes())
            samples = arrays["samples"].astype(np.float32) / np.float32(32768)
            return list(_utterances(described, samples))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({one_line(error, 80)}); remove it, and it is made again") from None


def _root(folder: str | os.PathLike | None) -> Path:
    if folder is not None:
        return local_path(folder, "bank")
    chosen, cache = os.environ.get("UNILS_CACHE"), user_cache()
    if not chosen and cache is None:
        raise UserError("no home folder is known to keep the bank of voices in; set UNILS_CACHE or --bank to a folder")
    return (Path(chosen) if chosen else cache / "unils_jax") / "bank"


def _trimmed(said: Spoken) -> Spoken:
    """Returns what lies around the phones, at `LEVEL_DB`, faded in and out within the margins."""
    if not said.phones:
        raise UserError("an engine spoke a text without phones; install it again, or use --voices builtin")
    margin = round(MARGIN_S * SAMPLE_RATE)
    padded = np.pad(said.samples, margin)
    first = max(0, round(said.phones[0].start_s * SAMPLE_RATE))
    last = min(len(said.samples), round(said.phones[-1].end_s * SAMPLE_RATE))
    samples = padded[first : last + 2 * margin].copy()
    ramp = (np.arange(margin, dtype=np.float32) + 0.5) / margin
    samples[:margin] *= ramp
    samples[-margin:] *= ramp[::-1]
    level = np.sqrt(np.mean(samples[margin:-margin] ** 2))
    samples *= np.float32(10 ** (LEVEL_DB / 20)) / max(level, np.float32(1e-4))
    shift = MARGIN_S - first / SAMPLE_RATE
    phones = [Phone(p.label, round(p.start_s + shift, 5), round(p.end_s + shift, 5)) for p in said.phones]
    return Spoken(samples, phones)


def _utterances(described: list[dict[str, Any]], samples: np.ndarray) -> Iterator[Utterance]:
    """Yields the utterances of a speaker with their loudness."""
    at = 0
    for entry in described:
        piece = samples[at : at + entry["samples"]]
        at += entry["samples"]
        phones = tuple(Phone(*phone) for phone in entry["phones"])
        yield Utterance(entry["text"], entry["short"], piece, phones, _loudness(piece))


def _loudness(samples: np.ndarray) -> np.ndarray:
    """Returns the root mean square around each point, over about 40 ms."""
    step = SAMPLE_RATE // GRID_HZ
    power = np.square(np.pad(samples, (0, -len(samples) % step)), dtype=np.float64)
    smooth = gaussian_filter1d(power.reshape(-1, step).mean(axis=1), 0.017 * GRID_HZ, mode="nearest")
    return np.sqrt(smooth) / 10 ** (LEVEL_DB / 20)
