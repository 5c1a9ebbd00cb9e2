"""Who speaks when, found in the sound, and by the jaws of two people where one microphone has both.

Silero's detector of voices is its package's ONNX file, run by onnxruntime: its torch is not needed.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import median_filter, uniform_filter1d

from unils_jax.audio import speaking_frames
from unils_jax.errors import UserError, install_hint
from unils_jax.motion import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

DETECTORS = ("loudness", "silero")
# Of Silero's detector: samples that it takes at a time, and those before them that it also sees.
_SAMPLES, _CONTEXT, _STATE = 512, 64, (2, 1, 128)
_BEGINS, _ENDS = 0.5, 0.35  # probabilities at which a voice begins and ends, as its authors have them
_JAW_FRAMES = 25  # over which the movement of jaws is compared

Turns = list[tuple[float, float]]  # start and end in seconds


def check_detector(name: str) -> None:
    """Raises UserError where the packages of a detector are missing."""
    missing = [package for package in ("silero_vad", "onnxruntime") if importlib.util.find_spec(package) is None]
    if name == "silero" and missing:
        raise UserError(f"--vad silero needs {' and '.join(missing)}: {install_hint('vad')}, or take --vad loudness")


def find_speech(sounds: Sequence[Float32[np.ndarray, " _"]], detector: str) -> Bool[np.ndarray, "P T"]:
    """Returns who speaks at which frame, each person's sound being from the own microphone.

    A voice that another microphone has 9 dB louder is that person's. Pauses under 0.4 s belong to
    speech, sounds under 0.12 s do not. Raises UserError as `check_detector`.
    """
    check_detector(detector)
    return speaking_frames(sounds, [_has_voice(sound) for sound in sounds] if detector == "silero" else None)


def share_by_jaws(speech: Bool[np.ndarray, " T"], jaws: Float[np.ndarray, "P T2"]) -> Bool[np.ndarray, "P T"]:
    """Gives each frame of speech to the person whose jaw moves most in the second around it.

    A person's movement is relative to the own largest. At most one person speaks at a time.
    """
    frames = min(len(speech), jaws.shape[1])
    steps = np.abs(np.diff(jaws[:, :frames], axis=1, prepend=jaws[:, :1]))
    movement = uniform_filter1d(steps.astype(np.float64), _JAW_FRAMES, axis=1)
    movement /= np.maximum(np.percentile(movement, 95, axis=1, keepdims=True), 1e-9)
    # The median leaves out changes for less than half a second.
    mover = np.pad(median_filter(movement.argmax(axis=0), _JAW_FRAMES), (0, len(speech) - frames), mode="edge")
    return speech & (mover == np.arange(len(jaws))[:, None])


def turns_of(speech: Bool[np.ndarray, " T"]) -> Turns:
    """Returns the turns that frames of speech are."""
    edges = np.flatnonzero(np.diff(np.pad(speech.astype(np.int8), 1)))
    return [(start / FPS, end / FPS) for start, end in edges.reshape(-1, 2).tolist()]


def probabilities(sound: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " C"]:
    """Returns Silero's probability of a voice in each 512 samples."""
    session, count = _silero(), -(-len(sound) // _SAMPLES)
    padded = np.pad(sound, (_CONTEXT, count * _SAMPLES - len(sound)))
    state, rate = np.zeros(_STATE, np.float32), np.array(SAMPLE_RATE, np.int64)
    found = np.zeros(count, np.float32)
    for i in range(count):
        piece = padded[None, i * _SAMPLES : (i + 1) * _SAMPLES + _CONTEXT]
        probability, state = session.run(None, {"input": piece, "state": state, "sr": rate})
        found[i] = probability.item()
    return found


def _has_voice(sound: Float32[np.ndarray, " N"]) -> Bool[np.ndarray, " T"]:
    """Tells the frames with a voice, by Silero's probabilities."""
    voice, frames = probabilities(sound), -(-len(sound) // SAMPLES_PER_FRAME)
    # Between both thresholds a voice goes on if there was one.
    decided = (voice >= _BEGINS) | (voice < _ENDS)
    voiced = voice[np.maximum.accumulate(np.where(decided, np.arange(len(voice)), 0))] >= _BEGINS
    middles = (np.arange(frames) * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2) // _SAMPLES
    return voiced[np.minimum(middles, len(voice) - 1)]


@functools.lru_cache(maxsize=1)
def _silero() -> Any:  # noqa: ANN401  (an extra's class)
    """Loads the package's weights, for one thread: conversions have a process a core."""
    import onnxruntime  # noqa: PLC0415 - an optional extra

    # Found and not imported, because the package imports torch.
    package = importlib.util.find_spec("silero_vad")
    path = Path(package.origin).parent / "data/silero_vad.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
