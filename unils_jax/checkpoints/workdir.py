"""Checkpoints of our own training runs: a workdir, or the folder of one step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorstore as ts

from unils_jax.checkpoints.checkpoint import Checkpoint, param_shapes
from unils_jax.checkpoints.torch_keys import check_params
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.motion import BASES
from unils_jax.nn.params import Params
from unils_jax.systems.registry import SYSTEMS, current_run

ARRAYS = ("params", "ema", "optimizer", "frozen")  # items of arrays in our checkpoints


def _load_ours(path: Path, weights: str) -> Checkpoint:
    step_folder = _newest_step(path)
    meta = _read_meta(step_folder)
    run = current_run(meta["config"])
    if run["system"] not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise UserError(f"{step_folder} is a model of the system {run['system']!r:.40}; known are {known}")
    system = SYSTEMS[run["system"]]
    config = from_dict(system.config, run["model"], "model")
    expected = {p: s for p, s in param_shapes(system, config).items() if not p.startswith("audio_encoder/")}
    restored: Params = {}
    for item in (name for name in (weights, "frozen") if name in array_items(meta)):
        try:
            restored |= read_item(step_folder.absolute() / item)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(step_folder, item, error) from None
    check_params(expected, restored, str(step_folder))
    source = {"checkpoint": str(path), "step": meta["step"], "stage": config.stage}
    return Checkpoint(config, restored, run["expression_basis"], source, run=run)


def array_items(meta: Mapping[str, Any]) -> Sequence[str]:
    """The items of arrays that a checkpoint holds, by its `meta`; older ones do not say and have all."""
    return meta.get("arrays", ARRAYS)


def read_item(folder: Path) -> Params:
    """The arrays of one item of an Orbax checkpoint as NumPy arrays, wherever they were sharded; the keys of a nested
    item are joined by dots.

    Read as Orbax stores them, zarr arrays in one OCDBT, with TensorStore itself: Orbax's own reader warns about items
    that are read alone, and where a file is damaged its threads print tracebacks after the error.
    """
    layout = json.loads((folder / "_METADATA").read_text())
    driver, context = "zarr3" if layout["use_zarr3"] else "zarr", ts.Context()
    base = {"driver": "file", "path": f"{folder}/"}
    # An optimiser without a state of its own leaves an empty node, which has no array.
    entries = [e for e in layout["tree_metadata"].values() if not e["value_metadata"]["skip_deserialize"]]
    names = [".".join(part["key"] for part in entry["key_metadata"]) for entry in entries]
    specs = {n: {"driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{n}/"}} for n in names}
    opened = {name: ts.open(spec, open=True, context=context) for name, spec in specs.items()}
    values = {name: store.result().read() for name, store in opened.items()}
    return {name: value.result() for name, value in values.items()}


def _newest_step(path: Path) -> Path:
    if (path / "meta").is_dir():
        return path
    steps = [entry for entry in (path / "checkpoints").glob("*") if entry.name.isdigit() and (entry / "meta").is_dir()]
    if not steps:
        raise UserError(f"{path} holds no checkpoint; give a workdir of `unils train` after its first save")
    return max(steps, key=lambda entry: int(entry.name))


def _read_meta(step_folder: Path) -> Mapping[str, Any]:
    try:
        meta = json.loads((step_folder / "meta" / "metadata").read_text())
        run = meta["config"]
        if not (type(meta["step"]) is int and hasattr(run["model"], "items") and run["expression_basis"] in BASES):
            raise ValueError("it lacks step, model or expression_basis")
        return meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(step_folder, "meta", error) from None


def _damaged(step_folder: Path, item: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"checkpoint {step_folder} is incomplete or damaged at {item!r} ({text}); copy it again or use another step"
    )
