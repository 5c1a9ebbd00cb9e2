"""The PCA of a large annotation, as UniTalker makes its `pca.npz`: scikit-learn's incremental one.

Its rows are the displacements from the subject's template, of every training frame. It needs the
extra `pca`.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from data_pipelines.sources.unitalker import TalkerSet
from data_pipelines.speech_loader import SetSpeech
from unils_jax.errors import UserError, install_hint
from unils_jax.files import atomic_output

CHUNK_ROWS = 1024


def fit_pca(
    rows: Float32[np.ndarray, "R D"], num_components: int, batch_size: int, order: Int[np.ndarray, " R"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Computes the arrays of a `pca.npz` from displacements, which are centred in place.

    It is fitted on full batches in the given order; rows left over at the end are not used. Raises
    UserError where scikit-learn is missing and for sizes that do not fit: a batch must hold as many
    rows as there are components.
    """
    try:
        from sklearn.decomposition import IncrementalPCA  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UserError(f"a PCA is fitted by scikit-learn: {install_hint('pca')}") from None
    if not 1 <= num_components <= min(batch_size, rows.shape[1]) or len(rows) < batch_size:
        raise UserError(
            f"num_components must be from 1 to the batch's {batch_size} rows and {rows.shape[1]} numbers of a row, and "
            f"a batch must be full, got {num_components} components of {len(rows)} rows; use smaller batches or fewer "
            "components"
        )
    mean = rows.mean(axis=0)
    for first in range(0, len(rows), CHUNK_ROWS):
        rows[first : first + CHUNK_ROWS] -= mean
    pca = IncrementalPCA(num_components)
    for first in range(0, len(rows) - batch_size + 1, batch_size):
        pca.partial_fit(rows[order[first : first + batch_size]])
    coefficients = np.concatenate(
        [pca.transform(rows[first : first + CHUNK_ROWS]) for first in range(0, len(rows), CHUNK_ROWS)]
    )
    return {
        "explained_variance_ratio": pca.explained_variance_ratio_,
        "components_to_data": pca.components_,
        "original_data_mean": mean,
        "S": pca.singular_values_,
        "data_components_mean": coefficients.mean(axis=0),
        "data_components_std": coefficients.std(axis=0),
    }


def write_pca(path: str | os.PathLike, one: TalkerSet, num_components: int, batch_size: int, seed: int) -> int:
    """Fits the PCA of a set's training split and writes it; returns the number of frames.

    Meanwhile frames are kept in a temporary file in the folder of `path`. Records under 0.5 s are
    left out, as in training. Raises UserError as `fit_pca` does, and where a record cannot be read.

    Args:
        path: The file that is written.
        one: The set.
        num_components: At most the rows of a batch and the numbers of a row.
        batch_size: Rows that are fitted at a time.
        seed: Decides the order of the rows.
    """
    source = SetSpeech([one], "train")
    items = list(source.items(0))
    if not items:
        raise UserError(f"{one.folder}: its training split holds no record of at least 0.5 s; a PCA needs frames")
    dim, count = items[0].dim, sum(item.frames for item in items)
    with tempfile.TemporaryDirectory(dir=Path(path).absolute().parent) as folder:
        rows = np.memmap(Path(folder) / "rows", np.float32, "w+", shape=(count, dim))
        at = 0
        for item in items:
            clip = source.read(item)
            rows[at : at + len(clip.motion)] = clip.motion - clip.template
            at += len(clip.motion)
        order = np.random.default_rng(seed).permutation(count)
        arrays = fit_pca(rows, num_components, batch_size, order)
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return count
