"""Audio files to 16 kHz mono arrays and back. NumPy, SciPy, soundfile and PyAV; no JAX.

Whatever libsndfile reads is read with it; everything else (mp4, m4a, webm, ...) with FFmpeg's decoders in PyAV.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import binary_closing, binary_opening
from scipy.signal import resample_poly

from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.motion import SAMPLE_RATE, SAMPLES_PER_FRAME

# The quietest loudness that is told apart, dB re full scale.
SILENCE_DB = -80.0


def read_audio(path: str | os.PathLike) -> Float32[np.ndarray, " N"]:
    """The samples of an audio file (or of a video's first audio track), 16 kHz mono, in about -1..1.

    Channels are averaged, other rates resampled (polyphase). Raises UserError, naming the file, where it is missing,
    holds no audio that can be read, is empty, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not an audio file" if path.is_dir() else "does not exist"
        raise UserError(f"audio file {path} {what}; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"audio file {path} is empty (0 bytes); give a file with sound in it")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        samples, rate = _read_with_ffmpeg(path)
    if not samples.size:
        raise UserError(f"audio file {path} is empty (0 samples); give a file with sound in it")
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).sum())
        raise UserError(f"audio file {path} holds {count} NaN or infinite samples; export it again as PCM")
    return resample(samples.mean(axis=1, dtype=np.float32), rate)


def resample(samples: Float32[np.ndarray, " N"], rate: int) -> Float32[np.ndarray, " M"]:
    """Samples at `rate` Hz as samples at 16 kHz, with a polyphase low-pass filter. Raises UserError for rate < 1."""
    if rate < 1:
        raise UserError(f"sample rate must be at least 1 Hz, got {rate}")
    if rate == SAMPLE_RATE:
        return samples
    divisor = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def record_scale(
    audio: Float32[np.ndarray, "*P N"],
) -> tuple[Float32[np.ndarray, "*P 1"], Float32[np.ndarray, "*P 1"]]:
    """What wav2vec2's processor normalises a whole recording by: its mean, and the root of its population variance plus
    1e-7."""
    return audio.mean(-1, keepdims=True), np.sqrt(audio.var(-1, keepdims=True) + np.float32(1e-7))


def normalize_record(audio: Float32[np.ndarray, "*P N"]) -> Float32[np.ndarray, "*P N"]:
    """A whole recording with zero mean and unit variance, as wav2vec2's processor makes it."""
    mean, deviation = record_scale(audio)
    return (audio - mean) / deviation


def _read_with_ffmpeg(path: Path) -> tuple[Float32[np.ndarray, "N C"], int]:
    import av

    pieces, rate = [], 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no audio track; give a file with sound in it")
            resampler = None
            for frame in container.decode(audio=0):
                rate = frame.sample_rate
                resampler = resampler or av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                pieces += [piece.to_ndarray() for piece in resampler.resample(frame)]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not an audio file that libsndfile or FFmpeg can read; convert it to wav") from None
    if not pieces:
        return np.zeros((0, 1), np.float32), SAMPLE_RATE
    return np.concatenate(pieces, axis=1).T, rate


def write_wav(path: str | os.PathLike, audio: Float[np.ndarray, " N"]) -> None:
    """Writes 16 kHz mono samples as a 16-bit wav, clipped to -1..1. Atomic."""
    with atomic_output(path) as partial:
        soundfile.write(partial, np.clip(audio, -1, 1), SAMPLE_RATE, subtype="PCM_16", format="WAV")


def frame_loudness(audio: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " T"]:
    """Root mean square of each 25 fps frame in dB re full scale, at least -80; T = ceil(N / 640), zeros at the end."""
    frames = -(-len(audio) // SAMPLES_PER_FRAME)
    padded = np.pad(audio, (0, frames * SAMPLES_PER_FRAME - len(audio))).reshape(frames, SAMPLES_PER_FRAME)
    power = np.mean(padded.astype(np.float64) ** 2, axis=1)
    return (10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))).astype(np.float32)


def speaking_frames(tracks: Sequence[Float[np.ndarray, " _"]]) -> Bool[np.ndarray, "P T"]:
    """Who speaks when, guessed from loudness, for display: [P, T] at 25 frames/s; the shorter tracks count as silent.

    A person speaks while their track is within 24 dB of its loud parts, above -50 dB, and not so much quieter than the
    loudest one (9 dB) that it may be that person's voice in the other microphone. Pauses under 0.4 s belong to speech,
    sounds under 0.12 s do not.
    """
    levels = [frame_loudness(np.asarray(track, np.float32)) for track in tracks]
    num_frames = max(level.size for level in levels)
    loudness = np.stack([np.pad(lvl, (0, num_frames - lvl.size), constant_values=SILENCE_DB) for lvl in levels])
    loud = np.percentile(loudness, 95, axis=1, keepdims=True)
    voiced = (loudness > np.maximum(loud - 24, -50)) & (loudness > loudness.max(axis=0, keepdims=True) - 9)
    joined = binary_closing(np.pad(voiced, ((0, 0), (10, 10))), np.ones((1, 10)))[:, 10:-10]
    return binary_opening(joined, np.ones((1, 3)))
