"""The arrays of one clip of a tracker: one file, a file a frame, or a folder of arrays.

Files are untrusted. Nothing of a pickle runs; sizes are checked before memory is taken.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unils_jax.errors import UserError, one_line, shown
from unils_jax.files import npz_names, read_npy_file, read_npz_file
from unils_jax.pickles.arrays import NUMPY_GLOBALS, unwrap
from unils_jax.pickles.restricted import restricted_load
from unils_jax.pickles.torch_zip import open_archive, with_arrays
from unils_jax.pickles.tree import expanded

SUFFIXES = ("npz", "npy", "pkl", "pickle", "json", "pt", "frame")
MAX_JSON_BYTES = 64 << 20  # whose numbers take twenty times as much memory
MAX_PICKLE_BYTES = 256 << 20
MAX_VALUES = 1 << 27  # of an array that is joined from frames
MAX_FRAMES = 1_000_000  # of a folder with a file for each
MAX_DEPTH = 4  # of dicts inside dicts
# The arrays of a clip by name; a path of names where dicts are inside dicts. None: unreadable.
Arrays = dict[str, np.ndarray | None]


def read_clip(path: Path) -> Arrays:
    """Reads a clip: a file, or a folder of frames or of arrays. Raises UserError for a bad one."""
    if not path.is_dir():
        return _per_clip(_read_file(path))
    parts = sorted(path.iterdir(), key=_natural)
    files = [p for p in parts if p.is_file() and p.suffix[1:].lower() in SUFFIXES]
    folders = [p for p in parts if p.is_dir()]
    if files and all(_number(p) is not None for p in files):
        return _stacked(files, path)
    if folders and not files:
        return _stacked(folders, path)
    if not files:
        raise UserError(f"{path} holds no file of a tracker ({', '.join(SUFFIXES)}); check the folder")
    return _one_folder(files)


def _one_folder(files: Sequence[Path]) -> Arrays:
    """Reads a folder with one array a file, named by the file."""
    arrays: Arrays = {}
    for file in files:
        read = _read_file(file)
        arrays |= {file.stem: read[""]} if set(read) == {""} else read
    return arrays


def _stacked(frames: Sequence[Path], folder: Path) -> Arrays:
    """Stacks a file or a folder for each frame; frames whose numbers are missing are NaN."""
    if len(frames) > MAX_FRAMES:
        raise UserError(f"{folder} holds {len(frames)} frames, at most {MAX_FRAMES} are read; cut the clip")
    numbers = [_number(frame) for frame in frames]
    if None in numbers or len(set(numbers)) != len(numbers):
        raise UserError(f"{folder} must name its frames by different numbers; rename them")
    read = [_one_folder(_files_in(frame)) if frame.is_dir() else _read_file(frame) for frame in frames]
    # Frames count from 0 or 1: where the first ones are missing, sound and motion begin apart.
    places = np.array(numbers) - min(numbers[0], 1)
    if places[-1] >= MAX_FRAMES:
        raise UserError(f"{folder} numbers its frames up to {numbers[-1]}, too far apart; check the names")
    return _joined(read, places, int(places[-1]) + 1)


def _files_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix[1:].lower() in SUFFIXES]


def _joined(read: Sequence[Arrays], places: np.ndarray, count: int) -> Arrays:
    """Joins the arrays of frames at their places; a name needs the same shape in all frames."""
    joined: Arrays = {}
    for name in dict.fromkeys(name for arrays in read for name in arrays):
        rows = [arrays.get(name) for arrays in read]
        kept = [i for i, row in enumerate(rows) if row is not None and row.dtype.kind in "biuf"]
        shapes = {rows[i].shape for i in kept}
        if len(shapes) != 1 or count * rows[kept[0]].size > MAX_VALUES:
            joined[name] = None
            continue
        joined[name] = np.full((count, *shapes.pop()), np.nan, np.float64)
        joined[name][places[kept]] = np.stack([rows[i] for i in kept])
    return joined


def _natural(path: Path) -> tuple[int, str]:
    number = _number(path)
    return (-1 if number is None else number, path.name)


def _number(path: Path) -> int | None:
    """Returns the last number in a name, as of `frame_000123.npz`."""
    found = re.findall(r"\d{1,9}", path.stem if path.suffix else path.name)
    return int(found[-1]) if found else None


def _read_file(path: Path) -> Arrays:
    suffix = path.suffix[1:].lower()
    if suffix == "npz":
        return {name: _plain(path, name) for name in npz_names(path)}
    if suffix == "npy":
        return {"": read_npy_file(path)}
    if suffix in ("pt", "frame"):
        with open_archive(path) as archive:
            return _flat(with_arrays(archive, archive.load(NUMPY_GLOBALS)))
    return _flat(read_json(path) if suffix == "json" else _read_pickle(path))


def _plain(path: Path, name: str) -> np.ndarray | None:
    try:
        return read_npz_file(path, (name,)).get(name)
    except UserError as error:
        # An array of objects may be next to those that are wanted; damage is not passed over.
        if "pickled objects" in str(error):
            return None
        raise


def read_json(path: Path) -> object:
    """Reads JSON of bounded size. Raises UserError, naming the file, where it cannot be read."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} has over {MAX_JSON_BYTES} bytes, the limit of JSON; save it as .npz")
        return json.loads(path.read_bytes())
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON that can be read ({one_line(error, 120)}); get a fresh copy") from None


def _read_pickle(path: Path) -> object:
    try:
        with open(path, "rb") as file:
            return expanded(restricted_load(file, NUMPY_GLOBALS, name=str(path), max_bytes=MAX_PICKLE_BYTES), unwrap)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None


def _per_clip(arrays: Arrays) -> Arrays:
    """Calls the single array of a .npy "array", because its file gives it no name."""
    return {"array": arrays[""]} if set(arrays) == {""} else arrays


def _flat(value: object) -> Arrays:
    """Returns the arrays of dicts inside dicts, and of a list with a dict for each frame."""
    value = unwrap(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
        if len(value) > MAX_FRAMES:
            raise UserError(f"a list of {len(value)} frames is too long, at most {MAX_FRAMES} are read")
        return _joined([_flat(item) for item in value], np.arange(len(value)), len(value))
    if not isinstance(value, dict):
        return {"": _array(value)}
    flat: Arrays = {}
    _fill(flat, value, "", MAX_DEPTH)
    return flat


def _fill(flat: Arrays, values: Mapping, prefix: str, depth: int) -> None:
    for key, item in values.items():
        name = f"{prefix}{shown(str(key))[:60]}"
        if isinstance(item, dict) and depth:
            _fill(flat, item, f"{name}/", depth - 1)
        else:
            flat[name] = _array(item)


def _array(value: object) -> np.ndarray | None:
    """Returns an array of numbers or text; None of anything else and of ragged lists."""
    value = unwrap(value)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # null in JSON is a frame without tracking
            array = array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.dtype.kind in "biufU" else None
