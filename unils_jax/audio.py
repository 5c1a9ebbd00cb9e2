"""Media files to arrays at 16 kHz, arrays to wav, and who speaks when.

NumPy, SciPy, soundfile and PyAV; no JAX.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import binary_closing, binary_opening
from scipy.signal import firwin, resample_poly

from unils_jax.errors import UserError, shown
from unils_jax.files import atomic_output
from unils_jax.media import MAX_GAP_S, Block, decode_media
from unils_jax.motion import SAMPLE_RATE, SAMPLES_PER_FRAME

log = logging.getLogger(__name__)

# The quietest loudness that is told apart, dB re full scale.
SILENCE_DB = -80.0
# Bounds on what a file may claim, checked before memory is taken: ten hours, and two gigabytes of
# float32 at 16 kHz.
MAX_SECONDS, MAX_SAMPLES, MAX_CHANNELS = 36_000, 1 << 29, 64
MIN_RATE, MAX_RATE = 1_000, 768_000
# Louder than full scale by this factor, float audio was written in other units.
MAX_AMPLITUDE = 4.0
# Correlation of channels: below `ALIKE` they may be two people, above `SAME` they are one sound.
ALIKE, SAME = 0.7, 0.99
# Packet times are rounded (Matroska: 1 ms) and jitter in live recordings; closer than this,
# packets join.
JOIN_S = 0.015
MAX_NOTICES = 5
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Sound:
    """One audio track of a file at 16 kHz, and how its channels are related."""

    channels: Float32[np.ndarray, "C N"]  # in about -1..1
    notices: tuple[str, ...]  # sentences about the file: gaps, damage, further tracks
    likeness: float  # lowest correlation of a channel with the loudest one, silent ones left out; 1 for mono
    is_opposite: bool  # channels of opposite phase: their mean is (nearly) silence
    loudest: int  # channel of the most power
    num_silent: int  # channels 60 dB or more below the loudest one

    def mixed(self) -> tuple[Float32[np.ndarray, " N"], list[str]]:
        """Returns the mean of the channels (the loudest where they cancel), and what was done."""
        count = len(self.channels)
        if count == 1:
            return self.channels[0], []
        if self.is_opposite:
            chosen = f"its channels are of opposite phase and cancel; channel {self.loudest + 1} was taken alone"
            return self.channels[self.loudest], [chosen]
        said = []
        if self.likeness < ALIKE:
            said = [
                f"its {count} channels differ (correlation {self.likeness:.2f}) and were mixed into one person's "
                "sound; split them if each is a person"
            ]
        return self.channels.mean(axis=0, dtype=np.float32), said

    def split(self) -> tuple[Float32[np.ndarray, "P N"], list[str]]:
        """Returns a track for each channel (one where all are the same), and what was done."""
        if len(self.channels) == 1 or self.num_silent or abs(self.likeness) < SAME:
            return self.channels, []
        same = f"its {len(self.channels)} channels are the same sound, read as one person's"
        return self.mixed()[0][None], [same]


def read_sound(path: str | os.PathLike, track: int = 0) -> Sound:
    """Reads an audio track of a media file in the file's own time, resampled to 16 kHz.

    A gap, a late start and a damaged packet are silence, chained streams are one recording, and the
    notices say so. `track` counts from 1; 0 takes the first. A path that begins with ~ is in the
    home folder unless such a file exists.

    Raises UserError, naming the file, where it is missing, holds no sound that can be read, is
    empty, holds NaN or infinite samples or floats in other units, has no such track, or claims a
    rate, a length or channels that no recording has.
    """
    path = Path(path)
    if str(path).startswith("~") and not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    timeline = _Timeline(shown(path))
    decode_media(path, track, timeline)
    channels, notices = timeline.finish()
    return Sound(channels, tuple(notices), *_compare(channels))


def read_tracks(
    path: str | os.PathLike, channels: Literal["mix", "split"] = "mix", track: int = 0
) -> Float32[np.ndarray, "P N"]:
    """Reads a file as the tracks of people: one of all channels ("mix"), or one of each ("split").

    Everything that has to be said about the file is logged as a warning. Else as `read_sound`.
    """
    sound = read_sound(path, track)
    mixed, said = sound.mixed() if channels == "mix" else sound.split()
    for notice in (*sound.notices, *said):
        log.warning("%s: %s", shown(path), notice)
    return np.atleast_2d(mixed)


def read_audio(path: str | os.PathLike, track: int = 0) -> Float32[np.ndarray, " N"]:
    """Reads the sound of one person, 16 kHz mono in about -1..1, from an audio file or a video.

    `read_tracks` says what is logged and raised.
    """
    return read_tracks(path, "mix", track)[0]


def _compare(channels: Float32[np.ndarray, "C N"]) -> tuple[float, bool, int, int]:
    """Returns the last four fields of Sound, from the covariance of the channels in each second."""
    count = len(channels)
    if count == 1:
        return 1.0, False, 0, 0
    total, cancelled = np.zeros((count, count)), 0.0
    for start in range(0, channels.shape[1], 60 * SAMPLE_RATE):
        block = channels[:, start : start + 60 * SAMPLE_RATE]
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % SAMPLE_RATE))).reshape(count, -1, SAMPLE_RATE)
        seconds = (block - block.mean(axis=2, keepdims=True)).transpose(1, 0, 2)
        covariance = (seconds @ seconds.transpose(0, 2, 1)).astype(np.float64)
        # Independent channels give the sum of powers; less than half of it is cancellation.
        power = covariance.trace(axis1=1, axis2=2)
        cancelled += power[covariance.sum(axis=(1, 2)) < 0.5 * power].sum()
        total += covariance.sum(axis=0)
    power = total.diagonal()
    loudest = int(power.argmax())
    sounding = power > 1e-6 * power[loudest]
    if not sounding.any():
        return 1.0, False, 0, count
    likeness = total[loudest, sounding] / np.sqrt(power[loudest] * power[sounding])
    return float(likeness.min()), bool(cancelled > 0.2 * power.sum()), loudest, int((~sounding).sum())


def record_scale(
    audio: Float32[np.ndarray, "*P N"],
) -> tuple[Float32[np.ndarray, "*P 1"], Float32[np.ndarray, "*P 1"]]:
    """Returns what wav2vec2's processor normalises a whole recording by.

    That is its mean, and the root of its population variance plus 1e-7.
    """
    return audio.mean(-1, keepdims=True), np.sqrt(audio.var(-1, keepdims=True) + np.float32(1e-7))


def normalize_record(audio: Float32[np.ndarray, "*P N"]) -> Float32[np.ndarray, "*P N"]:
    """Returns a whole recording with zero mean and unit variance, as wav2vec2's processor does."""
    mean, deviation = record_scale(audio)
    return (audio - mean) / deviation


