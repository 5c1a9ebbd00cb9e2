"""The model card that goes with exported weights.

It says what they are, their data and metrics, how to load them, and what to mind.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unils_jax import __version__
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.torch_files import read_json
from unils_jax.errors import UserError
from unils_jax.files import markdown_table
from unils_jax.inference.sampling import written
from unils_jax.systems.base import Card

NO_LICENSE = (
    "None was stated when these weights were exported: ask whoever gave them to you before you use or pass them on."
)
RESPONSIBLE_USE = """Moving faces can deceive. Say that they are synthetic, do not animate a person without their
consent, and do not use them to pretend that somebody said or agreed to something. The model knows the people and
languages of its training data; on others it is worse in ways that nobody has measured."""


# The published audio encoders, by family.
ENCODERS = {"wav2vec2": "facebook/wav2vec2-xls-r-300m", "mimi": "kyutai/mimi"}


# The figures of `unils evaluate` that a card shows.
OF_STORES = {
    "LVE while speaking, mm": "unils/speaking/LVE",
    "FDD while listening": "unils/listening/FDD",
    "F-FID": "fid/both/expression_fid",
    "vowel openness, correlation": "behaviour/speaking/vowel_openness",
    "bilabial closure, correlation": "behaviour/speaking/bilabial_closure",
    "blinks a minute": "behaviour/both/blinks_per_minute",
    "spread of the head, rad": "behaviour/both/spread_head",
    "spread of the eyes, rad": "behaviour/both/spread_eyes",
    "border step, expression": "behaviour/both/border_jump_expression",
    "border step, head": "behaviour/both/border_jump_head",
}
OF_RECORDINGS = {
    "jaw to own loudness while speaking, correlation": "jaw_loudness",
    "jaw to shuffled loudness": "jaw_shuffled_loudness",
    "decoded to tracked jaw while speaking, correlation": "jaw_to_tracked_jaw",
    "jaw's spread in silence over that in speech": "jaw_spread_silence_over_speech",
    "mouth closed in silence, share of frames": "mouth_closed_in_silence",
    "blinks a minute": "blinks_per_minute",
}


def model_card(
    checkpoint: Checkpoint,
    file_name: str,
    *,
    license: str | None = None,
    raw: bool = False,
    scores: Sequence[str | os.PathLike] = (),
) -> str:
    """Writes Markdown for a checkpoint exported as `file_name`.

    It holds facts of its run, without paths of this machine. `scores` are files that `unils
    evaluate` wrote, of a store or of recordings; raises UserError for one that is neither.
    """
    card = checkpoint.system.card(checkpoint.config, checkpoint.expression_basis)
    sections = {
        "Data": f"{_data(checkpoint.run)}\n{card.data}",
        "Training": _training(checkpoint, card, raw),
        "Metrics": _metrics(checkpoint),
        **({"Scores": "\n\n".join(_scores(Path(path)) for path in scores)} if scores else {}),
        "How to load": _loading(checkpoint, file_name),
        "Licence": f"{license or NO_LICENSE}\n\n{_inherited(checkpoint)}",
        "Responsible use": RESPONSIBLE_USE,
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    return f"# {card.title}\n\n`{file_name}`, written by unils_jax {__version__}.\n\n{body}"


def _data(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "The file these weights came from names its training data in its own description only."
    sets = ", ".join(f"`{Path(text.partition('=')[0]).name}`" for text in run["data"]["sets"])
    return f"Trained on the sets {sets}." if sets else f"Trained on the store `{Path(run['data']['store']).name}`."


def _training(checkpoint: Checkpoint, card: Card, raw: bool) -> str:
    run, lines = checkpoint.run, []
    if run is not None:
        optimizer = run["optimizer"]
        lines.append(
            f"- {checkpoint.source['step']:,} of {run['num_steps']:,} steps of {run['data']['batch_size']} windows, "
            f"{'AdamW' if optimizer['weight_decay'] else 'Adam'}, "
            f"learning rate {optimizer['learning_rate']:g}, seed {run['seed']}"
        )
        average = f"averaged over the run (decay {optimizer['ema_decay']:g})"
        raw = raw or not optimizer["ema_decay"]
        lines.append(f"- weights {'of the last step, without averaging' if raw else average}")
    if "adapter" in checkpoint.source:
        lines.append(f"- the adapter {checkpoint.source['adapter']!r} merged into its base")
    lines += [f"- {fact}" for fact in card.facts]
    if checkpoint.system.draws and checkpoint.config.stage != "codec":
        own = checkpoint.sampling
        lines.append(
            f"- decoded with `tau` {written(own.tau)}, `cfg` {written(own.cfg)}, `top_p` {own.top_p:g} "
            "where nothing else is said"
        )
    size = sum(value.size for path, value in checkpoint.params.items() if not path.startswith("audio_encoder/"))
    lines.append(f"- {size:,} values in the file")
    return "\n".join(lines)


def _metrics(checkpoint: Checkpoint) -> str:
    """Returns a table of the last recorded values of the run up to the exported step."""
    rows = last_metrics(Path(checkpoint.source["checkpoint"]), checkpoint.source.get("step"))
    if not rows:
        return "None are recorded with these weights; `unils evaluate` measures them."
    lines = ["| split | step | metric | value |", "|---|---|---|---|"]
    for split, row in rows.items():
        if split == "speed":
            continue  # says nothing of the weights
        values = {k: v for k, v in row.items() if isinstance(v, float) and k not in ("finite", "learning_rate")}
        lines += [f"| {split} | {row['step']} | {name} | {value:.6g} |" for name, value in values.items()]
    return "\n".join(lines)


def _scores(path: Path) -> str:
    """Returns what `unils evaluate` measured, as a sentence and a table."""
    report = read_json(path, "scores")
    try:
        if "tracks" in report:
            settings, mean = report["settings"], report["mean"]
            told = (
                f"{len(report['tracks'])} recorded voices, {len(settings['seeds'])} seeds, {settings['motion']} motion "
                "(`unils evaluate --recordings`):"
            )
            rows = [["", "model"], *([name, _figure(mean[key])] for name, key in OF_RECORDINGS.items())]
        else:
            data, protocol = report["data"], report["settings"]["protocol"]["name"]
            made = data["made_with"]
            told = (
                f"{data['conversations']} conversations of the {data['split']} split of a store of "
                f"source `{made['source']}`, seed {made.get('seed')}, protocol `{protocol}`, "
                f"{report['settings']['motion']} motion (`unils evaluate --data`), means with 95 % intervals:"
            )
            rows = [["", "model", "truth"]]
            for name, key in OF_STORES.items():
                if key in report["metrics"]:
                    of = report["metrics"][key]
                    low, high = of["interval"]
                    rows.append(
                        [name, f"{_figure(of['mean'])} ({_figure(low)} to {_figure(high)})", _figure(of.get("truth"))]
                    )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} lacks {error}: give the JSON that `unils evaluate` wrote") from None
    return "\n".join([told, "", *markdown_table(rows)])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def last_metrics(checkpoint: Path, step: int | None) -> dict[str, dict[str, Any]]:
    """Returns the newest line of each split in the workdir's metrics.jsonl, not beyond `step`.

    It is empty where there is none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for folder in (checkpoint, checkpoint.parent.parent):
        path = folder / "metrics.jsonl"
        if step is None or not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the torn last line of a killed run
            if isinstance(row, Mapping) and isinstance(row.get("step"), int) and row["step"] <= step:
                rows[str(row.get("split"))] = dict(row)
        break
    return rows


