"""The arrays of a clip as motion of 108 channels at the tracker's own frames, and what is odd."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from data_pipelines.tracks.files import Arrays
from data_pipelines.tracks.mapping import Column, Mapping, rows_of
from data_pipelines.tracks.names import ROTATIONS
from data_pipelines.tracks.rotations import MAX_ANGLE, WIDTHS, compose, to_axis_angle
from unils_jax.errors import UserError
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW, MOTION_DIM

NOTED_ANGLE = 0.05  # rad; what has no channel is noted beyond it
# A frame that leaves both of its neighbours by more than this, and than 12 times the median, is
# noted as an outlier.
_OUTLYING = {"head": (HEAD, 0.35), "jaw": (JAW, 0.35), "expression": (EXPRESSION, 4.0)}
_OUTLYING_FACTOR = 12
_SHAPE_FRAMES = 12  # frames before and after, over which the shape of a face is averaged
_SHAPE_JUMP = 1.0  # standard deviations of FLAME's shape space, and 5 times its noise


class Clip(NamedTuple):
    """One person's motion at the frames of a tracker."""

    values: Float64[np.ndarray, "T 108"]  # NaN where a frame has no face
    valid: Bool[np.ndarray, " T"]
    observed: Bool[np.ndarray, " 108"]  # channels that the files have
    times: Float64[np.ndarray, " T"] | None  # seconds, where the file has them
    fps: float | None  # where the file has it
    notices: list[str]


def extract(arrays: Arrays, mapping: Mapping) -> Clip:
    """Returns the motion in a clip's arrays.

    Raises UserError, naming the array, where a part is of another shape than the mapping has, and
    where frames, angles or matrices cannot be.
    """
    parts = {part: _part(arrays, column) for part, column in mapping.parts.items() if column.key in arrays}
    face = {part: values for part, values in parts.items() if part in ("expression", *ROTATIONS)}
    notices = _lacking(mapping, arrays, face)
    num_frames = max(map(len, face.values()))
    short = {part: len(values) for part, values in face.items() if len(values) != num_frames}
    if short:
        told = ", ".join(f"{part} {count}" for part, count in short.items())
        raise UserError(f"its arrays must have as many frames, got {num_frames} and {told}; mend the file")
    motion, observed = np.zeros((num_frames, MOTION_DIM)), np.zeros(MOTION_DIM, bool)
    if "expression" in face:
        kept = min(face["expression"].shape[1], EXPRESSION.stop)
        motion[:, :kept], observed[:kept] = face["expression"][:, :kept], True
    _place_rotations(motion, observed, _vectors(face, mapping), notices)
    valid = np.isfinite(motion).all(axis=1) & _flagged_valid(parts.get("valid"), num_frames, notices)
    motion[~valid] = np.nan
    times, fps = _times(parts, num_frames)
    clip = Clip(motion, valid, observed, times, fps, notices)
    return clip._replace(notices=[*notices, *_outliers(clip), *_switches(arrays, mapping, num_frames)])


def _part(arrays: Arrays, column: Column) -> np.ndarray:
    array = arrays[column.key]
    if array is None or array.dtype.kind not in "biuf" or array.size == 0:
        raise UserError(f"{column.key} is no array of numbers; leave it out with --keys, or save it as floats")
    values = rows_of(array)[:, column.first : column.last].astype(np.float64)
    if column.last is not None and values.shape[1] != column.last - column.first:
        raise UserError(f"{column.key} must have at least {column.last} columns, got {list(array.shape)}")
    return values


def _lacking(mapping: Mapping, arrays: Arrays, face: dict[str, np.ndarray]) -> list[str]:
    """Returns a notice on the parts that this file lacks. Raises UserError where it lacks all."""
    if not face:
        held = ", ".join(list(arrays)[:8]) or "nothing"
        wanted = ", ".join(str(column) for part, column in mapping.parts.items() if part in ("expression", *ROTATIONS))
        raise UserError(f"it holds none of {wanted}, but {held}; convert files of one layout at a time")
    lacking = [part for part in mapping.parts if part in ("expression", *ROTATIONS) and part not in face]
    return [f"it has no {', '.join(lacking)}, marked as missing"] if lacking else []


def _vectors(face: dict[str, np.ndarray], mapping: Mapping) -> dict[str, np.ndarray]:
    """Returns the rotation vector `[T, 3]` of each part; both eyes by their own names."""
    rotations = {part: (values, mapping.parts[part].kind) for part, values in face.items() if part in ROTATIONS}
    if "eyes" in rotations:
        values, kind = rotations.pop("eyes")
        half = values.shape[1] // 2
        rotations = {"left_eye": (values[:, :half], kind), "right_eye": (values[:, half:], kind)} | rotations
    return {part: _vector(values, kind, part) for part, (values, kind) in rotations.items()}


def _vector(values: np.ndarray, kind: str, part: str) -> np.ndarray:
    degrees = kind.endswith("-degrees") and kind.startswith("angle")
    if kind.startswith("angle"):
        padded = np.zeros((len(values), 3))
        padded[:, : values.shape[1]] = values
        vectors = np.deg2rad(padded) if degrees else padded
    elif values.shape[1] != WIDTHS[kind]:
        raise UserError(f"{part} must be of kind {kind} with {WIDTHS[kind]} values, got {values.shape[1]}")
    else:
        vectors = to_axis_angle(values, kind, part)
    largest = np.nanmax(np.abs(vectors), initial=0)
    if largest > 1.01 * MAX_ANGLE:
        hint = "these may be degrees, which --rotations degrees reads" if "degrees" not in kind else "mend the file"
        raise UserError(f"{part} turns by up to {largest:.4g} rad, at most a full turn is a rotation; {hint}")
    return vectors


