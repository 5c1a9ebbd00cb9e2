"""What `unils evaluate` does with a UniTalker without a store: lip errors per annotation on sets in its own layout."""

import argparse
import json
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

NOTE = (
    "Of each record the first 20 s, as UniTalker's evaluation has them; every record counts alike. LVE and LVD are in "
    "the annotation's scaled units, squared and plain; `still` is what the template alone comes to."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name sets and what their lips are measured on."""
    sets = parser.add_argument_group("UniTalker", "its own sets instead of a store, without --data")
    sets.add_argument(
        "--sets", nargs="+", metavar="DIR=SCALE", help="in the order of training (default: those it was trained on)"
    )
    sets.add_argument(
        "--resources", metavar="DIR", help="the release's binary_resources (default: those it was trained with)"
    )


def run(args: argparse.Namespace, where: dict[str, Any]) -> None:
    """Scores the split and writes the JSON, with `where` it was made.

    Raises UserError for every mistake of the user before that.
    """
    from data_pipelines.speech_loader import SetSpeech, parse_sets
    from unils_jax.checkpoints.loading import load
    from unils_jax.errors import UserError
    from unils_jax.evaluation.scoring import jsonable
    from unils_jax.files import atomic_output

    checkpoint = load(args.checkpoint)
    if checkpoint.config.stage != "unitalker":
        raise UserError(f"{args.checkpoint} is of the {checkpoint.config.stage} stage; give the store with --data DIR")
    trained = checkpoint.run or {}
    texts = args.sets or (trained["data"]["sets"] if trained else ())
    if not texts:
        raise UserError(f"{args.checkpoint} names no sets; give them with --sets DIR=SCALE, or a store with --data DIR")
    source = SetSpeech(parse_sets(texts), args.split)
    items = list(source.items(0))
    if not items:
        raise UserError(f"split {args.split} of {', '.join(texts)} holds no record of at least 0.5 s; give another")
    kinds = tuple(dict.fromkeys(item.kind for item in items))
    checkpoint = complete(checkpoint, source, kinds)
    rows = knows_subjects(checkpoint, trained, texts, source)
    spaces = find_spaces(args, trained, kinds)
    chosen = items[: args.limit]
    scores = score(checkpoint.model, source, chosen, spaces, rows, args.dtype)
    report = {
        "metrics": {kind: summary([row for row in scores if row["kind"] == kind]) for kind in kinds},
        "per_set": {name: summary([r for r in scores if r["set"] == name]) for name in {r["set"]: 0 for r in scores}},
        "settings": {
            "sets": list(texts),
            "split": args.split,
            "identities": "as annotated" if rows else "nobody in particular",
            "limit": args.limit,
            "source": checkpoint.source,
            "dtype": args.dtype,
        },
        "data": {"records": len(chosen), "left_out_as_short": len(source.split.entries) - len(items)},
        "per_record": scores,
        "notes": [NOTE],
        **where,
    }
    with atomic_output(args.out) as partial:
        partial.write_text(json.dumps(jsonable(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(chosen)} records; {headline(report['metrics'])}")


def complete(checkpoint: Any, source: Any, kinds: tuple[str, ...]) -> Any:
    """The checkpoint with the heads of these kinds, and with the sets' PCA where it lacks that."""
    from unils_jax.errors import UserError

    checkpoint = checkpoint.with_kinds(kinds)
    lacking = checkpoint.without_pca()
    found = source.pca() if lacking else {}
    missing = [kind for kind in lacking if kind not in found]
    if missing:
        raise UserError(
            f"neither the checkpoint nor a set has the PCA of {', '.join(missing)}; put pca.npz into the set"
        )
    return checkpoint.with_pca({kind: found[kind] for kind in lacking})


def knows_subjects(checkpoint: Any, trained: Any, texts: Any, source: Any) -> bool:
    """Whether the rows of the identity table are those of the sets' subjects: the run's own sets, or as many rows."""
    own = bool(trained) and not trained["talker"]["as_pivot"]
    own = own and [_folder(text) for text in texts] == [_folder(text) for text in trained["data"]["sets"]]
    known = own or source.split.num_identities == checkpoint.config.unitalker.num_identities
    if not known:
        log.warning("the sets are not those of the checkpoint's identities: everybody is nobody in particular")
    return known


def _folder(text: str) -> str:
    return text.rpartition("=")[0] or text


def find_spaces(args: argparse.Namespace, trained: Any, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The spaces in which lips are measured. Kinds without one are said: their numbers alone are compared."""
    from unils_jax.systems.unitalker.training import released_spaces

    resources = args.resources or (trained["talker"]["resources"] if trained else "")
    head = trained["head"] if trained and trained["head"] != "standin" else ""
    spaces = released_spaces(kinds, resources, args.flame or head)
    without = [kind for kind in kinds if kind not in spaces]
    if without:
        log.warning("no lip errors of %s: give --resources, and --flame for FLAME parameters", ", ".join(without))
    return spaces


def score(
    model: Any, source: Any, items: list[Any], spaces: dict[str, Any], rows: bool, dtype: str
) -> list[dict[str, Any]]:
    """The figures of every record: MSE of the numbers, LVE and LVD where the kind has lips; `still_` those of the
    template."""
    import numpy as np
    from tqdm import tqdm

    from unils_jax.systems.unitalker.inference import normalizes, predict
    from unils_jax.systems.unitalker.model import prepare_audio

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


def measure_in(space: Any) -> Callable[[Any, Any], dict[str, float]]:
    """Figures of one prediction against its truth, both [T, D]."""
    import jax.numpy as jnp
    import numpy as np

    from unils_jax.systems.unitalker.annotations import lip_errors

    def measure(found: Any, truth: Any) -> dict[str, float]:
        figures = {"MSE": float(np.square(found - truth).mean())}
        if space is not None:
            errors = lip_errors(space, *(jnp.asarray(x, jnp.float32)[None] for x in (found, truth)))
            figures |= {name: float(value[0]) for name, value in zip(("LVE", "LVD"), errors, strict=True)}
        return figures

    return measure


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over records, with 95 % bootstrap intervals, and the template's."""
    import numpy as np

    from unils_jax.evaluation.statistics import bootstrap_interval

    figures: dict[str, Any] = {"records": len(rows)}
    for name in ("LVE", "LVD", "MSE"):
        values = np.array([row[name] for row in rows if name in row])
        if len(values):
            interval = bootstrap_interval(values) if len(values) > 1 else None
            still = float(np.mean([row[f"still_{name}"] for row in rows]))
            figures[name] = {"mean": float(values.mean()), "interval": interval, "still": still}
    return figures


def headline(metrics: dict[str, Any]) -> str:
    """The figures of the summary line."""
    said = []
    for kind, figures in metrics.items():
        shown = [f"{name} {figures[name]['mean']:.4g}" for name in ("LVE", "LVD", "MSE") if name in figures]
        said.append(f"{kind} {', '.join(shown)}")
    return "; ".join(said)
