"""`unils train`: one stage, from scratch, from a parent, or from where the workdir stands.

`unils config` is here, too: it lists the settings of a stage.
"""

import argparse
import json
import logging
from dataclasses import dataclass, field

import jax

from unils_jax.benchmarks.ahead.machines import machine
from unils_jax.cli.arguments import Request
from unils_jax.config import described, load_config
from unils_jax.errors import UserError, counted, shown
from unils_jax.runtime import local_path
from unils_jax.training.config import override_run, run_config
from unils_jax.training.distributed import EXIT_STATUS, Preempted, PreemptionGuard, join
from unils_jax.training.run import Cluster, Options, train_stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """The flags of `unils train`."""

    config: str  # name or .py file
    workdir: str
    parent: str | None = None
    dry_run: bool = False
    devices: int | None = None  # that a dry run is for; None: this machine's
    topology: str | None = None  # or the machine, `v5e:4x4`, whose memory is then known
    slices: int = 1  # of the topology
    allow_changes: bool = False
    profile_steps: str | None = None  # FIRST:LAST; None: no trace
    wandb: bool = False
    compile_cache: str | None = None  # None: where the environment says
    coordinator: str | None = None  # the three flags of several processes go together
    process_id: int | None = None
    num_processes: int | None = None
    distributed: bool = False  # all three from the environment
    overrides: list[str] = field(default_factory=list)  # a.b=value of the config

    @property
    def cluster(self) -> Cluster | None:
        """What a dry run is for; a UserError where the flags do not fit together."""
        if self.devices is None and self.topology is None:
            return None
        if not self.dry_run:
            raise UserError("--devices and --topology are for --dry_run; a run takes all devices that there are")
        if self.devices is not None and self.topology is not None:
            raise UserError("--devices and --topology both say what the dry run is for; give one of them")
        processes = self.num_processes or 1
        if self.topology is None:
            return Cluster(self.devices, processes)
        of = machine(self.topology, self.slices)
        return Cluster(of.num_devices, processes, of.chip.memory)

    @property
    def several_processes(self) -> bool:
        """Whether the flags name other processes; a UserError where they do not fit together."""
        given = {
            "--coordinator": self.coordinator,
            "--process_id": self.process_id,
            "--num_processes": self.num_processes,
        }
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given) and not self.distributed:
            return False
        if self.distributed and len(missing) < len(given):
            raise UserError("--distributed reads everything from the environment; leave the other flags away")
        if missing and not self.distributed:
            raise UserError(f"several processes need {', '.join(given)} together; {', '.join(missing)} is missing")
        if not self.distributed and not 0 <= self.process_id < self.num_processes:
            raise UserError(f"--process_id must be from 0 to {self.num_processes - 1}, got {self.process_id}")
        return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils train`, with working examples."""
    parser.description = (
        "Trains the stage that the config names. Run again with the same workdir, it resumes. Every setting can be "
        "given as --config.a.b=value. SIGTERM, SIGUSR1, SIGHUP or Ctrl-C saves and ends with exit "
        "status 75: run it again then."
    )
    parser.epilog = """examples:
  unils data synth --out data/synthetic
  unils train --config smoke/codec --workdir runs/codec --config.data.store=data/synthetic
  unils train --config smoke/prior --workdir runs/prior --parent runs/codec --config.data.store=data/synthetic"""
    parser.add_argument(
        "--config", required=True, metavar="NAME-OR-FILE", help="codec, smoke/prior, ..., or a .py file"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints and logs; an existing one resumes")
    parser.add_argument("--parent", metavar="PATH", help="checkpoint of the stage before: workdir, .pt or .safetensors")
    parser.add_argument("--dry_run", action="store_true", help="check config, data, parent and shapes, then stop")
    parser.add_argument("--devices", type=int, metavar="N", help="with --dry_run: check it for N devices")
    parser.add_argument("--topology", metavar="NAME", help="with --dry_run: check it for v5e:4x4, h100:8, ...")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="with --topology: so many of them")
    parser.add_argument(
        "--allow_changes", action="store_true", help="resume with settings or data other than the workdir's"
    )
    parser.add_argument(
        "--profile_steps", metavar="A:B", help="trace these steps into WORKDIR/profile, for xprof and Perfetto"
    )
    parser.add_argument(
        "--wandb", action="store_true", help="metrics to Weights & Biases, too; WANDB_MODE=offline keeps them here"
    )
    parser.add_argument("--compile_cache", metavar="DIR", help="where compiled programs are kept between runs")
    several = parser.add_argument_group("several processes", "each is started with the same command but --process_id")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0 that all can reach")
    several.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    several.add_argument(
        "--distributed", action="store_true", help="take all three from the environment: SLURM, Open MPI, Cloud TPU"
    )
    parser.set_defaults(run=run, overrides=[])


def _cache_folder(path: str) -> str:
    # JAX knows buckets: as a path of this machine their address would lose a slash.
    return path if "://" in path else str(local_path(path, "--compile_cache").absolute())


def run(args: argparse.Namespace) -> None:
    """Trains a stage. Raises UserError for every mistake of the user before the first step.

    Exits with status 75 where a signal stopped the run after it had saved.
    """
    request = TrainRequest.from_args(args)
    config, workdir = load_config(request.config), local_path(request.workdir, "--workdir")
    override_run(config, request.overrides)
    cluster = request.cluster
    if request.several_processes and not request.dry_run:
        join(request.coordinator, request.process_id, request.num_processes)
    if request.compile_cache:
        jax.config.update("jax_compilation_cache_dir", _cache_folder(request.compile_cache))
    with PreemptionGuard() as stop:
        try:
            options = Options(
                request.dry_run, request.allow_changes, request.profile_steps, cluster, wandb=request.wandb
            )
            metrics = train_stage(config.to_dict(), workdir, request.parent, options, stop)
        except Preempted as preempted:
            waited = f", {stop.waited_s():.1f} s after the signal" if stop.requested else ""
            log.warning("%s: %s%s; run the same command again to go on", workdir, preempted, waited)
            raise SystemExit(EXIT_STATUS) from None
    if request.dry_run:
        print(f"{request.config}: config, data, parent and shapes fit; nothing was trained")
    elif jax.process_index() == 0:
        losses = [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics]
        num_steps = json.loads((workdir / "config.json").read_text())["num_steps"]
        reached = ", ".join(losses) or "nothing was left to do"
        print(f"{shown(workdir)}: trained {counted(num_steps, 'step')}, {reached}")


@dataclass(frozen=True, kw_only=True)
class ConfigRequest(Request):
    """The flags of `unils config`."""

    name: str
    overrides: list[str] = field(default_factory=list)  # a.b=value of the config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils config`, with working examples."""
    parser.description = (
        "Lists every setting of a config with its value and what it means. "
        "`unils train` takes each as --config.a.b=value, but for a part that the model lacks (null)."
    )
    parser.epilog = "examples:\n  unils config smoke/codec\n  unils config dialogue --config.mesh.fsdp=4"
    parser.add_argument("name", metavar="NAME-OR-FILE", help="codec, smoke/prior, ..., or a .py file")
    parser.set_defaults(run=run_listing, overrides=[])


def run_listing(args: argparse.Namespace) -> None:
    """Prints the settings, a line each. Raises UserError where `unils train` would."""
    request = ConfigRequest.from_args(args)
    config = load_config(request.name)
    override_run(config, request.overrides)
    if not (config.data.store or config.data.get("stores") or config.data.get("sets")):
        config.data.store = "STORE"  # the one setting that no config has
    for name, value, comment in described(run_config(config.to_dict())):
        print(f"{name}={json.dumps(value)}".ljust(48), f" # {comment}" if comment else "", sep="")
