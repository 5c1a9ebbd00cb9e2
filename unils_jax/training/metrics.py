"""Metrics of a run on disk: metrics.jsonl and TensorBoard events, cut to the step that a run resumes from."""

import json
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from unils_jax.files import atomic_output

EVALUATED = ("val", "free")


class MetricsLog:
    """metrics.jsonl (always) and TensorBoard events. Lines after `first_step` are of a run that was cut: they go, and
    where the evaluation of that very step is still to come (`evaluated` False), so do its lines.

    Rows of the split `speed` hold wall-clock figures; all others are the same whenever and however often a run was
    interrupted. `last` holds the newest values by `split/name`. Of several processes only the first writes
    (`writes`); the others keep `last` alone.
    """

    def __init__(self, workdir: Path, first_step: int, *, evaluated: bool = True, writes: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self.last: dict[str, float] = {}
        self._tensorboard = None
        if not writes:
            return
        if self.path.exists():
            rows = [(line, _place(line)) for line in self.path.read_text().splitlines()]
            again = set() if evaluated else {(first_step, split) for split in EVALUATED}
            lines = [line for line, place in rows if place[0] <= first_step and place not in again]
            with atomic_output(self.path) as partial:
                partial.write_text("".join(line + "\n" for line in lines))
        self._tensorboard = SummaryWriter(str(workdir), purge_step=first_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line `{"step", "split", ...}`; floats are written so that they read back exactly, as null where they are
        not finite, which JSON does not know."""
        self.last |= {f"{split}/{name}": value for name, value in values.items()}
        if self._tensorboard is None:
            return
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **known}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)


def _place(line: str) -> tuple[float, str]:
    """Step and split of a line."""
    try:
        row = json.loads(line)
        return float(row["step"]), str(row["split"])
    except (ValueError, KeyError, TypeError):
        return math.inf, ""  # the torn last line of a killed run
