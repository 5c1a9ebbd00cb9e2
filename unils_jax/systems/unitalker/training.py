"""How a run of UniTalker begins: what its model takes from the data and from a parent.

The model has a head for each annotation of the data and a row for each of their people, so that the
config alone does not say what is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset
from unils_jax.motion import MOTION_KIND
from unils_jax.nn.params import Params
from unils_jax.systems.base import Loaded, Run, Start
from unils_jax.systems.unitalker.annotations import (
    BLENDSHAPES,
    FLAME_PARAMETERS,
    VERTEX_LISTS,
    VertexSpace,
    load_spaces,
    motion_space,
)
from unils_jax.systems.unitalker.model import UniTalkerConfig

IDENTITIES = "decoder/identity_embed"


@dataclass(frozen=True)
class TalkerSettings:
    """The training of UniTalker; the defaults are the release's."""

    resources: str = ""  # the release's folder of index lists and blendshapes; "": losses of the numbers, no lip errors
    pivot_rate: float = 0.1  # how often a batch is trained as the pivot identity
    frozen_epochs: int = 1  # epochs in which the audio encoder stays frozen
    frozen_steps: int = 0  # the same in steps; a run sets it
    use_pca: bool = True  # whether annotations whose set has a PCA predict its coefficients
    as_pivot: bool = False  # True: all people of the data are the pivot

    def __post_init__(self) -> None:
        if not 0 <= self.pivot_rate <= 1 or self.frozen_epochs < 0:
            raise UserError("settings: pivot_rate must be in 0..1, frozen_epochs not negative")


@dataclass(frozen=True, eq=False)
class TalkerObjective:
    """What UniTalker's loss needs besides model and batch."""

    spaces: Mapping[str, VertexSpace] = field(default_factory=dict)  # by annotation; without one: its numbers
    pivot_rate: float = 0.1
    frozen_steps: int = 0


@runtime_checkable
class SpeechData(Protocol):
    """The loader of speech clips, as far as the model follows from it."""

    kinds: Mapping[str, int]  # annotation -> numbers a frame
    pca: Mapping[str, tuple[np.ndarray, np.ndarray]]  # annotation -> components and mean
    num_identities: int
    steps_per_epoch: int


def fit_config(config: Run, data: SpeechData | None, start: Start) -> Run:
    """Returns the config with the sizes of the model that the run goes on with, or of the data.

    Before the data are there: a workdir's own model comes first, then the parent's, of which rates
    and dropout are the config's.
    """
    ours = config.model
    if data is not None:
        return _fit_data(config, data, start.parent)
    if start.saved is not None:
        return config if ours.annotations else replace(config, model=start.saved)
    if start.parent is None:
        return config
    return replace(config, model=replace(start.parent.config, rates=ours.rates, dropout=ours.dropout))


def _fit_data(config: Run, data: SpeechData, parent: Loaded | None) -> Run:
    """Gives the model a head for each annotation of the data, and a row for each of their people.

    Annotations that the model has already stay as they are, but for a PCA that the parent's file
    leaves out. Raises UserError where the data's numbers do not fit them.
    """
    ours, settings = config.model, config.settings
    sizes = dict(zip(ours.annotations, zip(ours.dims, ours.components, strict=True), strict=True))
    for name, dim in data.kinds.items():
        rows = len(data.pca[name][0]) if settings.use_pca and name in data.pca else 0
        if rows and parent is not None and f"pca/{name}/mean" not in parent.params and sizes.get(name, (0, 0))[1]:
            sizes[name] = (sizes[name][0], rows)
        if sizes.setdefault(name, (dim, rows))[0] != dim:
            raise UserError(f"the data have {dim} numbers a frame of {name}, the model {sizes[name][0]}; rename one")
    rows = ours.num_identities
    if not rows or not settings.as_pivot:
        rows = data.num_identities
    dims, components = zip(*sizes.values(), strict=True)
    model = replace(ours, annotations=tuple(sizes), dims=dims, components=components, num_identities=rows)
    settings = replace(settings, frozen_steps=settings.frozen_epochs * data.steps_per_epoch)
    return replace(config, model=model, settings=settings)


