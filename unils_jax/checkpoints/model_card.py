"""The model card that goes with exported weights: what they are, their data and metrics, how to load, what to mind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unils_jax import __version__
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.systems.unitalker.model import UniTalkerConfig
from unils_jax.training.config import RunConfig, run_config

TITLES = {
    "codec": "UniLS motion codec: 100 frames of facial motion to bits and back",
    "prior": "UniLS motion prior: facial motion without audio, over the codec's bits",
    "dialogue": "UniLS dialogue: the audio of a conversation to the facial motion of both people",
    "unitalker": "UniTalker: the audio of one person to motion in any of several annotations",
    "dualtalk": "DualTalk: own audio, the partner's audio and motion to own facial motion",
}
NO_LICENSE = (
    "None was stated when these weights were exported: ask whoever gave them to you before you use or pass them on."
)
RESPONSIBLE_USE = """Moving faces can deceive. Say that they are synthetic, do not animate a person without their
consent, and do not use them to pretend that somebody said or agreed to something. The model knows the people and
languages of its training data; on others it is worse in ways that nobody has measured."""


def model_card(checkpoint: Checkpoint, file_name: str, *, license: str | None = None, raw: bool = False) -> str:
    """Markdown for a checkpoint exported as `file_name`: facts of its run, without paths of this machine."""
    stage = checkpoint.config.stage
    run = None if checkpoint.run is None else run_config(dict(checkpoint.run))
    sections = {
        "Data": _data(run, checkpoint.expression_basis, stage, checkpoint.config.unitalker),
        "Training": _training(checkpoint, run, raw),
        "Metrics": _metrics(checkpoint),
        "How to load": _loading(checkpoint, file_name),
        "Licence": f"{license or NO_LICENSE}\n\n{_inherited(checkpoint)}",
        "Responsible use": RESPONSIBLE_USE,
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    return f"# {TITLES[stage]}\n\n`{file_name}`, written by unils_jax {__version__}.\n\n{body}"


def _data(run: RunConfig | None, basis: str, stage: str, talker: UniTalkerConfig | None) -> str:
    lines = []
    if run is None:
        lines.append("The file these weights came from names its training data in its own description only.")
    else:
        sets = ", ".join(f"`{Path(text.partition('=')[0]).name}`" for text in run.data.sets)
        lines.append(f"Trained on the sets {sets}." if sets else f"Trained on the store `{Path(run.data.store).name}`.")
    if talker is not None:
        kinds = (f"`{kind}` ({dim} numbers a frame)" for kind, dim in zip(talker.kinds, talker.dims, strict=True))
        lines.append(f"Annotations: {', '.join(kinds)}; {talker.num_identities} identities, the last nobody's.")
    elif stage == "dualtalk":
        lines.append(f"56 channels at 25 frames/s in the {basis!r} basis: expression 50, jaw 3, head rotation 3.")
    elif basis == "flame":
        lines.append("108 channels at 25 frames/s in FLAME's basis: expression 100, head rotation 3, jaw 1, eyes 4.")
    else:
        lines.append(
            "108 channels at 25 frames/s in the basis of our procedural stand-in head, **not FLAME's**: the expression "
            "channels mean nothing on a FLAME head; jaw, gaze and head rotation do."
        )
    return "\n".join(lines)


def _training(checkpoint: Checkpoint, run: RunConfig | None, raw: bool) -> str:
    config = checkpoint.config
    lines = []
    if run is not None:
        lines.append(
            f"- {checkpoint.source['step']:,} of {run.num_steps:,} steps of {run.data.batch_size} windows, "
            f"{'AdamW' if run.optimizer.weight_decay else 'Adam'}, "
            f"learning rate {run.optimizer.learning_rate:g}, seed {run.seed}"
        )
        average = f"averaged over the run (decay {run.optimizer.ema_decay:g})"
        raw = raw or not run.optimizer.ema_decay
        lines.append(f"- weights {'of the last step, without averaging' if raw else average}")
    if "adapter" in checkpoint.source:
        lines.append(f"- the adapter {checkpoint.source['adapter']!r} merged into its base")
    codec, prior, dualtalk = config.codec, config.prior, config.dualtalk
    if codec is not None:
        lines.append(
            f"- codec: width {codec.width}, depth {codec.depth}, {codec.code_dim} bits, scales {list(codec.scales)}"
        )
    if dualtalk is not None:
        encoder = dualtalk.wav2vec2
        ears = f"two wav2vec2 of width {encoder.width} and depth {encoder.depth}, trained along and in this file"
        if dualtalk.logmel is not None:
            ears = "log-mel features instead of two wav2vec2; **the authors' code cannot load it**"
        lines.append(f"- width {dualtalk.width}, {dualtalk.depth} layers of interaction; {ears}")
    if config.unitalker is not None:
        talker = config.unitalker
        lines.append(
            f"- {talker.decoder} decoder of width {talker.width}; {'WavLM' if talker.wavlm else 'wav2vec2'} of width "
            f"{talker.audio_encoder.width} and depth {talker.audio_encoder.depth}, trained along and in this file"
        )
    if prior is not None:
        lines.append(f"- prior: width {prior.width}, depth {prior.depth}, {prior.num_heads} heads")
        if prior.audio_condition != "pair":
            heard = "the own track alone" if prior.audio_condition == "own" else "the sum of both tracks"
            lines.append(f"- one audio cross-attention, to {heard}; **the release's code has two** and cannot load it")
    if config.logmel is not None:
        lines.append(
            f"- audio: our log-mel front end, {config.logmel.num_mels} bands. **The release's code has no such "
            "encoder**: there the file loads, but speech means nothing to it"
        )
    elif config.stage == "dialogue":
        lines.append("- audio: wav2vec2-xls-r-300m, frozen; not in this file")
    size = sum(value.size for path, value in checkpoint.params.items() if not path.startswith("audio_encoder/"))
    lines.append(f"- {size:,} values in the file")
    return "\n".join(lines)


def _metrics(checkpoint: Checkpoint) -> str:
    """The last recorded values of the run up to the exported step."""
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


def last_metrics(checkpoint: Path, step: int | None) -> dict[str, dict[str, Any]]:
    """The newest line of each split in the workdir's metrics.jsonl, not beyond `step`; empty where there is none."""
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
    published = checkpoint.config.stage == "dialogue" and checkpoint.config.logmel is None
    encoder = ', audio_encoder="facebook/wav2vec2-xls-r-300m"' if published else ""
    reference_encoder = ', audio_encoder="wav2vec2"' if published else ""
    folder = "\n`wav2vec2` is the folder that `hf download facebook/wav2vec2-xls-r-300m --local-dir wav2vec2` writes.\n"
    in_jax = f"""In JAX:

```python
from unils_jax.checkpoints.loading import load

model = load("{file_name}"{encoder}).model
```
"""
    if checkpoint.config.codec is None:
        return (
            in_jax
            + "\nA `.pt` is the bare state dict that the authors' PyTorch code loads; the config is the `.json`.\n"
        )
    return f"""{in_jax}
In PyTorch (`pip install 'unils-jax[torch]'`), with the release's key names, strictly:

```python
from unils_jax.benchmarks.torch_model import load_torch_reference

model = load_torch_reference("{file_name}"{reference_encoder})
```
{folder if published else ""}"""


def _inherited(checkpoint: Checkpoint) -> str:
    lines = ["The code is Apache-2.0; the terms of the training data and of what the weights started from bind, too."]
    if checkpoint.config.stage == "dialogue" and checkpoint.config.logmel is None:
        lines.append("wav2vec2 comes from its own publisher, under its own licence.")
    if checkpoint.expression_basis == "flame":
        lines.append("FLAME is licensed by its makers and is no part of this file.")
    return "\n".join(lines)
