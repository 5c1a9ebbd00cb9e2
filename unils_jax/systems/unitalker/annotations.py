"""The spaces in which losses and metrics of annotations are measured: vertices of a face.

Source: UniTalker's paper and release. An annotation's numbers are vertices themselves, weights of
blendshapes, or parameters of a head model; a `VertexSpace` turns them into vertices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset, Skinning, parameter_vertices, vertices
from unils_jax.face.flame_file import load_parameter_head
from unils_jax.files import read_npy_file, read_npz_file

BLENDSHAPE_WEIGHT = 1e-4  # of the squared error of blendshape weights; that of the vertices has 1
PCA_WEIGHT = 0.01
TRAILING = 10  # of FLAME's parameters: rotation 6, translation 3, scale 1, which no loss uses
JAW_DIM = 3
# The release's annotations by how their numbers become vertices, and the file of lip vertices of
# each.
VERTEX_LISTS = {
    "BIWI_23370_vertices": "04_BIWI_mouth_idx.npy",
    "FLAME_5023_vertices": "02_flame_mouth_idx.npy",
    "meshtalk_6172_vertices": "06_mesh_talk_mouth_idx.npy",
}
BLENDSHAPES = {
    "3DETF_blendshape_weight": ("EmoTalk.npz", "03_emo_talk_mouth_idx.npy"),
    "inhouse_blendshape_weight": ("inhouse_arkit.npz", "05_inhouse_arkit_mouth_idx.npy"),
}
FLAME_PARAMETERS = "flame_params_from_dadhead"
# What the numbers of an annotation are, and their units as they were trained: the release's table
# of sets.
FORMS = {
    **dict(zip(VERTEX_LISTS, (("vertices", "0.2 of BIWI's"), ("vertices", "m"), ("vertices", "m")), strict=True)),
    **dict.fromkeys(BLENDSHAPES, ("weights", "of blendshapes, 1 is full")),
    FLAME_PARAMETERS: ("parameters", "coefficients, then radians (jaw 3)"),
}
FACE_LIST, FLAME_LIPS = "flame_humanface_index.npy", "02_flame_mouth_idx.npy"


@dataclass(frozen=True, eq=False)
class VertexSpace:
    """How an annotation's numbers become vertices, and which of them count.

    A space without vertices or lips has no lip errors.
    """

    vertices: Callable[[Array], Array] | None  # [B, T, D] -> [B, T, V, 3]
    lips: Int[np.ndarray, " n"] | None  # vertices that LVE and LVD compare
    measured: Int[np.ndarray, " m"] | None = None  # vertices that the loss compares; None: all; repeats count
    number_weight: float = 0.0  # of the squared error of the numbers


# Annotations without assets are compared by their numbers; of those that are vertices the loss is
# the release's anyway.
NUMBERS = VertexSpace(None, None, number_weight=1.0)


def vertex_space(lips: Int[np.ndarray, " n"]) -> VertexSpace:
    """Builds the space of numbers that are coordinates, vertex by vertex."""
    return VertexSpace(lambda x: x.reshape(*x.shape[:-1], -1, 3), lips)


def blendshape_space(
    mean: Float[np.ndarray, "V 3"], basis: Float[np.ndarray, "n V 3"], lips: Int[np.ndarray, " m"]
) -> VertexSpace:
    """Builds the space of blendshape weights: `mean + weights @ basis`."""
    flat = np.ascontiguousarray(basis.reshape(len(basis), -1), np.float32)
    offset = np.ascontiguousarray(mean.reshape(-1), np.float32)

    def of_weights(x: Array) -> Array:
        return (x @ flat + jnp.asarray(offset)[None, None]).reshape(*x.shape[:-1], -1, 3)

    return VertexSpace(of_weights, lips, number_weight=BLENDSHAPE_WEIGHT)


def parameter_space(head: Skinning, face: Int[np.ndarray, " n"], lips: Int[np.ndarray, " m"]) -> VertexSpace:
    """Builds the space of D5's FLAME parameters.

    They are expression coefficients, jaw (3), and 10 values that no loss uses.
    """

    def of_parameters(x: Array) -> Array:
        coefficients, jaw = x[..., : -TRAILING - JAW_DIM], x[..., -TRAILING - JAW_DIM : -TRAILING]
        return parameter_vertices(head, coefficients, jaw)

    return VertexSpace(of_parameters, lips, measured=face)


def motion_space(head: FlameAsset) -> VertexSpace:
    """Builds the space of this project's 108 motion channels at 25 fps.

    It compares the head's vertices without head rotation, and all channels by their squared error,
    so that head and eyes are learnt too.
    """
    return VertexSpace(lambda x: vertices(head, x, head_rotation=False), head.lips, number_weight=1.0)


def reconstruction_loss(
    space: VertexSpace, pred: Float[Array, "B T D"], truth: Float[Array, "B T D"]
) -> Float[Array, " B"]:
    """Computes each item's mean squared error of the measured vertices' coordinates.

    It is in the square of their units; the squared error of the numbers is added by its weight.
    """
    numbers = space.number_weight * jnp.square(pred - truth).mean((1, 2)) if space.number_weight else 0.0
    if space.vertices is None:
        return numbers
    squared = jnp.square(space.vertices(pred) - space.vertices(truth)).mean(-1)
    if space.measured is None:
        return squared.mean((1, 2)) + numbers
    # A weight for every vertex, not a gather: its gradient would be a scatter over all frames.
    counts = np.bincount(space.measured, minlength=squared.shape[-1])
    return (squared @ (counts / len(space.measured)).astype(np.float32)).mean(1) + numbers


def lip_errors(
    space: VertexSpace, pred: Float[Array, "B T D"], truth: Float[Array, "B T D"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Computes LVE and LVD of each sequence.

    They are means over frames of d and of its root, with d the largest squared distance of a lip
    vertex, in the annotation's scaled units, squared and plain. Source: the release, whose LVE is
    not that of `unils_metrics.py`.
    """
    difference = jnp.take(space.vertices(pred) - space.vertices(truth), space.lips, axis=2)
    largest = jnp.square(difference).sum(-1).max(-1)
    return largest.mean(-1), jnp.sqrt(largest).mean(-1)