def init(config: Run, shapes: Params, data: SpeechData, start: Start) -> Params:
    """Returns what a new run does not draw.

    That is the parent's parameters, the data's PCA, the published encoder. With another number of
    identities than the parent's, every row becomes its last one, known people's too: the release's
    rule. Heads that the parent lacks begin at zero. Raises UserError where the PCA of an annotation
    is nowhere.
    """
    given = _inherited(shapes, start.parent) | _bases(config.model, data, start.parent)
    if start.parent is None and config.audio_encoder:
        given |= published_encoder(config, start)
    return given


def _inherited(shapes: Params, parent: Loaded | None) -> Params:
    if parent is None:
        return {}
    params = {path: np.asarray(value) for path, value in parent.params.items() if not path.startswith("pca/")}
    table, wanted = params[IDENTITIES], shapes[IDENTITIES].shape
    if table.shape != wanted:
        params[IDENTITIES] = np.repeat(table[-1:], wanted[0], axis=0)
    return {path: value for path, value in params.items() if path in shapes}


def _bases(model: UniTalkerConfig, data: SpeechData, parent: Loaded | None) -> Params:
    """Finds components and means of every annotation with a PCA, the parent's before the data's."""
    given: Params = {}
    for name, components in zip(model.annotations, model.components, strict=True):
        paths = [f"pca/{name}/{part}" for part in ("components", "mean")]
        if not components:
            continue
        if parent is not None and paths[0] in parent.params:
            given |= {path: np.asarray(parent.params[path]) for path in paths}
        elif name in data.pca:
            given |= dict(zip(paths, data.pca[name], strict=True))
        else:
            raise UserError(f"{name} has a PCA of {components} components, but its set has no pca.npz; put it there")
    return given


def published_encoder(config: Run, start: Start) -> Params:
    """Loads the published audio encoder under the model's own paths.

    Raises UserError where its sizes are not the config's.
    """
    encoder, params = start.load_encoder(config.audio_encoder, "wav2vec2" if config.model.wavlm is None else "wavlm")
    if encoder != config.model.audio_encoder:
        raise UserError(f"{config.audio_encoder} has other sizes than the config's audio encoder: {encoder}")
    return {path.replace("audio_encoder/", "speech_encoder/", 1): value for path, value in params.items()}


def view_settings(config: Run) -> dict[str, Any]:
    """Returns what the loader of speech clips takes from the config."""
    return {"normalize": config.model.wav2vec2 is not None, "as_pivot": config.settings.as_pivot}


def objective(config: Run, head: FlameAsset | None) -> TalkerObjective:
    """Builds the loss settings of a run."""
    settings = config.settings
    return TalkerObjective(spaces_of(config, head), settings.pivot_rate, settings.frozen_steps)


def spaces_of(config: Run, head: FlameAsset | None) -> dict[str, VertexSpace]:
    """Builds the vertex spaces of the model's annotations, as far as the config names assets.

    `settings.resources` serves the release's annotations, `head` our motion and FLAME parameters.
    """
    annotations = config.model.annotations
    spaces = {MOTION_KIND: motion_space(head)} if head is not None and MOTION_KIND in annotations else {}
    flame = config.head if config.head != "standin" else ""
    return spaces | released_spaces(annotations, config.settings.resources, flame)


def released_spaces(annotations: tuple[str, ...], resources: str, flame: str) -> dict[str, VertexSpace]:
    """Loads the vertex spaces of those annotations that the release has assets for.

    `resources` is the release's folder; "" gives none. FLAME parameters need the model file
    `flame`.
    """
    if not resources:
        return {}
    known = tuple(name for name in annotations if name in {*VERTEX_LISTS, *BLENDSHAPES})
    if FLAME_PARAMETERS in annotations and flame:
        known += (FLAME_PARAMETERS,)
    return load_spaces(Path(resources), known, Path(flame) if flame else None)
