"""What the loss and the metrics of an annotation kind are measured in: vertices, whatever its numbers are.

Source: UniTalker's paper and release. An annotation's numbers are vertices themselves, weights of blendshapes, or
parameters of a head model; a `VertexSpace` makes vertices of them.
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

BLENDSHAPE_WEIGHT = 1e-4  # of the squared error of blendshape weights beside that of the vertices
PCA_WEIGHT = 0.01
TRAILING = 10  # of FLAME's parameters: rotation 6, translation 3, scale 1, which nothing is asked of
JAW_DIM = 3
# The release's kinds by how their numbers become vertices, and the file of lip vertices of each.
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
# What the numbers of an annotation are, and their units as they were trained: the release's table of sets.
FORMS = {
    **dict(zip(VERTEX_LISTS, (("vertices", "0.2 of BIWI's"), ("vertices", "m"), ("vertices", "m")), strict=True)),
    **dict.fromkeys(BLENDSHAPES, ("weights", "of blendshapes, 1 is full")),
    FLAME_PARAMETERS: ("parameters", "coefficients, then radians (jaw 3)"),
}
FACE_LIST, FLAME_LIPS = "flame_humanface_index.npy", "02_flame_mouth_idx.npy"


@dataclass(frozen=True, eq=False)
class VertexSpace:
    """`vertices` makes [B, T, V, 3] of [B, T, D]; `lips` lists those that LVE and LVD look at; `measured` those that
    the loss compares (None: all; repeats count). `number_weight` is that of the squared error of the numbers. A space
    without vertices or lips has no lip errors."""

    vertices: Callable[[Array], Array] | None
    lips: Int[np.ndarray, " n"] | None
    measured: Int[np.ndarray, " m"] | None = None
    number_weight: float = 0.0


# Of kinds without assets: the numbers themselves. For those that are vertices the loss is the release's all the same.
NUMBERS = VertexSpace(None, None, number_weight=1.0)


def vertex_space(lips: Int[np.ndarray, " n"]) -> VertexSpace:
    """Of numbers that are coordinates, vertex by vertex."""
    return VertexSpace(lambda x: x.reshape(*x.shape[:-1], -1, 3), lips)


def blendshape_space(
    mean: Float[np.ndarray, "V 3"], basis: Float[np.ndarray, "n V 3"], lips: Int[np.ndarray, " m"]
) -> VertexSpace:
    """Of weights of `basis` on `mean`."""
    flat = np.ascontiguousarray(basis.reshape(len(basis), -1), np.float32)
    offset = np.ascontiguousarray(mean.reshape(-1), np.float32)

    def of_weights(x: Array) -> Array:
        return (x @ flat + jnp.asarray(offset)[None, None]).reshape(*x.shape[:-1], -1, 3)

    return VertexSpace(of_weights, lips, number_weight=BLENDSHAPE_WEIGHT)


def parameter_space(head: Skinning, face: Int[np.ndarray, " n"], lips: Int[np.ndarray, " m"]) -> VertexSpace:
    """Of FLAME parameters as D5 has them: coefficients, jaw 3, then ten that nothing is asked of."""

    def of_parameters(x: Array) -> Array:
        coefficients, jaw = x[..., : -TRAILING - JAW_DIM], x[..., -TRAILING - JAW_DIM : -TRAILING]
        return parameter_vertices(head, coefficients, jaw)

    return VertexSpace(of_parameters, lips, measured=face)


def motion_space(head: FlameAsset) -> VertexSpace:
    """Of this project's 108 motion channels at 25 fps: the head's vertices without head rotation, and all channels by
    their squared error, so that head and eyes are learnt too."""
    return VertexSpace(lambda x: vertices(head, x, head_rotation=False), head.lips, number_weight=1.0)


def reconstruction_loss(
    space: VertexSpace, pred: Float[Array, "B T D"], truth: Float[Array, "B T D"]
) -> Float[Array, " B"]:
    """Of each item the mean squared error of the measured vertices' coordinates, in the square of their units, and of
    the numbers by their weight."""
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
    """LVE and LVD of each sequence: means over frames of d and of its root, with d the largest squared distance of a
    lip vertex. In the annotation's scaled units, squared and plain. Source: the release, whose LVE is
    not that of `metrics.py`."""
    difference = jnp.take(space.vertices(pred) - space.vertices(truth), space.lips, axis=2)
    largest = jnp.square(difference).sum(-1).max(-1)
    return largest.mean(-1), jnp.sqrt(largest).mean(-1)


def load_spaces(folder: Path, kinds: tuple[str, ...], head: Path | None = None) -> dict[str, VertexSpace]:
    """The spaces of the release's kinds from its `resources/binary_resources`; `head` is FLAME's model file.

    Raises UserError for a kind that the release has no assets for and for files that are missing or misshapen.
    """
    spaces = {}
    for kind in kinds:
        if kind in VERTEX_LISTS:
            spaces[kind] = vertex_space(_indices(folder / VERTEX_LISTS[kind]))
        elif kind in BLENDSHAPES:
            shapes, lips = (folder / name for name in BLENDSHAPES[kind])
            spaces[kind] = blendshape_space(*_blendshapes(shapes), _indices(lips))
        elif kind == FLAME_PARAMETERS:
            if head is None:
                raise UserError(f"{kind} is measured on FLAME; give its model file, generic_model.pkl")
            lists = (_indices(folder / name) for name in (FACE_LIST, FLAME_LIPS))
            spaces[kind] = parameter_space(load_parameter_head(head), *lists)
        else:
            known = ", ".join([*VERTEX_LISTS, *BLENDSHAPES, FLAME_PARAMETERS])
            raise UserError(f"{folder} has no assets for annotation {kind!r}; known are {known}")
    return spaces


def _indices(path: Path) -> np.ndarray:
    array = read_npy_file(path)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        raise UserError(f"{path} must list vertices from 0, got {array.dtype} {list(array.shape)}; get a fresh copy")
    return array.reshape(-1).astype(np.int64)


def _blendshapes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean shape [V, 3] and basis [n, V, 3]."""
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
    """`reconstruction`, `pca` (of coefficients, unweighted; 0 where the kind has none) and `loss`, the sum that is
    minimised; over the batch by shares."""
    with jax.named_scope("talker_losses"):
        reconstruction, pca = jnp.sum(sample_weights * reconstruction_loss(space, pred, truth)), jnp.float32(0)
        if coefficients is not None:
            pca = jnp.sum(sample_weights * jnp.square(coefficients - true_coefficients).mean((1, 2)))
        return {"loss": reconstruction + PCA_WEIGHT * pca, "reconstruction": reconstruction, "pca": pca}
