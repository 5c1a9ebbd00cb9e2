"""Lip errors per annotation, on sets in the layout of a system's release instead of a store."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.speech_loader import SetSpeech, parse_sets
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.evaluation.metrics import jsonable
from unils_jax.evaluation.run import host, versions
from unils_jax.evaluation.statistics import bootstrap_interval
from unils_jax.systems.base import ClipSettings

NOTE = (
    "Of each record the first 20 s, as the release's evaluation has them; every record counts alike. LVE and LVD are "
    "in the annotation's scaled units, squared and plain; `still` is what the template alone comes to."
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
    if checkpoint.system.score_clips is None:
        raise UserError(f"{path} is of the {checkpoint.config.stage} stage; give the store with --data DIR")
    trained = checkpoint.run or {}
    sets = settings.sets or (trained["data"]["sets"] if trained else ())
    if not sets:
        raise UserError(f"{path} names no sets; give them with --sets DIR=SCALE, or a store with --data DIR")
    source = SetSpeech(parse_sets(sets), settings.split)
    items = list(source.items(0))
    if not items:
        raise UserError(f"split {settings.split} of {', '.join(sets)} holds no record of at least 0.5 s; give another")
    kinds = tuple(dict.fromkeys(item.kind for item in items))
    chosen = ClipSettings(tuple(sets), settings.resources, settings.flame, settings.limit, settings.dtype)
    scored = checkpoint.system.score_clips(checkpoint, source, items, chosen)
    scores = scored.rows
    report = {
        "metrics": {kind: summary([row for row in scores if row["kind"] == kind]) for kind in kinds},
        "per_set": {name: summary([r for r in scores if r["set"] == name]) for name in {r["set"]: 0 for r in scores}},
        "settings": {
            "sets": list(sets),
            "split": settings.split,
            "identities": "as annotated" if scored.known_people else "the pivot",
            "limit": settings.limit,
            "source": checkpoint.source,
            "dtype": settings.dtype,
        },
        "data": {"records": len(scores), "left_out_as_short": len(source.split.entries) - len(items)},
        "per_record": scores,
        "notes": [NOTE],
        "versions": versions(),
        "host": host(),
    }
    return jsonable(report)


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