def write_wav(path: str | os.PathLike, audio: Float[np.ndarray, " N"]) -> None:
    """Writes 16 kHz mono samples as a 16-bit wav, clipped to -1..1. Atomic."""
    with atomic_output(path) as partial:
        soundfile.write(partial, np.clip(audio, -1, 1), SAMPLE_RATE, subtype="PCM_16", format="WAV")


def frame_loudness(audio: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " T"]:
    """Returns the root mean square of each 25 fps frame in dB re full scale, at least -80.

    T = ceil(N / 640); zeros fill the last frame.
    """
    frames = -(-len(audio) // SAMPLES_PER_FRAME)
    padded = np.pad(audio, (0, frames * SAMPLES_PER_FRAME - len(audio))).reshape(frames, SAMPLES_PER_FRAME)
    power = np.mean(padded.astype(np.float64) ** 2, axis=1)
    return (10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))).astype(np.float32)


def speaking_frames(
    tracks: Sequence[Float[np.ndarray, " _"]], voiced: Sequence[Bool[np.ndarray, " _"]] | None = None
) -> Bool[np.ndarray, "P T"]:
    """Guesses who speaks when from loudness: [P, T] at 25 frames/s.

    A person speaks while their track is within 24 dB of its loud parts and above -50 dB, or where
    `voiced` has a voice in it, and not so much quieter than the loudest one (9 dB) that it may be
    that person's voice in the other microphone.
    Pauses under 0.4 s belong to speech, sounds under 0.12 s do not. Shorter tracks are silent after
    their end.
    """
    levels = [frame_loudness(np.asarray(track, np.float32)) for track in tracks]
    num_frames = max(level.size for level in levels)
    loudness = np.stack([np.pad(lvl, (0, num_frames - lvl.size), constant_values=SILENCE_DB) for lvl in levels])
    loud = np.percentile(loudness, 95, axis=1, keepdims=True)
    speech = loudness > np.maximum(loud - 24, -50)
    if voiced is not None:
        speech = np.stack([np.pad(frames, (0, num_frames - len(frames))) for frames in voiced])
    speech &= loudness > loudness.max(axis=0, keepdims=True) - 9
    joined = binary_closing(np.pad(speech, ((0, 0), (10, 10))), np.ones((1, 10)))[:, 10:-10]
    return binary_opening(joined, np.ones((1, 3)))


