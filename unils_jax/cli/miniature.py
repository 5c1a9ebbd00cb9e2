"""`unils miniature`: trains and scores what the paper compares, on synthetic conversations."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from unils_jax.benchmarks.miniature.plan import RUNS, Plan, config_file
from unils_jax.benchmarks.miniature.run import run as run_plan
from unils_jax.cli.arguments import Request
from unils_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MiniatureRequest(Request):
    """The flags of `unils miniature`."""

    out: str = "runs/miniature"
    conversations: int = 200
    seeds: int = 3  # trainings of each system
    times: float = 1.0  # factor on the steps of every training
    configs: str | None = None  # folder of other configs; None: ours
    jobs: int | None = None  # trainings at a time; None: a core each, at most 6

    def __post_init__(self):
        problems = []
        if self.conversations < 20:
            problems.append(f"--conversations must be at least 20, got {self.conversations}")
        if self.seeds < 1:
            problems.append(f"--seeds must be at least 1, got {self.seeds}")
        if not 0 < self.times < 1000:
            problems.append(f"--times must be above 0 and below 1000, got {self.times}")
        if self.jobs is not None and self.jobs < 1:
            problems.append(f"--jobs must be at least 1, got {self.jobs}")
        if self.configs is not None:
            files = [config_file(self.configs, name) for name in sorted({run.config for run in RUNS.values()})]
            if missing := [file.stem for file in files if not file.exists()]:
                problems.append(f"--configs {self.configs} lacks {', '.join(missing)}")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def plan(self) -> Plan:
        """What is compared: as many people alone as the conversations have people."""
        configs = "" if self.configs is None else str(Path(self.configs).absolute())
        return Plan(self.conversations, 2 * self.conversations, self.seeds, self.times, configs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils miniature`, with a working example."""
    parser.description = (
        "Trains UniLS, three of its ablations and two other systems on synthetic conversations, each with the same "
        "budget and three seeds, and scores them with a frozen face and another take of the truth on people nobody "
        "has seen: a table with intervals beside the paper's rows, what of the paper's order holds, and a picture. "
        "Within an hour on two CPU cores; run again it continues."
    )
    parser.epilog = "example:\n  unils miniature --out runs/miniature"
    defaults = MiniatureRequest
    parser.add_argument("--out", default=defaults.out, metavar="DIR", help="results folder (default: %(default)s)")
    parser.add_argument(
        "--conversations",
        type=int,
        default=defaults.conversations,
        metavar="N",
        help="a tenth is scored (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=defaults.seeds, metavar="N", help="trainings of each (default: %(default)s)"
    )
    parser.add_argument(
        "--times", type=float, default=defaults.times, metavar="X", help="train X times as long (default: %(default)s)"
    )
    parser.add_argument("--configs", metavar="DIR", help="other miniature configs, as for larger models")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: a core each, at most 6)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does all work that is not done yet and prints the table."""
    request = MiniatureRequest.from_args(args)
    print(run_plan(Path(request.out), request.plan, request.jobs))
