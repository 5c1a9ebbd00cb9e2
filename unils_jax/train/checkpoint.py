"""Checkpoints of a run: parameters, average, moments, data position; written whole or not at all by Orbax.

`checkpoints/<step>/` holds the items `params`, `ema`, `optimizer`, `frozen` (what the model needs beside the trained
parameters, but for a published audio encoder), `data` and `meta` (JSON: the step and the resolved config).
"""

import logging
from pathlib import Path
from typing import Any

import grain.checkpoint as grain_checkpoint
import jax
import orbax.checkpoint as ocp

from unils_jax.errors import UserError
from unils_jax.nn.params import Params
from unils_jax.train.config import RunConfig
from unils_jax.train.step import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir. A context manager: leaving it waits until the last save is on disk."""

    def __init__(self, workdir: Path, config: RunConfig):
        self.config = config
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep_checkpoints)
        self._manager = ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step on disk, None in a fresh workdir."""
        return self._manager.latest_step()

    def save(self, state: TrainState, frozen: Params, data: Any) -> None:
        """Saves in the background under the state's step; the arrays are copied before this returns."""
        step = int(state.step)
        meta = {"step": step, "config": self.config.to_dict()}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            ema=ocp.args.StandardSave(state.ema),
            optimizer=ocp.args.StandardSave(state.opt_state),
            frozen=ocp.args.StandardSave(published_left_out(frozen)),
            data=grain_checkpoint.CheckpointSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items)

    def restore(self, state: TrainState, frozen: Params, data: Any) -> tuple[TrainState, Params]:
        """The newest state and frozen parameters, in the shapes of the given ones; sets the data iterator.

        Raises UserError where the checkpoint is damaged or of other shapes.
        """
        step = self.latest_step()
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(state.params),
            ema=ocp.args.StandardRestore(state.ema),
            optimizer=ocp.args.StandardRestore(state.opt_state),
            frozen=ocp.args.StandardRestore(published_left_out(frozen)),
            data=grain_checkpoint.CheckpointRestore(data),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            folder, text = self._manager.directory / str(step), " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot resume from {folder} ({text}); remove that folder to resume from the step before it"
            ) from error
        step_array = jax.numpy.int32(step)
        state = TrainState(step_array, restored["params"], restored["ema"], restored["optimizer"])
        return state, {**frozen, **restored["frozen"]}


def published_left_out(params: Params) -> Params:
    """Without the audio encoder: its weights come from the published file, as in the release's checkpoints."""
    return {path: value for path, value in params.items() if not path.startswith("audio_encoder/")}
