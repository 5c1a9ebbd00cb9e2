"""Checkpoints of our own training runs: a workdir, or the folder of one step."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from unils_jax.checkpoints.checkpoint import Checkpoint, param_shapes
from unils_jax.checkpoints.torch_keys import check_params
from unils_jax.config import from_dict
from unils_jax.errors import UserError, one_line
from unils_jax.inference.sampling import Sampling
from unils_jax.motion import BASES
from unils_jax.nn.params import Params
from unils_jax.runtime import local_path
from unils_jax.systems.registry import SYSTEMS, current_run

ARRAYS = ("params", "ema", "optimizer", "frozen")  # items of arrays in our checkpoints
# What Orbax, TensorStore and JSON raise on files that are missing, cut short, nested without end or
# of another shape.
DAMAGE = (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError, RecursionError)


def _load_ours(path: Path, weights: str) -> Checkpoint:
    step_folder = _newest_step(path)
    meta = _read_meta(step_folder)
    run = current_run(meta["config"])
    if not isinstance(run["system"], str) or run["system"] not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise UserError(f"{step_folder} is a model of the system {run['system']!r:.40}; known are {known}")
    system = SYSTEMS[run["system"]]
    config = from_dict(system.config, run["model"], "model")
    restored: Params = {}
    for item in (name for name in (weights, "frozen") if name in array_items(meta)):
        try:
            restored |= read_item(local_path(step_folder, "checkpoint").absolute() / item)
        except DAMAGE as error:
            raise _damaged(step_folder, item, error) from None
    shapes = param_shapes(system, config, len(restored), str(step_folder))
    expected = {path: shape for path, shape in shapes.items() if not path.startswith("audio_encoder/")}
    check_params(expected, restored, str(step_folder))
    source = {"checkpoint": str(path), "step": meta["step"], "stage": config.stage}
    sampling = from_dict(Sampling, run.get("sampling", {}), "sampling")
    return Checkpoint(config, restored, run["expression_basis"], source, run=run, sampling=sampling)


def array_items(meta: Mapping[str, Any]) -> Sequence[str]:
    """Returns the names of the items of arrays; all of them where `meta` does not list any.

    Raises ValueError where it lists anything else.
    """
    listed = meta.get("arrays", ARRAYS)
    if not isinstance(listed, list | tuple) or not all(name in ARRAYS for name in listed):
        raise ValueError(f"arrays must be of {', '.join(ARRAYS)}, got {str(listed)[:80]}")
    return listed


class _PatientHandler(ocp.type_handlers.NumpyHandler):
    """Reads arrays as Orbax does, but ends after the last read even where one has failed.

    Orbax raises at the first failure and closes its event loop, on which the reads that are still
    under way then report "Event loop is closed" from threads. `stored_type` is Orbax's name of the
    type that was saved.
    """

    def __init__(self, stored_type: str) -> None:
        super().__init__()
        self.stored_type = stored_type
        self._array_metadata_store = None  # as in Orbax's own handlers; without it Orbax warns

    def typestr(self) -> str:
        """Returns the name by which Orbax finds the handler of a stored array."""
        return self.stored_type

    async def deserialize(
        self, infos: Sequence[ocp.type_handlers.ParamInfo], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[np.ndarray]:
        """Returns the arrays. Raises the first error after all reads have ended."""
        read = super().deserialize
        reads = [read([info], [arg]) for info, arg in zip(infos, args or [None] * len(infos), strict=True)]
        results = await asyncio.gather(*reads, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [array for arrays in results for array in arrays]


def read_item(folder: Path) -> Params:
    """Returns the arrays of one item of an Orbax checkpoint by path, however they were sharded.

    The keys of a nested item are joined by dots; an optimiser's empty nodes have no array.
    """
    # The handler itself: a Checkpointer would warn about an item that is read alone.
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, _PatientHandler("jax.Array")), (np.ndarray, _PatientHandler("np.ndarray"))
    )
    restored = ocp.PyTreeCheckpointHandler(type_handler_registry=registry).restore(folder)
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return {jax.tree_util.keystr(path, simple=True, separator="."): array for path, array in leaves}


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
        array_items(meta)
        return meta
    except DAMAGE as error:
        raise _damaged(step_folder, "meta", error) from None


def _damaged(step_folder: Path, item: str, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {step_folder} is incomplete or damaged at {item!r} ({one_line(error)}); "
        "copy it again or use another step"
    )
