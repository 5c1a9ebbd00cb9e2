"""FLAME motion in .npz files of trackers and data sets, found by the names of their arrays.

DECA and its kin (`exp`, `pose`), EMOCA (`expcode`, `posecode`), SMIRK (`expression_params`,
`jaw_params`), VHAP (`expr`, `rotation`, `jaw_pose`, `eyes_pose`) and others with such names. NumPy
and SciPy only.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from data_pipelines.resampling import check_rate, fill_gaps, rate_of_times
from data_pipelines.tracks.names import (
    EXPRESSION_KEYS,
    EYES_KEYS,
    HEAD_KEYS,
    JAW_KEYS,
    POSE_KEYS,
    RATE_KEYS,
    TIME_KEYS,
)
from data_pipelines.tracks.rotations import MAX_ANGLE
from unils_jax.errors import UserError, one_line
from unils_jax.files import npz_names, read_npz_file
from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, MOTION_DIM

_KEYS = (EXPRESSION_KEYS, POSE_KEYS, HEAD_KEYS, JAW_KEYS, EYES_KEYS, RATE_KEYS, TIME_KEYS)

log = logging.getLogger(__name__)


class _Parts(NamedTuple):
    """What a file says of each part of the face, and what there is no room for by its name."""

    head: np.ndarray | None
    jaw: np.ndarray | None
    eyes: np.ndarray | None
    lost: dict[str, np.ndarray]


def read_tracker(path: Path, fps: float | None = None) -> tuple[Float32[np.ndarray, "T 108"], float]:
    """Reads one person's motion, at the file's own rate, and that rate in frames a second.

    Expression may have any number of components: up to 100 are kept. Rotations are axis-angles in
    radians, or matrices `[T, 3, 3]`; a pose of 3 is the head's, of 6 head and jaw, of 15 head,
    neck, jaw and eyes. One line says all that is left out, with its size, and what the file lacks
    and is zero.

    `fps` is taken instead of what the file says. Raises UserError, naming the file and the array.
    """
    names = npz_names(path)
    arrays = read_npz_file(path, [name for keys in _KEYS for name in keys if name in names])
    expression = _one(path, arrays, EXPRESSION_KEYS)
    if expression is None:
        found = ", ".join(map(_shown, names[:8])) or "nothing"
        raise UserError(
            f"{path} must hold expression [T, up to 100], named exp or as a tracker names it ("
            f"{', '.join(EXPRESSION_KEYS[1:])}), with pose [T, 6] or head and jaw; got {found}"
        )
    parts = _parts(path, arrays)
    motion = np.zeros((len(expression), MOTION_DIM), np.float32)
    kept = min(expression.shape[1], EXPRESSION.stop)
    placed = {"expression": (slice(0, kept), expression[:, :kept])}
    if parts.head is not None:
        placed["head rotation"] = (HEAD, parts.head)
    if parts.jaw is not None:
        placed["jaw"] = (JAW, parts.jaw[:, :1])
    if parts.eyes is not None:
        placed["eyes"] = (EYES, parts.eyes)
    for what, (channels, values) in placed.items():
        if len(values) != len(motion):
            raise UserError(
                f"{path} must hold as many frames of each array, got expression {len(motion)}, {what} {len(values)}"
            )
        motion[:, channels] = values
    if np.abs(motion[:, HEAD.start :]).max(initial=0) > MAX_ANGLE:
        raise UserError(
            f"{path} turns by up to {np.abs(motion[:, HEAD.start :]).max():.4g}; rotations must be axis-angles in "
            "radians (at most a full turn), so degrees have to be divided by 57.3"
        )
    lost = {f"expression {kept} to {expression.shape[1] - 1}": expression[:, kept:], **parts.lost}
    _say(path, names, arrays, lost, [part for part in ("head rotation", "jaw") if part not in placed])
    times = next((key for key in TIME_KEYS if key in arrays), None)
    if times is not None and arrays[times].dtype.kind in "iuf" and arrays[times].shape == (len(motion),):
        motion, arrays[times] = fill_gaps(motion, arrays[times].astype(np.float64), f"{path}: {times}")
    return motion, _rate(path, arrays, len(motion), fps)


def _parts(path: Path, arrays: dict[str, np.ndarray]) -> _Parts:
    """Returns head [T, 3], jaw [T, 1 or 3], eyes [T, 4] if present, and what has no room."""
    pose = _one(path, arrays, POSE_KEYS, (3, 6, 15))
    head, jaw = _one(path, arrays, HEAD_KEYS, (3,)), _one(path, arrays, JAW_KEYS, (1, 3))
    eyes = _one(path, arrays, EYES_KEYS, (4, 6))
    lost: dict[str, np.ndarray] = {}
    if pose is not None:
        # An array of its own is meant for the part: SMIRK's pose is the head alone, others repeat
        # the jaw in it.
        of_pose = {"head": pose[:, :3], "jaw": pose[:, 3:6] if pose.shape[1] == 6 else pose[:, 6:9]}
        if pose.shape[1] == 15:
            lost["pose 3 to 5 (neck)"] = pose[:, 3:6]
            if eyes is None:
                eyes = pose[:, 9:]
            else:
                lost["pose 9 to 14 (eyes)"] = pose[:, 9:]
        if head is None:
            head = of_pose["head"]
        else:
            lost["pose 0 to 2 (head)"] = of_pose["head"]
        if jaw is None:
            jaw = of_pose["jaw"] if pose.shape[1] > 3 else None
        elif pose.shape[1] > 3:
            lost["the jaw in pose"] = of_pose["jaw"]
    if jaw is not None:
        lost["the jaw's second and third component"] = jaw[:, 1:]
    if eyes is not None and eyes.shape[1] == 6:
        lost["the eyes' third components"] = eyes[:, [2, 5]]
        eyes = eyes[:, [0, 1, 3, 4]]
    return _Parts(head, jaw, eyes, lost)


def _one(
    path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...], widths: tuple[int, ...] | None = None
) -> Float[np.ndarray, "T W"] | None:
    """Returns the array of one of the names, a row a frame.

    Raises UserError for two, or another shape.
    """
    found = [key for key in keys if key in arrays]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{path} holds {' and '.join(found)}, which mean the same; keep one of them")
    name, array = found[0], arrays[found[0]]
    if array.ndim >= 3 and array.shape[-2:] == (3, 3) and widths is not None and 3 in widths:
        array = _from_matrices(path, name, array.reshape(-1, 3, 3))
    if array.ndim == 3 and 1 in array.shape[:2]:
        array = array.reshape(-1, array.shape[-1])
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or 0 in array.shape or (widths is not None and array.shape[1] not in widths):
        width = "W" if widths is None else " or ".join(map(str, widths))
        raise UserError(f"{path}: {name} must be [T, {width}], got {list(arrays[name].shape)}")
    return finite(path, array, name)


def _from_matrices(path: Path, name: str, matrices: Float[np.ndarray, "T 3 3"]) -> Float[np.ndarray, "T 3"]:
    finite(path, matrices, name)
    try:
        return Rotation.from_matrix(matrices.astype(np.float64)).as_rotvec()
    except ValueError as error:
        raise UserError(f"{path}: {name} must hold rotation matrices ({one_line(error, 120)}); mend it") from None


def finite(path: Path, values: np.ndarray, name: str = "motion") -> np.ndarray:
    """Returns the array. Raises UserError, naming it, where it is not of finite floats."""
    # Integers are no motion: such a file is most likely another one than meant.
    limit = np.finfo(np.float32).max
    if values.dtype.kind != "f" or not np.isfinite(values).all() or np.abs(values).max(initial=0) > limit:
        raise UserError(
            f"{path} must hold finite floating numbers, {name} is {values.dtype} with NaN, infinity or integers"
        )
    return values


def _rate(path: Path, arrays: dict[str, np.ndarray], num_frames: int, fps: float | None) -> float:
    """Returns the rate of a file: `fps`, what the file says, or 25, which is then said."""
    found = file_rate(path, arrays, num_frames)
    if fps is not None:
        if found is not None and abs(found / fps - 1) > 0.01:
            log.warning("%s says %.6g frames a second; --fps %g is taken instead", path, found, fps)
        return fps
    if found is None:
        log.warning("%s names no frame rate and is taken to have %g frames a second; --fps says otherwise", path, FPS)
    return FPS if found is None else found


def file_rate(path: Path, arrays: dict[str, np.ndarray], num_frames: int) -> float | None:
    """Returns the frames a second that a file names or its times tell; None for neither."""
    named = next((key for key in RATE_KEYS if key in arrays), None)
    if named is not None:
        if arrays[named].dtype.kind not in "iuf" or arrays[named].size != 1:
            raise UserError(
                f"{path}: {named} must be one number, got {arrays[named].dtype} {list(arrays[named].shape)}"
            )
        return check_rate(float(arrays[named].reshape(())), f"{path}: {named}")
    times = next((key for key in TIME_KEYS if key in arrays), None)
    if times is None:
        return None
    if arrays[times].dtype.kind not in "iuf" or arrays[times].shape != (num_frames,):
        raise UserError(f"{path}: {times} must be a second for each of {num_frames} frames, got {arrays[times].shape}")
    return check_rate(rate_of_times(arrays[times].astype(np.float64), f"{path}: {times}"), f"{path}: {times}")


def say_losses(path: Path, lost: dict[str, np.ndarray], unread: list[str] | None = None) -> None:
    """Says in one line what has no room: values by name with the largest, arrays by name."""
    named = [
        f"{what} (up to {np.abs(values).max():.3g})" for what, values in lost.items() if values.size and values.any()
    ]
    if named or unread:
        log.warning("%s: left out are %s", path, ", ".join([*named, *(unread or [])]))


def _say(
    path: Path, names: list[str], arrays: dict[str, np.ndarray], lost: dict[str, np.ndarray], lacking: list[str]
) -> None:
    unread = []
    for name in names:
        if name not in arrays:
            try:
                unread.append(f"{_shown(name)} {list(read_npz_file(path, (name,))[name].shape)}")
            except UserError:  # what is not wanted may be anything, also what is never read
                unread.append(f"{_shown(name)} (no plain array)")
    say_losses(path, lost, unread)
    if lacking:
        log.warning("%s has no %s, which is zero", path, " and no ".join(lacking))


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:40])