def _place_rotations(
    motion: np.ndarray, observed: np.ndarray, vectors: dict[str, np.ndarray], notices: list[str]
) -> None:
    """Puts rotations into their channels, the neck with the head, and notes what has no channel."""
    if "neck" in vectors:
        neck = vectors.pop("neck")
        turns = neck.any() and "head" in vectors
        vectors["head"] = compose(vectors["head"], neck) if turns else vectors.get("head", neck)
    if "head" in vectors:
        motion[:, HEAD], observed[HEAD] = vectors["head"], True
    if "jaw" in vectors:
        motion[:, JAW], observed[JAW] = vectors["jaw"][:, :1], True
    for first, part in ((EYES.start, "left_eye"), (EYES.start + 2, "right_eye")):
        if part in vectors:
            motion[:, first : first + 2], observed[first : first + 2] = vectors[part][:, :2], True
    lost = {"the jaw turns sideways": ("jaw", slice(1, 3))}
    lost |= {f"the {part.replace('_', ' ')} rolls": (part, slice(2, 3)) for part in ("left_eye", "right_eye")}
    for what, (part, rest) in lost.items():
        largest = np.nanmax(np.abs(vectors[part][:, rest]), initial=0) if part in vectors else 0.0
        if largest > NOTED_ANGLE:
            notices.append(f"{what} by up to {largest:.2f} rad, which is left out")


def _flagged_valid(flags: np.ndarray | None, num_frames: int, notices: list[str]) -> Bool[np.ndarray, " T"]:
    if flags is None:
        return np.ones(num_frames, bool)
    if flags.shape != (num_frames, 1):
        notices.append(f"its flags of valid frames are {list(flags.shape)} and not one a frame; they are ignored")
        return np.ones(num_frames, bool)
    return flags[:, 0] > 0.5  # False for NaN, too


def _times(parts: dict[str, np.ndarray], num_frames: int) -> tuple[np.ndarray | None, float | None]:
    rate = parts.get("fps")
    fps = None
    if rate is not None:
        rates = np.unique(rate[np.isfinite(rate)])  # a file a frame may repeat it
        if len(rates) != 1 or not 1 <= rates[0] <= 1000:
            raise UserError(f"its rate must be one number from 1 to 1000 frames a second, got {rates[:3].tolist()}")
        fps = float(rates[0])
    times = parts.get("times")
    if times is None:
        return None, fps
    if times.shape != (num_frames, 1):
        raise UserError(f"its times must be a second for each of {num_frames} frames, got {list(times.shape)}")
    seconds = times[:, 0].copy()
    known = np.isfinite(seconds)
    if known.sum() < 2 or (np.diff(seconds[known]) <= 0).any() or seconds[known][0] < 0:
        raise UserError("its times must be seconds that grow from frame to frame, from 0 on; mend the file")
    seconds[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), seconds[known])
    return seconds, fps


def _outliers(clip: Clip) -> list[str]:
    """Reports frames that leave both of their neighbours; they are kept."""
    notices = []
    for name, (channels, floor) in _OUTLYING.items():
        values = clip.values[:, channels]
        if len(values) < 3 or not clip.observed[channels].any():
            continue
        away = np.linalg.norm(values[1:-1] - (values[:-2] + values[2:]) / 2, axis=1)
        usual = np.nanmedian(away) if np.isfinite(away).any() else 0.0
        found = np.flatnonzero(away > max(floor, _OUTLYING_FACTOR * usual)) + 1
        # The neighbours of an outlier leave theirs by half as much.
        peaks = [i for i in found if away[i - 1] >= np.nanmax(away[max(i - 2, 0) : i + 1])]
        if peaks:
            notices.append(
                f"{len(peaks)} frames of the {name} are outliers and kept, the first frame {peaks[0]} "
                f"(by {away[peaks[0] - 1]:.2g})"
            )
    return notices


def _switches(arrays: Arrays, mapping: Mapping, num_frames: int) -> list[str]:
    """Reports where the tracker may have gone over to another face."""
    at: list[int] = []
    track = _rows(arrays, mapping, "track")
    if track is not None and len(track) == num_frames:
        at += (np.flatnonzero((track[1:] != track[:-1]).any(axis=1)) + 1).tolist()
    shape = _rows(arrays, mapping, "shape")
    if shape is not None and len(shape) == num_frames and shape.dtype.kind == "f":
        at += _jumps(np.nan_to_num(shape.astype(np.float64)))
    if not at:
        return []
    listed = ", ".join(map(str, sorted(set(at))[:5]))
    return [f"the face may be another person's from frame {listed} on (the track or the shape changes)"]


def _rows(arrays: Arrays, mapping: Mapping, part: str) -> np.ndarray | None:
    array = arrays.get(mapping.parts[part].key) if part in mapping.parts else None
    return None if array is None or array.ndim == 0 else rows_of(array)


def _jumps(shape: Float[np.ndarray, "T W"]) -> list[int]:
    """Returns the frames at which the mean shape of the frames after leaves that before."""
    span = _SHAPE_FRAMES
    if len(shape) < 2 * span:
        return []
    sums = np.concatenate([np.zeros((1, shape.shape[1])), np.cumsum(shape, axis=0)])
    means = (sums[span:] - sums[:-span]) / span
    jump = np.linalg.norm(means[span:] - means[:-span], axis=1)
    noise = np.median(np.linalg.norm(np.diff(shape, axis=0), axis=1))
    high = jump > max(_SHAPE_JUMP, 5 * noise)
    peaks = [i for i in np.flatnonzero(high) if jump[i] == jump[max(i - span, 0) : i + span + 1].max()]
    return [int(i) + span for i in peaks]
