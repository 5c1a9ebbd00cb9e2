"""Checkpoints of a run, each written whole or not at all by Orbax, and resuming from them.

`checkpoints/<step>/` holds the items `params`, `ema`, `optimizer`, `frozen` (what the model needs
in addition to the trained parameters, without a published audio encoder; float32, as the parent
gave it), `data` (JSON: the loader's position) and `meta` (JSON: the step, the resolved config,
whether the evaluation due at the step is done, and which items of arrays there are: a model all of
which trains has no `frozen`). Every step's folder is complete. One that cannot be read is skipped,
never deleted.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from unils_jax.checkpoints.workdir import ARRAYS, DAMAGE, array_items, read_item
from unils_jax.config import leaves
from unils_jax.errors import UserError
from unils_jax.nn.params import Params
from unils_jax.runtime import local_path, no_room, room_on_disk
from unils_jax.training.config import RunConfig, run_config
from unils_jax.training.step import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What a run resumes from."""

    state: TrainState
    frozen: Params  # host arrays
    data: dict[str, Any]  # the loader's position
    evaluated: bool  # False: the run stopped before the evaluation that was due at this step


# Orbax reports the first file that fails while others are still being written.
REMOVALS, REMOVAL_S = 5, 0.2


class Checkpoints:
    """The checkpoints of one workdir.

    A context manager: leaving it waits until the last save is on disk. With several processes, all
    of them make every call at the same step, on a file system that they share.
    """

    def __init__(self, workdir: Path, config: RunConfig):
        self.config = config
        self.folder = local_path(workdir, "workdir").absolute() / "checkpoints"
        if jax.process_index() == 0:
            for unfinished in sorted(self.folder.glob("*.orbax-checkpoint-tmp*")):
                log.info("removing %s: a save that was cut short", unfinished)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        # What Orbax notes of a step beside its arrays is of no use here. Read at the start, one
        # note that is damaged or missing would cost all other steps, too.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.config.keep_checkpoints, cleanup_tmp_directories=True, lightweight_initialize=True
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._room_to_save():
            self._manager.wait_until_finished()
            self._manager.close()

    def save(
        self, step: int, state: TrainState, frozen: Params, data: dict[str, Any], *, evaluated: bool = True
    ) -> None:
        """Saves in the background under `step`; the arrays are copied before this returns.

        Does nothing where the step is saved already.

        Args:
            step: The number of batches taken.
            state: The training state.
            frozen: Host arrays, the same on every process.
            data: The loader's position, as JSON.
            evaluated: Whether the evaluation that is due at this step is done.
        """
        if step in self._manager.all_steps():
            return
        trees = (state.params, state.ema, state.opt_state, published_left_out(frozen))
        # Orbax refuses to write nothing.
        arrays = {name: tree for name, tree in zip(ARRAYS, trees, strict=True) if name != "frozen" or tree}
        meta = {"step": step, "config": self.config.to_dict(), "evaluated": evaluated, "arrays": list(arrays)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {"data": ocp.args.JsonSave(data), "meta": ocp.args.JsonSave(meta)}
        self._check_room(sum(value.nbytes for tree in arrays.values() for value in jax.tree.leaves(tree)))
        with self._room_to_save():
            self._manager.save(step, args=ocp.args.Composite(**items))

    @contextmanager
    def _room_to_save(self) -> Iterator[None]:
        """Raises a UserError where the disk is full, and removes what was written by then."""
        try:
            with room_on_disk(self.folder):
                yield
        except UserError:
            # It takes the room that is missing. Other processes may still write.
            if jax.process_count() == 1:
                self._remove_unfinished()
            raise

    def _remove_unfinished(self) -> None:
        """Removes what a failed save left, until its other files' writers have ended, too."""
        for _ in range(REMOVALS):
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            time.sleep(REMOVAL_S)

    def _check_room(self, num_bytes: int) -> None:
        """Raises UserError where a save of arrays of so many bytes cannot fit on the disk.

        It needs what the newest checkpoint takes; the first one, compressed, nine tenths of its
        bytes.
        """
        steps = self._manager.all_steps()
        needed = num_bytes * 9 // 10
        if steps:
            files = (self.folder / str(max(steps))).rglob("*")
            needed = sum(file.lstat().st_size for file in files if file.is_file())
        if shutil.disk_usage(self.folder).free < needed:
            raise UserError(
                f"cannot write a checkpoint of {needed / 1e6:.1f} MB to {self.folder}: {no_room(self.folder)}"
            )

    def restore(self, like: TrainState) -> Restored | None:
        """Restores the newest checkpoint that is whole; None where the workdir has none yet.

        `like` gives shapes, types and shardings (arrays or `jax.ShapeDtypeStruct`s): the mesh and
        the number of processes may differ from those that saved. Newer checkpoints that are
        incomplete or damaged are skipped with a warning and renamed to `damaged-<step>`, so that
        the run can save at their steps again. Raises UserError where there are checkpoints and none
        can be read; then all stay as they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            restored = self._restore(step, like)
            if isinstance(restored, Restored):
                self._set_aside(list(problems))
                return restored
            problems[step] = restored
            log.warning("WARNING: checkpoint %s is skipped: %s", self.folder / str(step), restored)
        if steps:
            reasons = "; ".join(f"{self.folder / str(step)}: {text}" for step, text in problems.items())
            raise UserError(
                f"cannot resume, no checkpoint can be read ({reasons}); copy one back whole, resume with the config "
                "that wrote them, or name a new workdir"
            )
        return None

    def _restore(self, step: int, like: TrainState) -> Restored | str:
        """Restores the checkpoint of a step, or returns what is wrong with it.

        All processes come to the same answer.
        """
        # One process reads it first: a failure that not all share would leave the others waiting
        # in Orbax.
        problem = problem_of(self.folder / str(step)) if jax.process_index() == 0 else ""
        if _any_process(bool(problem)):
            return problem or "process 0 found it damaged"
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(like.params),
            ema=ocp.args.StandardRestore(like.ema),
            optimizer=ocp.args.StandardRestore(like.opt_state),
            data=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
            has_frozen = "frozen" in array_items(restored["meta"])
            frozen = read_item(self.folder / str(step) / "frozen") if has_frozen else {}
        except DAMAGE as error:
            return _one_line(error)
        # The step is the folder's number, and no item of the checkpoint.
        where = like.step.sharding
        state = TrainState(jax.device_put(np.int32(step), where), *(restored[name] for name in ARRAYS[:3]))
        return Restored(state, frozen, dict(restored["data"]), bool(restored["meta"]["evaluated"]))

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                # A step that was damaged before has left a folder of this name.
                names = [f"damaged-{step}", *(f"damaged-{step}-{i}" for i in range(2, 1000))]
                target = next(self.folder / name for name in names if not (self.folder / name).exists())
                (self.folder / str(step)).rename(target)
                log.warning("WARNING: %s is kept as %s", self.folder / str(step), target.name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        # Its own `reload` reads the notes of all steps.
        self._manager.close()
        self._manager = self._open()


def problem_of(step_folder: Path) -> str:
    """Returns what keeps a step's folder from being resumed; "" where all can be read in full."""
    try:
        meta, _ = (json.loads((step_folder / item / "metadata").read_text()) for item in ("meta", "data"))
        for item in array_items(meta):
            read_item(step_folder / item)
    except DAMAGE as error:
        return _one_line(error)
    return ""


def has_checkpoint(workdir: Path) -> bool:
    """Returns True where a run of this workdir has saved anything.

    A save that was cut short has a longer name and does not count.
    """
    return any(entry.name.isdigit() for entry in (Path(workdir) / "checkpoints").glob("*"))


def published_left_out(params: Params) -> Params:
    """Returns the parameters without the audio encoder.

    Its weights come from the published file, as in the release's checkpoints.
    """
    return {path: value for path, value in params.items() if not path.startswith("audio_encoder/")}


def _any_process(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# Another of these is another model: its parameters cannot be taken over.
FIXED = ("stage", "model", "expression_basis")

# These change what is logged, kept or how it is computed, not what is learnt. That the data are the
# same is checked by the loader's position, wherever the store lies now.
FREE = (
    "num_steps",
    "num_epochs",
    "log_every",
    "eval_every",
    "eval_batches",
    "probe_every",
    "probe_conversations",
    "probe_clips",
    "checkpoint_every",
    "keep_checkpoints",
    "max_bad_steps",
    "audio_encoder",
    "data.store",
    "data.sets",
    "settings.resources",
    "data.stores",
    "data.num_workers",
    "data.max_bad_records",
    "mesh",
    "sampling",
    "train.remat",
    "train.remat_policy",
    "train.scan_layers",
    "train.accumulate_steps",
    "train.mesh_frames",
)


def check_workdir(config: RunConfig, workdir: Path, *, allow_changes: bool = False) -> bool:
    """Returns True where the workdir will be resumed.

    Every setting that differs from those of the workdir's config.json is logged. Raises UserError
    where config.json cannot be read, where stage, model or basis differ, and, unless
    `allow_changes`, where another setting differs that changes what is learnt.
    """
    if not has_checkpoint(workdir):
        return False
    old = leaves(_with_defaults(saved_config(workdir)))
    # Through JSON and back: tuples become the lists that the saved values are.
    new = leaves(json.loads(json.dumps(config.to_dict())))
    absent = "absent"
    changed = {
        n: (old.get(n, absent), new.get(n, absent)) for n in old | new if old.get(n, absent) != new.get(n, absent)
    }
    texts = {name: f"{name} {before!r} -> {after!r}" for name, (before, after) in changed.items()}
    fixed = [texts[name] for name in changed if _is_in(name, FIXED)]
    learnt = [texts[name] for name in changed if not _is_in(name, FIXED) and not _is_in(name, FREE)]
    if fixed:
        raise UserError(f"{workdir} was started with another {', '.join(fixed)}; use the same config or a new workdir")
    if learnt and not allow_changes:
        raise UserError(
            f"{workdir} was started with another {', '.join(learnt)}; use the same config, a new workdir, or "
            "--allow_changes to go on with the new settings"
        )
    for text in texts.values():
        if text in learnt:
            log.warning("WARNING: changed setting of %s: %s", workdir, text)
        else:
            log.info("changed setting of %s: %s", workdir, text)
    return True


def saved_config(workdir: Path) -> dict[str, Any]:
    """Reads the config of a workdir's run, from config.json or else from the newest checkpoint.

    Raises UserError where none can be read.
    """
    problems = []
    steps = [entry for entry in (workdir / "checkpoints").glob("*") if entry.name.isdigit()]
    places = [step / "meta" / "metadata" for step in sorted(steps, key=lambda step: int(step.name), reverse=True)]
    for file in (workdir / "config.json", *places):
        try:
            values = json.loads(file.read_bytes())
            values = values if file.name == "config.json" else values["config"]
            if not isinstance(values, dict) or "model" not in values:
                raise ValueError("it is no config of a run")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(f"{file} ({_one_line(error)})")
            continue
        if problems:
            log.warning("WARNING: %s cannot be read; the config is taken from %s", problems[0], file)
        return values
    raise UserError(
        f"{workdir} holds checkpoints, but its config cannot be read in {'; '.join(problems[:3])}; copy back "
        "config.json or a whole checkpoint"
    )


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Adds to a saved config, at their defaults, the settings that are younger than it."""
    try:
        return json.loads(json.dumps(run_config(values).to_dict()))
    except UserError:
        return values


def _is_in(name: str, settings: tuple[str, ...]) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)