def load_spaces(folder: Path, annotations: tuple[str, ...], head: Path | None = None) -> dict[str, VertexSpace]:
    """Loads the spaces of the release's annotations from its `resources/binary_resources`.

    `head` is FLAME's model file. Raises UserError for an annotation that the release has no assets
    for, and for files that are missing or misshapen.
    """
    spaces = {}
    for annotation in annotations:
        if annotation in VERTEX_LISTS:
            spaces[annotation] = vertex_space(_indices(folder / VERTEX_LISTS[annotation]))
        elif annotation in BLENDSHAPES:
            shapes, lips = (folder / name for name in BLENDSHAPES[annotation])
            spaces[annotation] = blendshape_space(*_blendshapes(shapes), _indices(lips))
        elif annotation == FLAME_PARAMETERS:
            if head is None:
                raise UserError(f"{annotation} is measured on FLAME; give its model file, generic_model.pkl")
            lists = (_indices(folder / name) for name in (FACE_LIST, FLAME_LIPS))
            spaces[annotation] = parameter_space(load_parameter_head(head), *lists)
        else:
            known = ", ".join([*VERTEX_LISTS, *BLENDSHAPES, FLAME_PARAMETERS])
            raise UserError(f"{folder} has no assets for annotation {annotation!r}; known are {known}")
    return spaces


def _indices(path: Path) -> np.ndarray:
    array = read_npy_file(path)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        raise UserError(f"{path} must list vertices from 0, got {array.dtype} {list(array.shape)}; get a fresh copy")
    return array.reshape(-1).astype(np.int64)


def _blendshapes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the mean shape [V, 3] and the basis [n, V, 3]."""
    arrays = read_npz_file(path, ("meanshape", "blendshape"))
    mean, basis = arrays.get("meanshape"), arrays.get("blendshape")
    if mean is None or basis is None or not mean.size or mean.size % 3 or basis.size % mean.size:
        found = {name: list(array.shape) for name, array in arrays.items()}
        raise UserError(f"{path} must hold meanshape [V, 3] and blendshape [n, V, 3], got {found}")
    return mean.reshape(-1, 3).astype(np.float32), basis.reshape(-1, mean.size // 3, 3).astype(np.float32)


def talker_losses(
    space: VertexSpace,
    pred: Float[Array, "B T D"],
    truth: Float[Array, "B T D"],
    coefficients: Float[Array, "B T k"] | None,
    true_coefficients: Float[Array, "B T k"] | None,
    sample_weights: Float[Array, " B"],
) -> dict[str, Float[Array, ""]]:
    """Computes `reconstruction`, `pca` and `loss`, the sum that is minimised.

    `pca` is of the coefficients, unweighted; 0 where the annotation has none. All are over the
    batch by shares.
    """
    with jax.named_scope("talker_losses"):
        reconstruction, pca = jnp.sum(sample_weights * reconstruction_loss(space, pred, truth)), jnp.float32(0)
        if coefficients is not None:
            pca = jnp.sum(sample_weights * jnp.square(coefficients - true_coefficients).mean((1, 2)))
        return {"loss": reconstruction + PCA_WEIGHT * pca, "reconstruction": reconstruction, "pca": pca}
