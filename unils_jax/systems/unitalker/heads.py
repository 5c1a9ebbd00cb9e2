"""Which annotations a loaded UniTalker predicts, and the PCA that its published files leave out."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from unils_jax.errors import UserError
from unils_jax.nn.params import Params
from unils_jax.systems.unitalker.inference import default_annotation
from unils_jax.systems.unitalker.model import UniTalkerConfig

PCA = "pca/"  # where the PCA of the annotations lies


def select(config: UniTalkerConfig, annotations: tuple[str, ...], source: str) -> UniTalkerConfig:
    """Returns the model with the heads of these annotations alone, so that no other needs its PCA.

    Without any it is the default one. Raises UserError, naming `source`, where a head is missing.
    """
    annotations = annotations or (default_annotation(config.annotations),)
    unknown = [name for name in annotations if name not in config.annotations]
    if unknown:
        known = ", ".join(config.annotations)
        raise UserError(f"{source} has no head for {', '.join(unknown)}; it knows {known}")
    indices = [config.annotations.index(name) for name in annotations]
    rows = {name: tuple(getattr(config, name)[i] for i in indices) for name in ("dims", "components")}
    return replace(config, annotations=tuple(annotations), **rows)


def without_pca(config: UniTalkerConfig, params: Params) -> tuple[str, ...]:
    """Returns the annotations whose PCA is not among the parameters."""
    rows = zip(config.annotations, config.components, strict=True)
    return tuple(name for name, count in rows if count and f"{PCA}{name}/components" not in params)


def with_pca(
    config: UniTalkerConfig, params: Params, bases: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[UniTalkerConfig, Params]:
    """Adds components [n, D] and mean [D] of some annotations.

    They are those of `pca.npz` in the annotation's set. Raises UserError where they do not fit the
    annotation's head.
    """
    params = dict(params)
    dims, components = list(config.dims), list(config.components)
    for name, (rows, mean) in bases.items():
        index, predicted = config.annotations.index(name), config.num_outputs(name)
        if min(config.pca_dim, *rows.shape) != predicted:
            raise UserError(f"{name} predicts {predicted} coefficients, its PCA is {list(rows.shape)}")
        components[index], dims[index] = rows.shape
        params |= {f"{PCA}{name}/components": rows, f"{PCA}{name}/mean": mean}
    return replace(config, dims=tuple(dims), components=tuple(components)), params


def lacks(config: UniTalkerConfig, params: Params, source: str) -> str:
    """Says that the PCA of an annotation was not given; "" where none is missing."""
    if not without_pca(config, params):
        return ""
    return f"{source} lacks the PCA of its annotations; give it by `with_pca`"
