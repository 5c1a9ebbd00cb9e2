"""Which array of a tracker's files is which part of the face, found out once for a whole folder."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.tracks.files import Arrays
from data_pipelines.tracks.names import IGNORED, KEYS, LAYOUTS, ROTATIONS
from data_pipelines.tracks.rotations import MAX_ANGLE, WIDTHS, quaternion_order
from unils_jax.errors import UserError
from unils_jax.files import markdown_table
from unils_jax.motion import EXPRESSION

# Values of a pose with so many axis-angles: the parts that they are.
_POSES = {1: ("head",), 2: ("head", "jaw"), 5: ("head", "neck", "jaw", "left_eye", "right_eye")}
_KINDS = {4: "quaternion-wxyz", 6: "6d", 9: "matrix", 3: "axis-angle", 1: "angle", 2: "angles"}
_EYES = {4: "angles", 6: "axis-angle", 8: "quaternion-wxyz", 12: "6d", 18: "matrix"}
_FLAG = re.compile(r"(\w+)=([^\[\]=]+)(?:\[(\d+):(\d+)\])?")


class Column(NamedTuple):
    """Where a part is: an array's name, its columns, and the kind of a rotation."""

    key: str
    first: int = 0
    last: int | None = None  # None: all columns
    kind: str = ""  # of rotations; "": no rotation, or to be found out by the width

    def __str__(self) -> str:
        return self.key + (f"[{self.first}:{self.last}]" if self.last is not None else "")


@dataclass(frozen=True)
class Mapping:
    """The parts of the face and where they are; the lines say what was found and why."""

    parts: dict[str, Column]
    layout: str  # a name of `LAYOUTS`, or "general"
    rows: tuple[tuple[str, ...], ...]  # part, array, what became of it
    problems: tuple[str, ...] = ()  # what flags have to decide before anything is converted

    def table(self) -> str:
        """Returns the lines as a table in Markdown."""
        return "\n".join(markdown_table([("part", "array", "taken as"), *self.rows]))


def parse_keys(text: str) -> dict[str, Column]:
    """Reads `--keys`, like "expression=exp,jaw=pose[3:6]". Raises UserError for other text."""
    parts = {}
    for item in filter(None, text.split(",")):
        found = _FLAG.fullmatch(item.strip())
        if not found or found[1] not in KEYS or found[1] == "pose":
            names = ", ".join(name for name in KEYS if name != "pose")
            raise UserError(f"--keys must be PART=NAME or PART=NAME[A:B] with parts {names}, got {item!r}")
        first, last = int(found[3] or 0), None if found[4] is None else int(found[4])
        if last is not None and last <= first:
            raise UserError(f"--keys must name columns A to B-1 with B above A, got {item!r}")
        parts[found[1]] = Column(found[2].strip(), first, last)
    return parts


def parse_rotations(text: str) -> dict[str, str]:
    """Reads `--rotations`: a kind for all parts, or "head=6d,jaw=degrees". Raises UserError."""
    kinds = {}
    for item in filter(None, text.split(",")):
        part, equals, kind = item.strip().partition("=")
        kind = kind if equals else part
        if kind not in WIDTHS or (equals and part not in ROTATIONS):
            raise UserError(
                f"--rotations must be KIND or PART=KIND of {', '.join(WIDTHS)} for {', '.join(ROTATIONS)}, got {item!r}"
            )
        kinds |= {part: kind} if equals else dict.fromkeys(ROTATIONS, kind)
    return kinds


def rows_of(array: np.ndarray) -> np.ndarray:
    """Returns `[T, W]`: a row a frame, matrices as nine values each."""
    if array.ndim == 0:
        return array.reshape(1, 1)
    if array.ndim > 2 and array.shape[0] == 1 and array.shape[1] > 1 and array.shape[1:] != (3, 3):
        array = array[0]  # a batch of one clip
    return array.reshape(len(array), math.prod(array.shape[1:]))