class _Timeline:
    """Blocks of sound placed by their times at 16 kHz, with silence where none came."""

    def __init__(self, name: str):
        self.name, self.notices = name, []
        self._parts: list[Block] = []
        self._resampler: Resampler | None = None
        self._num_channels = self._rate = 0
        # Samples at the current rate since `_origin`, which is where that rate began, in seconds.
        self._done, self._origin = 0, 0.0
        # Added to a file's times: it changes where a clock starts again.
        self._shift = 0.0
        self._gaps: list[tuple[float, float]] = []
        self._damages: list[tuple[float, float]] = []
        self._bad_samples, self._peak = 0, 0.0

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self._origin + (self._done / self._rate if self._rate else 0.0)

    def restart(self) -> None:
        """Begins the next link of a chain: its clock starts at zero where the one before ended."""
        self._shift = self.seconds

    def add(self, block: Block, rate: int, time: float | None = None, *, damaged: bool = False) -> None:
        """Appends samples of `time` (None: at the end). `damaged`: some before them are lost."""
        self._set_format(len(block), rate)
        if time is not None:
            block = self._place(block, time, damaged)
        if len(block) != self._num_channels:
            block = np.repeat(block.mean(axis=0, keepdims=True, dtype=np.float32), self._num_channels, axis=0)
        self._push(block)

    def lose(self, time: float) -> None:
        """Appends silence up to `time`, for damage at the end."""
        ahead = time + self._shift - self.seconds
        self._silence(ahead if 0 < ahead < MAX_GAP_S else 0.0, self._damages)

    def finish(self) -> tuple[Block, list[str]]:
        """Returns all channels and the notices. Raises UserError for no samples or bad ones."""
        if self._resampler is not None:
            self._parts.append(self._resampler.finish(self._num_channels))
        if self._bad_samples:
            raise UserError(
                f"audio file {self.name} holds {self._bad_samples} NaN or infinite samples; export it again as PCM"
            )
        if not self._done and not self._origin:
            raise UserError(f"audio file {self.name} is empty (0 samples); give a file with sound in it")
        if self._peak > MAX_AMPLITUDE:
            raise UserError(
                f"audio file {self.name} reaches {self._peak:.4g}, floating point audio is -1..1; divide it by the "
                "full scale of its integers (32768 for 16 bits), or export it as PCM"
            )
        channels = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts, axis=1)
        damaged = _spans("is damaged {}; silence was put there", self._damages)
        gaps = _spans("has no sound {} (missing or damaged); silence was put there", self._gaps)
        return channels, [*self.notices[:MAX_NOTICES], *damaged, *gaps]

    def _set_format(self, num_channels: int, rate: int) -> None:
        if rate == self._rate:
            return
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UserError(f"{self.name} has a rate of {rate} Hz, must be {MIN_RATE} to {MAX_RATE}; resample it")
        if not self._rate:
            if num_channels > MAX_CHANNELS:
                raise UserError(f"{self.name} has {num_channels} channels, at most {MAX_CHANNELS}; export fewer")
            self._num_channels = num_channels
        self._origin, self._done = self.seconds, 0
        if self._resampler is not None:
            self._parts.append(self._resampler.finish(self._num_channels))
        self._rate, self._resampler = rate, Resampler(rate)

    def _place(self, block: Block, time: float, damaged: bool) -> Block:
        """Fills or cuts so that a block begins at its time; returns what is left of it."""
        is_start = not self._done and not self._origin
        ahead = time + self._shift - self.seconds
        if ahead > MAX_GAP_S:
            self.notices.append(f"its clock jumps by {ahead:.0f} s at {self.seconds:.2f} s; read on without a gap")
        elif ahead < -JOIN_S and not is_start and (ahead < -1 or time < JOIN_S):
            self.notices.append(f"its clock starts again at {self.seconds:.2f} s; read on as one recording")
        else:
            return self._fill(block, ahead, damaged, 0.0 if is_start else JOIN_S)
        self._shift -= ahead
        return block

    def _fill(self, block: Block, ahead: float, damaged: bool, tolerance: float) -> Block:
        if ahead > tolerance:
            # The decoder speaks of a late start itself: it knows whether there is a picture.
            is_late_start = not self.seconds and not damaged
            self._silence(ahead, [] if is_late_start else self._damages if damaged else self._gaps)
        elif damaged:
            self._damages.append((self.seconds, self.seconds))
        return block[:, round(-ahead * self._rate) :] if ahead < -tolerance else block

    def _silence(self, seconds: float, spans: list[tuple[float, float]]) -> None:
        spans.append((self.seconds, self.seconds + seconds))
        left = round(seconds * self._rate)
        self._check_length(left)
        for start in range(0, left, _BLOCK):
            self._push(np.zeros((self._num_channels, min(left - start, _BLOCK)), np.float32))

    def _push(self, block: Block) -> None:
        self._check_length(block.shape[1])
        peak = max(float(block.max()), -float(block.min())) if block.size else 0.0
        if not math.isfinite(peak):
            self._bad_samples += int((~np.isfinite(block)).sum())
        self._peak = max(self._peak, peak)
        self._done += block.shape[1]
        self._parts.append(self._resampler.push(block))

    def _check_length(self, more: int) -> None:
        most = min(MAX_SECONDS, MAX_SAMPLES / SAMPLE_RATE / self._num_channels)
        if self.seconds + more / self._rate > most:
            raise UserError(
                f"{self.name} holds more than {most / 3600:.1f} h of {self._num_channels} channels, too long to read; "
                "cut it up"
            )


