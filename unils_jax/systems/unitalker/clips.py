"""Scores of UniTalker on clips of its annotated sets: errors of the numbers and of the lips."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.systems.base import ClipScores, ClipSettings, Loaded
from unils_jax.systems.unitalker.annotations import VertexSpace, lip_errors
from unils_jax.systems.unitalker.heads import with_pca, without_pca
from unils_jax.systems.unitalker.inference import normalizes, predict
from unils_jax.systems.unitalker.model import UniTalker, prepare_audio
from unils_jax.systems.unitalker.training import released_spaces

log = logging.getLogger(__name__)


@runtime_checkable
class ClipItem(Protocol):
    """One clip of a set, not read yet."""

    name: str  # "set/record"
    kind: str  # the annotation's name


@runtime_checkable
class Clip(Protocol):
    """A clip with its truth."""

    audio: np.ndarray  # [N] at 16 kHz, as recorded
    motion: np.ndarray  # [T, D]
    template: np.ndarray  # [D]
    identity: int


@runtime_checkable
class ClipSource(Protocol):
    """Sets of clips, as far as they are scored."""

    split: Any  # `num_identities` is the number of people, the pivot included

    def read(self, item: ClipItem) -> Clip:
        """Returns the clip."""

    def pca(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns components and mean of each annotation whose set has a PCA."""


def score_clips(
    checkpoint: Loaded, source: ClipSource, items: Sequence[ClipItem], settings: ClipSettings
) -> ClipScores:
    """Scores a checkpoint on clips.

    Raises UserError where an annotation has no head, or a PCA that neither checkpoint nor sets
    have.
    """
    annotations = tuple(dict.fromkeys(item.kind for item in items))
    trained = checkpoint.run or {}
    checkpoint = complete(checkpoint, source, annotations)
    known = knows_people(checkpoint, trained, settings.sets, source)
    spaces = find_spaces(settings, trained, annotations)
    chosen = items[: settings.limit]
    return ClipScores(_score(checkpoint.model, source, chosen, spaces, known, settings.dtype), known)


def complete(checkpoint: Loaded, source: ClipSource, annotations: tuple[str, ...]) -> Loaded:
    """Keeps the heads of these annotations, and adds the sets' PCA where it is missing."""
    checkpoint = checkpoint.select(*annotations)
    lacking = without_pca(checkpoint.config, checkpoint.params)
    found = source.pca() if lacking else {}
    missing = [name for name in lacking if name not in found]
    if missing:
        raise UserError(
            f"neither the checkpoint nor a set has the PCA of {', '.join(missing)}; put pca.npz into the set"
        )
    config, params = with_pca(checkpoint.config, checkpoint.params, {name: found[name] for name in lacking})
    return replace(checkpoint, config=config, params=params)


def knows_people(checkpoint: Loaded, trained: Mapping[str, Any], sets: Sequence[str], source: ClipSource) -> bool:
    """Returns whether the rows of the identity table are the sets' people.

    They are where the sets are the run's own, or have as many people as the table has rows.
    """
    own = bool(trained) and not trained["settings"]["as_pivot"]
    own = own and [_folder(text) for text in sets] == [_folder(text) for text in trained["data"]["sets"]]
    known = own or source.split.num_identities == checkpoint.config.num_identities
    if not known:
        log.warning("the sets are not those of the checkpoint's identities: all people are the pivot")
    return known


def _folder(text: str) -> str:
    return text.rpartition("=")[0] or text


def find_spaces(
    settings: ClipSettings, trained: Mapping[str, Any], annotations: tuple[str, ...]
) -> dict[str, VertexSpace]:
    """Loads the spaces in which lips are measured; a warning names annotations that have none."""
    resources = settings.resources or (trained["settings"]["resources"] if trained else "")
    head = trained["head"] if trained and trained["head"] != "standin" else ""
    spaces = released_spaces(annotations, resources, settings.flame or head)
    without = [name for name in annotations if name not in spaces]
    if without:
        log.warning("no lip errors of %s: give --resources, and --flame for FLAME parameters", ", ".join(without))
    return spaces


def _score(
    model: UniTalker,
    source: ClipSource,
    items: Sequence[ClipItem],
    spaces: Mapping[str, VertexSpace],
    known: bool,
    dtype: str,
) -> list[dict[str, Any]]:
    """Scores every clip: MSE of the numbers, LVE and LVD where the annotation has lips.

    Figures that begin with `still_` are those of the template alone.
    """
    scores = []
    for item in tqdm(items, "evaluate", disable=None, unit="record"):
        clip = source.read(item)
        audio = prepare_audio(clip.audio, normalize=normalizes(model))
        identity = clip.identity if known else None
        found = predict(model, audio, item.kind, len(clip.motion), clip.template, identity, dtype=dtype)
        still = np.broadcast_to(clip.template[None], found.shape)
        row = {"name": item.name, "set": item.name.split("/")[0], "kind": item.kind}
        measure = measure_in(spaces.get(item.kind))
        row |= measure(found, clip.motion)
        scores.append(row | {f"still_{name}": value for name, value in measure(still, clip.motion).items()})
    return scores


def measure_in(
    space: VertexSpace | None,
) -> Callable[[Float[np.ndarray, "T D"], Float[np.ndarray, "T D"]], dict[str, float]]:
    """Returns a function that scores one prediction against its truth."""

    def measure(found: Float[np.ndarray, "T D"], truth: Float[np.ndarray, "T D"]) -> dict[str, float]:
        figures = {"MSE": float(np.square(found - truth).mean())}
        if space is not None:
            errors = lip_errors(space, *(jnp.asarray(x, jnp.float32)[None] for x in (found, truth)))
            figures |= {name: float(value[0]) for name, value in zip(("LVE", "LVD"), errors, strict=True)}
        return figures

    return measure