def _loading(checkpoint: Checkpoint, file_name: str) -> str:
    published = _needs_encoder(checkpoint)
    family = checkpoint.system.encoder.family(checkpoint.config) if published else ""
    encoder = f', audio_encoder="{ENCODERS[family]}"' if published else ""
    reference_encoder = ', audio_encoder="wav2vec2"' if published else ""
    folder = "\n`wav2vec2` is the folder that `hf download facebook/wav2vec2-xls-r-300m --local-dir wav2vec2` writes.\n"
    in_jax = f"""In JAX:

```python
from unils_jax.checkpoints.loading import load

model = load("{file_name}"{encoder}).model
```
"""
    if family == "mimi":
        return f"{in_jax}\nOur PyTorch reference has no Mimi; the release's own code loads the file with one.\n"
    if checkpoint.system.layout.bare:
        return (
            in_jax
            + "\nA `.pt` is the bare state dict that the authors' PyTorch code loads; the config is the `.json`.\n"
        )
    return f"""{in_jax}
In PyTorch (`pip install '.[torch]'` in a checkout), with the release's key names, strictly:

```python
from unils_jax.benchmarks.torch_model import load_torch_reference

model = load_torch_reference("{file_name}"{reference_encoder})
```
{folder if published else ""}"""


def _needs_encoder(checkpoint: Checkpoint) -> bool:
    encoder = checkpoint.system.encoder
    return encoder is not None and encoder.needed(checkpoint.config)


def _inherited(checkpoint: Checkpoint) -> str:
    lines = ["The code is Apache-2.0; the terms of the training data and of what the weights started from bind, too."]
    if _needs_encoder(checkpoint):
        family = checkpoint.system.encoder.family(checkpoint.config)
        lines.append(f"{family} comes from its own publisher, under its own licence.")
    if checkpoint.expression_basis == "flame":
        lines.append("FLAME is licensed by its makers and is no part of this file.")
    return "\n".join(lines)