class Resampler:
    """`resample_poly` to 16 kHz for the blocks of one signal: the same bits as for the whole.

    Samples are collected until there are `least_samples` more than the filter needs on either
    side: many for a file, which is quicker, few for a live track, which waits for them.
    """

    def __init__(self, rate: int, least_samples: int = _BLOCK):
        self._least_samples = least_samples
        divisor = math.gcd(rate, SAMPLE_RATE)
        self.up, self.down = SAMPLE_RATE // divisor, rate // divisor
        largest = max(self.up, self.down)
        if largest > 1:
            self._filter = firwin(20 * largest + 1, 1 / largest, window=("kaiser", 5.0)).astype(np.float32)
        # What an output sample needs on either side. Blocks begin at multiples of `down`,
        # where the filter's phases repeat.
        self._context = -(-(10 * largest // self.up + 2) // self.down) * self.down
        self._pending: list[Block] = []
        self._num_pending = self._before = 0

    def push(self, block: Block) -> Block:
        """Takes samples and returns those at 16 kHz that no later sample changes."""
        if self.up == self.down:
            return block
        self._pending.append(block)
        self._num_pending += block.shape[1]
        if self._num_pending < 2 * self._context + max(self._least_samples, self.down):
            return block[:, :0]
        return self._resample(is_last=False)

    def finish(self, num_channels: int) -> Block:
        """Returns the rest."""
        if not self._pending:
            return np.zeros((num_channels, 0), np.float32)
        return self._resample(is_last=True)

    def _resample(self, *, is_last: bool) -> Block:
        joined = np.concatenate(self._pending, axis=1)
        result = resample_poly(joined, self.up, self.down, axis=1, window=self._filter)
        start, size = self._before, joined.shape[1]
        end = size if is_last else (size - self._context) // self.down * self.down
        keep = max(0, end - self._context)
        self._pending, self._num_pending, self._before = [joined[:, keep:]], size - keep, end - keep
        stop = None if is_last else end * self.up // self.down
        return result[:, start * self.up // self.down : stop]


def _spans(text: str, spans: list[tuple[float, float]]) -> list[str]:
    """Returns one sentence for all spans of a kind, in seconds; the first three are named."""
    if not spans:
        return []
    named = [f"from {a:.2f} to {b:.2f} s" if b > a else f"at {a:.2f} s" for a, b in spans[:3]]
    total = sum(b - a for a, b in spans)
    more = f" and {len(spans) - 3} more times, {total:.2f} s in all" if len(spans) > 3 else ""
    return [text.format(", ".join(named) + more)]
