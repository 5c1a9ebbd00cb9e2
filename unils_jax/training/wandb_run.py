"""A run's page at Weights & Biases: the rows of metrics.jsonl, and its config.

Project, entity, mode and all else are wandb's own environment variables: WANDB_PROJECT,
WANDB_ENTITY, WANDB_MODE=offline.
"""

import importlib.util
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unils_jax.errors import UserError, install_hint, one_line, shown
from unils_jax.files import write_text
from unils_jax.training.distributed import Preempted

ID_FILE = "wandb_id"  # in the workdir: which page a resumed run goes on with
PROJECT = "unils"  # where WANDB_PROJECT names none


def check_wandb() -> None:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb needs the package wandb: {install_hint('wandb')}, or leave the flag away")


class WandbRun:
    """The page of a workdir: the first run makes it, those that resume go on with it."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        # Seconds that a run without the flag should not pay.
        import wandb  # noqa: PLC0415

        known = _saved_id(workdir)
        run_id = known or secrets.token_hex(4)
        named = {"project": os.environ.get("WANDB_PROJECT", PROJECT)}
        if known is None:  # a page that was renamed since keeps its name
            named["name"] = os.environ.get("WANDB_NAME", workdir.name)
        # Offline there is no server to ask for the page; its id alone says which one it is.
        resume = {} if os.environ.get("WANDB_MODE") in {"offline", "disabled"} else {"resume": "allow"}
        try:
            self._run = wandb.init(id=run_id, dir=str(workdir), config=dict(config), **named, **resume)
        except wandb.errors.Error as error:
            raise UserError(
                f"--wandb: {one_line(error)}; run wandb login, or set WANDB_MODE=offline and wandb sync later"
            ) from error
        if known is None:
            write_text(workdir / ID_FILE, run_id + "\n")
        self._from = self._run.step  # of a resumed page; rows before that are there

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Preempted):
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if kind is None else 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a row under `split/`; one that the page has is left out."""
        if step >= self._from:
            self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def _saved_id(workdir: Path) -> str | None:
    path = workdir / ID_FILE
    try:
        text = path.read_text(errors="replace").strip() if path.exists() else ""
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); remove it, and the run begins a new page"
        ) from error
    if text and not re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", text):
        raise UserError(f"{path} names no page ({shown(text[:40])}); remove it, and the run begins a new one")
    return text or None
