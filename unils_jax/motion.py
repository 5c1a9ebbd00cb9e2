"""The 108 channels of motion: their order, their names, and the motion file.

NumPy and SciPy only: data workers and tools that never start JAX import this module.
Source: the paper's section on data and the release's data loaders.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.signal import savgol_filter

from unils_jax.errors import UserError
from unils_jax.files import atomic_output, read_npz_file

FPS = 25.0
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640
WINDOW_FRAMES = 100  # of the release; a model's own number is `Window.frames`
MOTION_KIND = "motion_108"  # our motion, as an annotation among others
PARTNER_FRAMES = 200  # of a training window with the partner's motion, 8 s
MOTION_DIM = 108

EXPRESSION = slice(0, 100)
HEAD = slice(100, 103)  # axis-angle, radians
JAW = slice(103, 104)  # first axis-angle component, radians
HEAD_AND_JAW = slice(100, 104)
EYES = slice(104, 108)  # left eye (2), right eye (2), radians

BASES = ("flame", "standin")
# What the people of a pair hear: each the own and the other track by two cross-attentions (UniLS),
# or by a single one the own track (ARTalk), or the sum of both (an ablation of UniLS' paper).
AUDIO_CONDITIONS = ("pair", "own", "mixed")

# The 56 channels that some systems have of these: expression 50, jaw 3, head 3.
MOTION_56_DIM = 56
# Groups of channels that figures are taken over, of 108 and of 56.
GROUPS = {"expression": EXPRESSION, "head": HEAD, "jaw": JAW, "eyes": EYES}
MOTION_56_GROUPS = {"expression": slice(0, 50), "jaw": slice(50, 53), "head": slice(53, 56)}

# The stand-in head's named expression shapes: name -> the coefficient at which the shape is fully
# expressed. They are the leading expression channels of the `standin` basis, in this order.
STANDIN_SHAPES: dict[str, float] = {
    "smile_left": 2.5,
    "smile_right": 2.5,
    "lip_pucker": 2.5,
    "lip_stretch": 2.5,
    "upper_lip_raise": 2.5,
    "lower_lip_drop": 2.5,
    "blink_left": 4.0,
    "blink_right": 4.0,
    "brow_up_left": 2.5,
    "brow_up_right": 2.5,
    "brow_inner_up": 1.5,
    "brow_down": 1.5,
    "squint": 1.5,
    "eye_wide": 1.5,
    "lip_press": 1.5,
    "lip_roll": 1.5,
    "mouth_corner_down": 1.5,
    "cheek_raise": 1.5,
    "cheek_puff": 1.5,
    "nose_wrinkle": 1.5,
    "mouth_left": 1.5,
    "mouth_right": 1.5,
    "chin_raise": 1.5,
    "sneer": 1.5,
}


@dataclass(frozen=True)
class Window:
    """What a generator decodes at a time and from what, in frames; the defaults are the release's.

    A conversation is decoded window after window; window k begins at frame `k * frames`. Where the
    audio or the motion that conditions it begins before the conversation, it is silent or zero.
    """

    frames: int = WINDOW_FRAMES  # of motion, decoded at a time: the codec's last scale
    context_windows: int = 1  # windows of previous motion that condition it, and as many of style
    past_audio_frames: int = 0  # of audio before its first frame that it is conditioned on
    lookahead_frames: int = 0  # of audio after its last frame

    @property
    def context_frames(self) -> int:
        """Frames of previous motion, and of style."""
        return self.context_windows * self.frames

    @property
    def audio_frames(self) -> int:
        """Frames of audio that condition a window."""
        return self.past_audio_frames + self.frames + self.lookahead_frames

    @property
    def num_samples(self) -> int:
        """Samples of audio that condition a window."""
        return self.audio_frames * SAMPLES_PER_FRAME

    def audio_span(self, first_frame: int) -> tuple[int, int]:
        """Returns the samples `[first, last)` of the window that begins at a frame.

        The first one is negative where the audio begins before the conversation.
        """
        first = (first_frame - self.past_audio_frames) * SAMPLES_PER_FRAME
        return first, first + self.num_samples

    def num_complete(self, samples: int) -> int:
        """Returns how many windows have all of their audio after so many samples."""
        return max(samples // SAMPLES_PER_FRAME - self.lookahead_frames, 0) // self.frames

    def count(self, samples: int) -> int:
        """Returns how many windows it takes to decode so many samples; the last may be padded."""
        return -(-samples // (self.frames * SAMPLES_PER_FRAME))


def channel_names(expression_basis: str) -> list[str]:
    """Returns the 108 channel names; the stand-in basis names its leading expression channels."""
    _check_basis(expression_basis)
    expression = [f"expression_{i:02d}" for i in range(100)]
    if expression_basis == "standin":
        expression[: len(STANDIN_SHAPES)] = list(STANDIN_SHAPES)
    head = ["head_x", "head_y", "head_z"]
    eyes = ["eye_left_x", "eye_left_y", "eye_right_x", "eye_right_y"]
    return [*expression, *head, "jaw", *eyes]


def to_56_channels(motion: Shaped[np.ndarray, "*T 108"]) -> Shaped[np.ndarray, "*T 56"]:
    """Returns the 56 channels of 108.

    They are the first 50 of expression, the jaw padded with two zeros, and the head rotation. A
    mask of channels is converted the same way; its padding is as the jaw's first component.
    """
    jaw = motion[..., JAW]
    padding = jaw if motion.dtype == bool else np.zeros_like(jaw)
    return np.concatenate([motion[..., :50], jaw, padding, padding, motion[..., HEAD]], axis=-1)


def from_56_channels(channels: Float[np.ndarray, "*T 56"]) -> Float[np.ndarray, "*T 108"]:
    """Returns the 108 channels of 56: the jaw's first component, zero where the 56 have nothing."""
    motion = np.zeros((*channels.shape[:-1], MOTION_DIM), channels.dtype)
    motion[..., :50] = channels[..., MOTION_56_GROUPS["expression"]]
    motion[..., JAW] = channels[..., MOTION_56_GROUPS["jaw"]][..., :1]
    motion[..., HEAD] = channels[..., MOTION_56_GROUPS["head"]]
    return motion