def find_mapping(samples: Sequence[Arrays], layout: str, keys: dict[str, Column], kinds: dict[str, str]) -> Mapping:
    """Finds the parts in the arrays of some clips of a folder.

    Args:
        samples: Arrays of clips; the same mapping must do for all of them.
        layout: A name of `LAYOUTS`, or "auto".
        keys: Parts that flags name; they are taken instead of what is found.
        kinds: Kinds of rotations that flags name, by part.
    """
    arrays = {name: array for sample in reversed(samples) for name, array in sample.items()}
    named = _layout_of(arrays, layout)
    parts, problems = {}, []
    for part in KEYS:
        if part in keys:
            parts[part] = keys[part]
            continue
        found = _found(arrays, part, named)
        if len(found) > 1:
            problems.append(f"{' and '.join(found)} may each be the {part}; name one, like --keys {part}={found[0]}")
        if found:
            parts[part] = Column(found[0], kind=LAYOUTS[named].kinds.get(part, "") if named in LAYOUTS else "")
    problems += [
        f"--keys names {column.key}, which no file has" for column in keys.values() if column.key not in arrays
    ]
    parts = _without_pose(parts, arrays, problems)
    parts, lines = _with_kinds(parts, samples, kinds, problems)
    if "expression" not in parts and not any(part in parts for part in ROTATIONS):
        problems.append("no array has a name of the face; name them, like --keys expression=NAME,head=NAME,jaw=NAME")
    how = "named by --layout" if layout != "auto" else "found out by the names of the arrays"
    rows = (("layout", named, how), *_table(parts, arrays, lines))
    return Mapping(parts, named, rows, tuple(problems))


def _layout_of(arrays: Arrays, layout: str) -> str:
    if layout != "auto":
        return layout
    fits = (
        name for name, known in LAYOUTS.items() if all(_ends_with(arrays, known.keys[part]) for part in known.needed)
    )
    return next(fits, "general")


def _ends_with(arrays: Arrays, key: str) -> list[str]:
    key = key.lower()
    return [name for name in arrays if name.lower() == key or name.lower().endswith(f"/{key}")]


def _found(arrays: Arrays, part: str, layout: str) -> list[str]:
    if layout in LAYOUTS and part in LAYOUTS[layout].keys:
        return _ends_with(arrays, LAYOUTS[layout].keys[part])
    if layout in LAYOUTS and part in ("expression", "pose", *ROTATIONS):
        return []
    return [name for key in KEYS[part] for name in _ends_with(arrays, key)]


