"""Whether a workdir is resumed, and which settings may be others than those it was started with."""

import json
import logging
from pathlib import Path
from typing import Any

from unils_jax.errors import UserError
from unils_jax.training.checkpoint import has_checkpoint
from unils_jax.training.config import RunConfig, run_config

log = logging.getLogger(__name__)

# Another of these is another model: its parameters cannot be taken over.
FIXED = ("stage", "model", "expression_basis")
# These change what is logged, kept or how it is computed, not what is learnt. That the data are the same is checked by
# the loader's position, wherever the store stands now.
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
    "talker.resources",
    "data.stores",
    "data.num_workers",
    "data.max_bad_records",
    "mesh",
    "train.remat",
    "train.scan_layers",
    "train.accumulate_steps",
    "train.mesh_frames",
)


def check_workdir(config: RunConfig, workdir: Path, *, allow_changes: bool = False) -> bool:
    """Whether the workdir will be resumed.

    Every setting that differs from those of the workdir's config.json is logged. Raises UserError where config.json
    cannot be read, and where a setting differs that changes what is learnt, unless `allow_changes`; where stage, model
    or basis differ, in any case.
    """
    if not has_checkpoint(workdir):
        return False
    saved = workdir / "config.json"
    try:
        old = _leaves(_with_defaults(json.loads(saved.read_text())))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{workdir} holds checkpoints, but {saved} cannot be read ({error}); name a new workdir"
        ) from None
    new = _leaves(json.loads(json.dumps(config.to_dict())))
    absent = "absent"
    changed = {
        n: (old.get(n, absent), new.get(n, absent)) for n in old | new if old.get(n, absent) != new.get(n, absent)
    }
    told = {name: f"{name} {before!r} -> {after!r}" for name, (before, after) in changed.items()}
    fixed = [told[name] for name in changed if _of(name, FIXED)]
    learnt = [told[name] for name in changed if not _of(name, FIXED) and not _of(name, FREE)]
    if fixed:
        raise UserError(f"{workdir} was started with another {', '.join(fixed)}; use the same config or a new workdir")
    if learnt and not allow_changes:
        raise UserError(
            f"{workdir} was started with another {', '.join(learnt)}; use the same config, a new workdir, or "
            "--allow_changes to go on with the new settings"
        )
    for text in told.values():
        if text in learnt:
            log.warning("WARNING: changed setting of %s: %s", workdir, text)
        else:
            log.info("changed setting of %s: %s", workdir, text)
    return True


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the settings that it lacks, which are younger than it, at their defaults."""
    try:
        return json.loads(json.dumps(run_config(values).to_dict()))
    except UserError:
        return values


def _of(name: str, settings: tuple[str, ...]) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
