"""Motion in other projects' layouts: DualTalk's 56 channels and ARTalk's 106.

Every value that a layout has room for comes back as it was, bit for bit; what it lacks comes
back as zero. NumPy only.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from data_pipelines.resampling import at_our_rate, check_rate
from data_pipelines.tracks.names import RATE_KEYS, TIME_KEYS
from unils_jax.errors import UserError
from unils_jax.files import atomic_output, read_npy_file, read_npz_file
from unils_jax.motion import EYES, FPS, MOTION_DIM, MotionFile, to_56_channels
from unils_jax.outputs.trackers import file_rate, finite, read_tracker, say_losses
from unils_jax.pickles.torch_zip import open_archive, state_dict

ARTALK_DIM = 106
_TENSOR_KEYS = ("motion", "motions", "motion_code", "motioncode")

log = logging.getLogger(__name__)


def to_artalk(motion: Float[np.ndarray, "T 108"]) -> Float[np.ndarray, "T 106"]:
    """Returns ARTalk's 106 channels: expression 100, head 3, jaw 3.

    The last two of the jaw are zero. The eyes are left out.
    """
    return np.concatenate([motion[:, :104], np.zeros((len(motion), 2), motion.dtype)], axis=1)


def from_artalk(channels: Float[np.ndarray, "T 106"]) -> Float32[np.ndarray, "T 108"]:
    """Returns motion of ARTalk's 106 channels.

    The eyes are zero; of the jaw the first component is kept.
    """
    motion = np.zeros((len(channels), MOTION_DIM), np.float32)
    motion[:, :104] = channels[:, :104]
    return motion


def dualtalk_paths(path: str | os.PathLike, num_people: int) -> list[Path]:
    """Returns the names of a conversation's files in DualTalk's data set.

    They are NAME_speaker1.npz, NAME_speaker2.npz.
    """
    path = Path(path)
    return [path.with_name(f"{path.stem}_speaker{p + 1}.npz") for p in range(num_people)]


def write_dualtalk(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"]) -> list[Path]:
    """Writes one file a person next to `path`, as DualTalk's data set has them.

    Each holds `exp [T, 50]` and `pose [T, 6]` (head, jaw), and is whole or not there. Returns
    the files' paths.
    """
    paths = dualtalk_paths(path, len(motion))
    for file_path, person in zip(paths, motion, strict=True):
        channels = to_56_channels(person)
        # Our order is jaw, head; theirs is head, jaw.
        pose = np.concatenate([channels[:, 53:], channels[:, 50:53]], axis=1)
        with atomic_output(file_path) as partial, open(partial, "wb") as file:
            np.savez(file, exp=channels[:, :50], pose=pose)
    return paths


def read_dualtalk(paths: list[Path], fps: float | None = None) -> Float32[np.ndarray, "P T 108"]:
    """Reads motion of DualTalk's data set or a tracker, a file a person, cut to the shortest.

    Names of arrays, what is said and errors are those of `read_tracker`; another rate than 25 is
    resampled.
    """
    people = []
    for path in paths:
        motion, rate = read_tracker(path, fps)
        people.append(at_our_rate(motion[None], rate, str(path))[0])
    # The files of one conversation may differ by a frame.
    num_frames = min(len(person) for person in people)
    return np.stack([person[:num_frames] for person in people])


def write_artalk(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"]) -> list[Path]:
    """Writes an .npz with `motion [P, T, 106]` and `fps`; returns its path alone."""
    channels = np.stack([to_artalk(person) for person in motion])
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, motion=channels, fps=np.float64(FPS))
    return [Path(path)]


def read_artalk(paths: list[Path], fps: float | None = None) -> Float32[np.ndarray, "P T 108"]:
    """Reads motion `[T or P T, 106]` of the one .npz (`motion`, `fps`), .npy or ARTalk's .pt.

    `fps` is taken instead of what the file says; another rate than 25 is resampled. What has no
    room is said. Raises UserError, naming the file.
    """
    (path,) = paths
    channels, named = _artalk_channels(path)
    if channels is None or channels.ndim not in (2, 3) or channels.shape[-1] != ARTALK_DIM or 0 in channels.shape:
        got = "no such array" if channels is None else list(channels.shape)
        raise UserError(f"{path} must hold motion [T, {ARTALK_DIM}] or [P, T, {ARTALK_DIM}], got {got}")
    # ARTalk saves one person without a leading axis.
    channels = channels.reshape(-1, *channels.shape[-2:])
    finite(path, channels)
    say_losses(path, {"the jaw's second and third component": channels[..., 104:]})
    if fps is not None and named is not None and abs(named / fps - 1) > 0.01:
        log.warning("%s says %.6g frames a second; --fps %g is taken instead", path, named, fps)
    return at_our_rate(np.stack([from_artalk(person) for person in channels]), fps or named or FPS, str(path))


def _artalk_channels(path: Path) -> tuple[np.ndarray | None, float | None]:
    """Returns a file's motion and frames a second, each None where the file has none."""
    if path.suffix in (".pt", ".pth"):
        return _artalk_tensor(path)
    if path.suffix == ".npy":
        return read_npy_file(path), None
    arrays = read_npz_file(path, ("motion", *RATE_KEYS, *TIME_KEYS))
    motion = arrays.get("motion")
    return motion, file_rate(path, arrays, motion.shape[-2] if motion is not None and motion.ndim > 1 else 0)


def _artalk_tensor(path: Path) -> tuple[np.ndarray, float | None]:
    """Returns the motion of a .pt: a tensor, or one in a dict by its name or alone."""
    with open_archive(path) as archive:
        top = archive.load()
        items = top if isinstance(top, dict) else {"motion": top}
        named = [key for key in _TENSOR_KEYS if key in items]
        key = (named or list(items) or [""])[0]
        if not named and len(items) != 1:
            raise UserError(f"{path} must hold a tensor [T, {ARTALK_DIM}], or one named {' or '.join(_TENSOR_KEYS)}")
        rate = items.get("fps")
        fps = check_rate(float(rate), f"{path}: fps") if type(rate) in (int, float) else None
        return state_dict(archive, {"motion": items[key]})["motion"], fps


@dataclass(frozen=True)
class Layout:
    """How another project keeps motion in files."""

    read: Callable[[list[Path], float | None], Float32[np.ndarray, "P T 108"]]
    write: Callable[[str | os.PathLike, Float[np.ndarray, "P T 108"]], list[Path]]
    files: int  # of one conversation, at most
    lacks: dict[str, slice]  # our channels that have no room, by what they are called


LAYOUTS = {
    "dualtalk": Layout(read_dualtalk, write_dualtalk, 2, {"eyes": EYES, "expression 50 to 99": slice(50, 100)}),
    "artalk": Layout(read_artalk, write_artalk, 1, {"eyes": EYES}),
}


def warn_of_losses(layout: str, file: MotionFile) -> None:
    """Warns of channels that another project's layout cannot hold or takes for something else."""
    if file.expression_basis != "flame":
        log.warning(
            "motion has the %s basis: in %s's layout the channels keep their numbers, not the meaning of FLAME's",
            file.expression_basis,
            layout,
        )
    for name, channels in LAYOUTS[layout].lacks.items():
        if np.any(file.motion[..., channels]):
            log.warning("%s's layout has no room for %s, which is left out", layout, name)
