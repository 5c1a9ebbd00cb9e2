"""Lip errors per annotation of a UniTalker, on sets in its own layout instead of a store."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from data_pipelines.speech_loader import Item, SetSpeech, parse_sets
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.evaluation.run import host, versions
from unils_jax.evaluation.scoring import jsonable
from unils_jax.evaluation.statistics import bootstrap_interval
from unils_jax.systems.unitalker.annotations import VertexSpace, lip_errors
from unils_jax.systems.unitalker.heads import with_pca, without_pca
from unils_jax.systems.unitalker.inference import normalizes, predict
from unils_jax.systems.unitalker.model import UniTalker, UniTalkerConfig, prepare_audio
from unils_jax.systems.unitalker.training import released_spaces

log = logging.getLogger(__name__)

NOTE = (
    "Of each record the first 20 s, as UniTalker's evaluation has them; every record counts alike. LVE and LVD are in "
    "the annotation's scaled units, squared and plain; `still` is what the template alone comes to."
)


@dataclass(frozen=True)
class SetSettings:
    """Which sets are scored, and how."""

    sets: Sequence[str] | None = None  # DIR=SCALE each; None: those of the training
    split: str = "test"
    resources: str | None = None  # the release's binary_resources; None: those of the training
    flame: str | None = None  # FLAME's model file; None: that of the training
    limit: int | None = None  # the first records only; None: all
    dtype: str = "float32"


def evaluate_sets(path: str | os.PathLike, settings: SetSettings) -> dict[str, Any]:
    """Scores a checkpoint on a split of its sets; returns the report as plain values.

    Raises UserError for every mistake of the user.
    """
    checkpoint = load(path)
    if not isinstance(checkpoint.config, UniTalkerConfig):
        raise UserError(f"{path} is of the {checkpoint.config.stage} stage; give the store with --data DIR")
    trained = checkpoint.run or {}
    texts = settings.sets or (trained["data"]["sets"] if trained else ())
    if not texts:
        raise UserError(f"{path} names no sets; give them with --sets DIR=SCALE, or a store with --data DIR")
    source = SetSpeech(parse_sets(texts), settings.split)
    items = list(source.items(0))
    if not items:
        raise UserError(f"split {settings.split} of {', '.join(texts)} holds no record of at least 0.5 s; give another")
    kinds = tuple(dict.fromkeys(item.kind for item in items))
    checkpoint = complete(checkpoint, source, kinds)
    rows = knows_subjects(checkpoint, trained, texts, source)
    spaces = find_spaces(settings, trained, kinds)
    chosen = items[: settings.limit]
    scores = score(checkpoint.model, source, chosen, spaces, rows, settings.dtype)
    report = {
        "metrics": {kind: summary([row for row in scores if row["kind"] == kind]) for kind in kinds},
        "per_set": {name: summary([r for r in scores if r["set"] == name]) for name in {r["set"]: 0 for r in scores}},
        "settings": {
            "sets": list(texts),
            "split": settings.split,
            "identities": "as annotated" if rows else "the pivot",
            "limit": settings.limit,
            "source": checkpoint.source,
            "dtype": settings.dtype,
        },
        "data": {"records": len(chosen), "left_out_as_short": len(source.split.entries) - len(items)},
        "per_record": scores,
        "notes": [NOTE],
        "versions": versions(),
        "host": host(),
    }
    return jsonable(report)


def complete(checkpoint: Checkpoint, source: SetSpeech, kinds: tuple[str, ...]) -> Checkpoint:
    """Keeps the heads of these annotations, and adds the sets' PCA where it is missing."""
    checkpoint = checkpoint.select(*kinds)
    lacking = without_pca(checkpoint.config, checkpoint.params)
    found = source.pca() if lacking else {}
    missing = [kind for kind in lacking if kind not in found]
    if missing:
        raise UserError(
            f"neither the checkpoint nor a set has the PCA of {', '.join(missing)}; put pca.npz into the set"
        )
    bases = {kind: found[kind] for kind in lacking}
    config, params = with_pca(checkpoint.config, checkpoint.params, bases)
    return replace(checkpoint, config=config, params=params)


def knows_subjects(checkpoint: Checkpoint, trained: Mapping[str, Any], texts: Sequence[str], source: SetSpeech) -> bool:
    """Returns whether the rows of the identity table are the sets' subjects.

    They are where the sets are the run's own, or have as many subjects as the table has rows.
    """
    own = bool(trained) and not trained["settings"]["as_pivot"]
    own = own and [_folder(text) for text in texts] == [_folder(text) for text in trained["data"]["sets"]]
    known = own or source.split.num_identities == checkpoint.config.num_identities
    if not known:
        log.warning("the sets are not those of the checkpoint's identities: all people are the pivot")
    return known


def _folder(text: str) -> str:
    return text.rpartition("=")[0] or text


def find_spaces(settings: SetSettings, trained: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, VertexSpace]:
    """Loads the spaces in which lips are measured; a warning names annotations that have none."""
    resources = settings.resources or (trained["settings"]["resources"] if trained else "")
    head = trained["head"] if trained and trained["head"] != "standin" else ""
    spaces = released_spaces(kinds, resources, settings.flame or head)
    without = [kind for kind in kinds if kind not in spaces]
    if without:
        log.warning("no lip errors of %s: give --resources, and --flame for FLAME parameters", ", ".join(without))
    return spaces


def score(
    model: UniTalker, source: SetSpeech, items: list[Item], spaces: Mapping[str, VertexSpace], rows: bool, dtype: str
) -> list[dict[str, Any]]:
    """Scores every record: MSE of the numbers, LVE and LVD where the annotation has lips.

    Figures that begin with `still_` are those of the template alone. `rows`: subjects have rows of
    the identity table.
    """
    scores = []
    for item in tqdm(items, "evaluate", disable=None, unit="record"):
        clip = source.read(item)
        audio = prepare_audio(clip.audio, normalize=normalizes(model))
        who = clip.identity if rows else None
        found = predict(model, audio, item.kind, len(clip.motion), clip.template, who, dtype=dtype)
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


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages over records, with 95 % bootstrap intervals, and the template's means."""
    figures: dict[str, Any] = {"records": len(rows)}
    for name in ("LVE", "LVD", "MSE"):
        values = np.array([row[name] for row in rows if name in row])
        if len(values):
            interval = bootstrap_interval(values) if len(values) > 1 else None
            still = float(np.mean([row[f"still_{name}"] for row in rows]))
            figures[name] = {"mean": float(values.mean()), "interval": interval, "still": still}
    return figures


def headline(metrics: Mapping[str, Any]) -> str:
    """Returns the main figures for a summary line."""
    parts = []
    for kind, figures in metrics.items():
        shown = [f"{name} {figures[name]['mean']:.4g}" for name in ("LVE", "LVD", "MSE") if name in figures]
        parts.append(f"{kind} {', '.join(shown)}")
    return "; ".join(parts)