def from_motioncode(motioncode: np.ndarray) -> np.ndarray:
    """Returns the 108 motion channels of a release record `[T, >=111]`, in the stored dtype.

    The release stores expression 100, head 3, jaw 3, eyes 6; the model sees one jaw and two
    components of each eye.
    """
    if motioncode.ndim != 2 or motioncode.shape[1] < 111:
        raise UserError(f"motioncode must be [T, at least 111], got {list(motioncode.shape)}")
    return np.concatenate([motioncode[:, :104], motioncode[:, 106:108], motioncode[:, 109:111]], axis=1)


def center_head(motion: np.ndarray) -> np.ndarray:
    """Subtracts the mean head rotation over the whole record `[..., T, 108]`, in the stored dtype.

    Float16 records are centred in float16 as the release does; float32 would differ by 2e-4.
    """
    mean = head_mean(motion)
    motion = motion.copy()
    motion[..., HEAD] -= mean
    return motion


def head_mean(motion: np.ndarray) -> np.ndarray:
    """Returns the mean head rotation `[..., 1, 3]` of a record `[..., T, 108]`, in its dtype."""
    # Contiguous, because the order in which NumPy adds, and so the last bit, may depend on the
    # strides.
    return np.ascontiguousarray(motion)[..., HEAD].mean(axis=-2, keepdims=True)


def smooth(motion: Float[np.ndarray, "... T 108"]) -> Float[np.ndarray, "... T 108"]:
    """Smooths over time for display only: Savitzky-Golay, window 9, order 3, `interp` ends.

    Motion of fewer than 9 frames is returned unchanged.
    """
    if motion.shape[-2] < 9:
        return motion
    return savgol_filter(motion, 9, 3, axis=-2, mode="interp").astype(motion.dtype)


@dataclass(frozen=True)
class MotionFile:
    """The contents of a motion file: `motion [P, T, 108]` float32, its basis and its source."""

    motion: np.ndarray
    expression_basis: str
    source: dict[str, Any]
    fps: float = FPS
    finished: bool = False  # whether `finishing.finish` made it; False: as it was decoded or tracked


def save_motion(
    path: str | os.PathLike,
    motion: Float[np.ndarray, "P T 108"],
    *,
    expression_basis: str,
    source: dict[str, Any],
    finished: bool = False,
) -> None:
    """Writes a motion file (.npz) whole or not at all.

    It holds `motion`, `fps`, `channels`, `expression_basis`, `source` (JSON) and `finished`: true
    where `finish` made the motion, so that what draws or exports it does not finish it again.
    """
    _check_basis(expression_basis)
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            motion=np.asarray(motion, np.float32),
            fps=np.float64(FPS),
            channels=np.array(channel_names(expression_basis)),
            expression_basis=np.array(expression_basis),
            source=np.array(json.dumps(source, sort_keys=True)),
            finished=np.bool_(finished),
        )


def load_motion(path: str | os.PathLike, *, any_rate: bool = False) -> MotionFile:
    """Reads a motion file; with `any_rate` also one of another frame rate than 25.

    Raises UserError, naming the file, where it is missing, broken or of another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"motion file {path} does not exist")
    try:
        arrays = read_npz_file(path, ("motion", "expression_basis", "fps", "source", "finished"))
        motion, basis = arrays["motion"], str(arrays["expression_basis"])
        fps, source = float(arrays["fps"]), json.loads(str(arrays["source"]))
        # Files without it are older than it, or by other programs: nothing has finished them.
        finished = bool(arrays.get("finished", False))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a motion file of unils ({error}); see `unils decode --out`") from None
    problems = []
    if motion.ndim != 3 or motion.shape[-1] != MOTION_DIM or motion.dtype != np.float32:
        problems.append(f"motion must be float32 [P, T, 108], got {motion.dtype} {list(motion.shape)}")
    elif not motion.size:
        problems.append(f"motion must hold at least one frame of one person, got {list(motion.shape)}")
    elif not np.isfinite(motion).all():
        problems.append("motion holds NaN or infinite values")
    if fps != FPS and not any_rate:
        problems.append(f"fps must be {FPS}, got {fps}; `unils convert-motion` resamples it")
    if basis not in BASES:
        problems.append(f"expression_basis must be one of {BASES}, got {basis!r}")
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return MotionFile(motion, basis, source, fps, finished)


def _check_basis(expression_basis: str) -> None:
    if expression_basis not in BASES:
        raise UserError(f"expression_basis must be one of {BASES}, got {expression_basis!r}")
