"""Files of annotations that are not our motion, and the neutral faces they are relative to.

An .npz holds `vertices [P, T, V, 3]`, `weights [P, T, n]`, `parameters [P, T, D]` or, of an
annotation that is not published, `numbers [P, T, D]`; with `kind`, `fps`, `units` and `source`
(JSON).
"""

import json
import logging
import os
from typing import Any

import numpy as np
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.files import atomic_output, read_npy_file
from unils_jax.systems.registry import form_of

log = logging.getLogger(__name__)


def save_annotation(
    path: str | os.PathLike, values: Float[np.ndarray, "P T D"], annotation: str, fps: float, source: dict[str, Any]
) -> None:
    """Writes an annotation's values with what they are; the file appears whole."""
    name, units = form_of(annotation)
    if name == "vertices":
        values = values.reshape(*values.shape[:2], -1, 3)
    text = {"kind": annotation, "units": units, "source": json.dumps(source, sort_keys=True)}
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, **{name: values}, fps=np.float64(fps), **{key: np.array(value) for key, value in text.items()})


def read_template(path: str | os.PathLike | None, annotation: str, dim: int) -> Float[np.ndarray, " D"] | None:
    """Reads the neutral face of an annotation of so many values, scaled as in training.

    None stays None, with a warning where the annotation is of vertices. Raises UserError where the
    file does not fit.
    """
    if path is None:
        if form_of(annotation)[0] == "vertices":
            log.warning("no --template: the vertices are displacements from a neutral face")
        return None
    array = read_npy_file(path)
    if array.size != dim or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"--template {path} must hold {dim} finite numbers, as {annotation} has, got {found}")
    return array.reshape(-1).astype(np.float32)
