"""Reads the licensed file of a FLAME model without executing anything in it."""

import functools
import json
import os
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Int

from unils_jax.errors import UserError, one_line
from unils_jax.face.flame import (
    NUM_EXPRESSION,
    NUM_FACES,
    NUM_IDENTITY,
    NUM_POSE,
    NUM_VERTICES,
    PARENTS,
    FlameAsset,
    Skinning,
    fold,
)
from unils_jax.files import read_npz_file
from unils_jax.pickles.arrays import NUMPY_GLOBALS, unwrap
from unils_jax.pickles.restricted import Inert, restricted_load

MAX_FILE_BYTES = 256 << 20  # the published file holds 55 MB


class _Chumpy(Inert):
    """A chumpy object; one that holds its values (`x`) becomes an array, others are dropped."""

    __slots__ = ()


class _Sparse(Inert):
    """SciPy's csc matrix, with `data`, `indices`, `indptr` and the shape in its state."""

    __slots__ = ()


_ALLOWED: dict[tuple[str, str], object] = {
    **NUMPY_GLOBALS,
    ("chumpy.ch", "Ch"): _Chumpy,
    ("chumpy.ch", "MatVecMult"): _Chumpy,
    ("chumpy.reordering", "Select"): _Chumpy,
    ("chumpy.reordering", "transpose"): _Chumpy,
    **{(f"scipy.sparse.{module}", "csc_matrix"): _Sparse for module in ("csc", "_csc")},
    # chumpy keeps a set in its state, of no use here.
    **{(module, "set"): Inert for module in ("__builtin__", "builtins")},
}

_SHAPES = {
    "v_template": (NUM_VERTICES, 3),
    "shapedirs": (NUM_VERTICES, 3, NUM_IDENTITY + NUM_EXPRESSION),
    "posedirs": (NUM_VERTICES, 3, NUM_POSE),
    "J_regressor": (5, NUM_VERTICES),
    "weights": (NUM_VERTICES, 5),
    "f": (NUM_FACES, 3),
    "kintree_table": (2, 5),
}


def load_flame(path: str | os.PathLike) -> FlameAsset:
    """Reads `generic_model.pkl` of FLAME 2020, or an .npz of the same names, without chumpy.

    In an .npz `J_regressor` is dense. Nothing in the pickle is executed. The lip and upper-face
    lists come with the package. Raises UserError for a missing, damaged, hostile or oversized file
    and, all at once, for every array of a wrong shape or range.
    """
    arrays = _read_flame(Path(path))
    regions = flame_regions()
    return FlameAsset(
        v_template=_float32(arrays["v_template"]),
        expression_basis=_float32(arrays["shapedirs"][:, :, NUM_IDENTITY:]),
        posedirs=_float32(arrays["posedirs"]),
        j_regressor=_float32(arrays["J_regressor"]),
        weights=_float32(arrays["weights"]),
        faces=arrays["f"].astype(np.int32),
        lips=regions["lips"],
        upper_face=regions["upper_face"],
        name="flame",
    )


def load_parameter_head(path: str | os.PathLike) -> Skinning:
    """Reads the same file for `parameter_vertices`, which takes 300 + 100 coefficients."""
    arrays = _read_flame(Path(path))
    return fold(*(_float32(arrays[n]) for n in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")))


def _read_flame(path: Path) -> dict[str, np.ndarray]:
    """Returns the file's arrays by name. Raises UserError where one is missing or wrong."""
    if not path.is_file():
        raise UserError(
            f"FLAME file {path} does not exist; get generic_model.pkl of FLAME 2020 from flame.is.tue.mpg.de"
        )
    arrays = _read_npz(path) if zipfile.is_zipfile(path) else _read_pickle(path)
    _check(path, arrays)
    return arrays


@functools.cache
def flame_regions() -> dict[str, Int[np.ndarray, " n"]]:
    """Returns lists of vertices on FLAME's topology by the name of the region.

    The regions are `lips`, `upper_face` (repeats count), `lips_core`, `upper_lip` and `lower_lip`.
    Source: ARTalk (MIT; see THIRD_PARTY.md).
    """
    text = resources.files("unils_jax.face").joinpath("flame_regions.json").read_text()
    return {name: np.asarray(indices, np.int32) for name, indices in json.loads(text).items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise UserError(
                f"{path} unpacks to {size} bytes, over the limit of {MAX_FILE_BYTES}; use FLAME 2020's arrays"
            )
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not an .npz of FLAME's arrays ({one_line(error)}); get a fresh copy") from None
    return read_npz_file(path, tuple(_SHAPES))


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            content = restricted_load(file, _ALLOWED, name=f"FLAME file {path}", max_bytes=MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"FLAME file {path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"FLAME file {path} must hold a dict, got {type(content).__name__}; use generic_model.pkl")
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    return {name: _as_array(named[name]) for name in _SHAPES if name in named}


def _as_array(value: object) -> object:
    """Returns the array in what the pickle holds under one name; None where there is none."""
    if isinstance(value, _Chumpy):
        value = value.state.get("x") if isinstance(value.state, dict) else None
    if isinstance(value, _Sparse):
        return _dense(value.state)
    return unwrap(value)


def _dense(state: object) -> np.ndarray | None:
    """Returns the csc matrix of the joint regressor as a dense array; None where it is wrong."""
    state = state if isinstance(state, dict) else {}
    data, indices, indptr = (unwrap(state.get(name)) for name in ("data", "indices", "indptr"))
    parts = all(isinstance(part, np.ndarray) and part.ndim == 1 for part in (data, indices, indptr))
    rows, columns = _SHAPES["J_regressor"]
    if not parts or state.get("_shape", state.get("shape")) != (rows, columns) or data.size != indices.size:
        return None
    if indptr.size != columns + 1 or indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        return None
    counts = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or (counts < 0).any() or indptr[-1] != data.size:
        return None
    if data.size and not (0 <= indices.min() and indices.max() < rows):
        return None
    dense = np.zeros((rows, columns))
    np.add.at(dense, (indices, np.repeat(np.arange(columns), counts)), data.astype(np.float64))
    return dense


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises one UserError that names every array that is missing, misshapen or out of range."""
    problems = []
    for name, shape in _SHAPES.items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray):
            problems.append(f"{name} is missing or no array")
        elif array.shape != shape or array.dtype.kind not in "iuf":
            problems.append(f"{name} must be numbers {list(shape)}, got {array.dtype} {list(array.shape)}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds NaN or infinite values")
        elif name == "f" and not (array.min() >= 0 and array.max() < NUM_VERTICES):
            problems.append(f"f must name vertices 0 to {NUM_VERTICES - 1}, got {array.min()} to {array.max()}")
        elif name == "kintree_table" and tuple(int(p) for p in array[0][1:]) != PARENTS[1:]:
            problems.append(f"kintree_table must have the parents {list(PARENTS)}")
    if problems:
        raise UserError(f"{path} is not FLAME 2020's generic_model: " + "; ".join(problems))