def _without_pose(parts: dict[str, Column], arrays: Arrays, problems: list[str]) -> dict[str, Column]:
    """Replaces a pose of several rotations by its parts; arrays of a part alone come first."""
    pose = parts.pop("pose", None)
    array = None if pose is None else arrays[pose.key]
    if array is None:
        return parts
    width = rows_of(array).shape[1]
    size = 9 if array.shape[-2:] == (3, 3) and array.ndim > 2 else 3
    if width % size or width // size not in _POSES:
        problems.append(f"{pose.key} {list(array.shape)} is no pose of 3, 6 or 15; name its columns with --keys")
        return parts
    names = _POSES[width // size]
    cut = {part: Column(pose.key, size * i, size * (i + 1)) for i, part in enumerate(names)}
    if "eyes" in parts:
        cut = {part: column for part, column in cut.items() if not part.endswith("_eye")}
    return cut | parts


def _with_kinds(
    parts: dict[str, Column], samples: Sequence[Arrays], flags: dict[str, str], problems: list[str]
) -> tuple[dict[str, Column], dict[str, str]]:
    """Returns the parts with the kinds of their rotations, and what is said of each."""
    found, lines = dict(parts), {}
    turned = {}
    for part in ROTATIONS:
        values = _values(parts.get(part), samples)
        if values is None:
            continue
        kind = flags.get(part) or parts[part].kind or _kind(part, values)
        if kind == "camera" and values.shape[1] == WIDTHS["camera-6d"]:
            kind = "camera-6d"
        if not _fits(part, kind, values.shape[1]):
            got = f"{parts[part]} has {values.shape[1]} values a frame"
            if part not in ("head", "jaw") and part not in flags:
                # A direction of gaze, for one, is no rotation of two eyes.
                lines[found.pop(part).key] = f"{values.shape[1]} values a frame are no rotation of the {part}"
                continue
            problems.append(f"{got}, which is no {part} of kind {kind or 'known'}; --keys and --rotations name it")
        found[part] = parts[part]._replace(kind=kind)
        largest = np.nanmax(np.abs(values), initial=0)
        turned[part] = float(largest)
    # A tracker that writes degrees does so for all parts; a still jaw does not show it by itself.
    angles = [part for part in turned if found[part].kind in ("axis-angle", "angle", "angles")]
    if any(turned[part] > MAX_ANGLE for part in angles) and not flags:
        for part in angles:
            degrees = {"axis-angle": "degrees", "angle": "angle-degrees", "angles": "angles-degrees"}
            found[part] = found[part]._replace(kind=degrees[found[part].kind])
    for part in turned:
        lines[part] = f"{found[part].kind}, up to {turned[part]:.3g}"
    return found, lines


def _fits(part: str, kind: str, width: int) -> bool:
    if kind == "angle":
        return part == "jaw"
    if kind == "angles":
        return part.endswith(("eye", "eyes"))
    return width == (2 if part == "eyes" else 1) * WIDTHS.get(kind, 0)


def _kind(part: str, values: np.ndarray) -> str:
    kind = (_EYES if part == "eyes" else _KINDS).get(values.shape[1], "")
    return quaternion_order(values[:, :4]) if kind.startswith("quaternion") else kind


def _values(column: Column | None, samples: Sequence[Arrays]) -> np.ndarray | None:
    """Returns the values of a part in all samples, up to a flag's columns."""
    arrays = [] if column is None else [sample.get(column.key) for sample in samples]
    rows = [rows_of(array)[:, column.first : column.last] for array in arrays if _is_numbers(array)]
    rows = [values for values in rows if values.shape[1] == rows[0].shape[1] and values.size]
    return np.concatenate(rows).astype(np.float64) if rows else None


def _is_numbers(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype.kind in "biuf" and array.size > 0


def _table(parts: dict[str, Column], arrays: Arrays, lines: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for part in ("expression", *ROTATIONS, "fps", "times", "valid", "track", "shape"):
        if part in parts:
            column = parts[part]
            array = arrays.get(column.key)
            shape = "" if array is None else f" {list(array.shape)}"
            rows.append((part, f"{column}{shape}", lines.get(part) or _said(part, array)))
        elif part in ("expression", "head", "jaw") or (part == "eyes" and "left_eye" not in parts):
            rows.append((part, "missing", "marked as missing: losses and metrics leave it out"))
    used = {column.key for column in parts.values()}
    for name, array in arrays.items():
        if name not in used:
            why = IGNORED.get(name.rpartition("/")[2].lower(), "no part of the face has this name")
            shape = "" if array is None else f" {list(array.shape)}"
            why = lines.get(name, why) if array is not None else "no plain array of numbers"
            rows.append(("-", f"{name}{shape}", f"ignored: {why}"))
    return tuple(rows)


def _said(part: str, array: np.ndarray | None) -> str:
    if part == "expression" and array is not None:
        width = rows_of(array).shape[1]
        room = EXPRESSION.stop
        more = f"; {width - room} beyond {room} are left out" if width > room else ""
        lacking = f"; channels {width} to {room - 1} are marked as missing" if width < room else ""
        return f"{min(width, room)} coefficients{more}{lacking}"
    said = {
        "fps": "frames a second",
        "times": "seconds of the frames",
        "valid": "frames with a face (above 0.5)",
        "track": "a change is reported as a switch of faces",
    }
    return said.get(part, "not kept; a jump is reported as a switch of faces")
