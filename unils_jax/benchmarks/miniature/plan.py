"""What the miniature compares: trainings, systems, and the order in which all of it can be done."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

MINUTES, SEED = 0.6, 0


class Run(NamedTuple):
    """One training."""

    config: str
    store: str  # "paired" or "unpaired"
    parent: str | None = None  # the run it starts from; None: from scratch
    seeded: bool = True  # False: one run serves all seeds


class System(NamedTuple):
    """A row of the table."""

    title: str
    run: str | None  # the run that gives its motion; None: no model
    motion: str = "decode"  # how the motion is made, a key of `motions.MAKERS`
    pictured: bool = True  # whether the picture of listeners has it


BASELINE = "dualtalk"  # of the paper's table, with the partner's true motion
BASELINE_NOTE = "DualTalk has no expression beyond the first 50 channels and no eyes; they stand at the training mean."

RUNS = {
    "codec": Run("miniature/codec", "unpaired", seeded=False),
    "codec_paired": Run("miniature/codec", "paired", seeded=False),
    "codec_artalk": Run("miniature/artalk_codec", "paired", seeded=False),
    "dualtalk": Run("miniature/dualtalk", "paired"),
    "prior": Run("miniature/prior", "unpaired", "codec"),
    "prior_paired": Run("miniature/prior", "paired", "codec_paired"),
    "no_prior": Run("miniature/scratch", "paired", "codec"),
    "artalk": Run("miniature/artalk", "paired", "codec_artalk"),
    "unils": Run("miniature/dialogue", "paired", "prior"),
    "mixed": Run("miniature/mixed", "paired", "prior"),
    "no_unpaired": Run("miniature/dialogue", "paired", "prior_paired"),
}
SYSTEMS = {
    "unils": System("UniLS", "unils"),
    "no_prior": System("UniLS without the audio-free stage", "no_prior"),
    "mixed": System("UniLS, one cross-attention, mixed audio", "mixed"),
    "no_unpaired": System("UniLS without the unpaired set", "no_unpaired"),
    "artalk": System("ARTalk", "artalk"),
    "dualtalk": System("DualTalk, partner's true motion", "dualtalk", "respond"),
    "dualtalk_chain": System("DualTalk, partner's motion by UniLS", "dualtalk", "respond_to_unils", False),
    "dualtalk_alone": System("DualTalk, partner who does not move", "dualtalk", "respond_to_nobody", False),
    "mean": System("frozen mean face", None, "mean"),
    "retake": System("truth, another take", None, "retake"),
    "recoded": System("truth through UniLS' codec", "codec", "recode", False),
    "recoded_artalk": System("truth through ARTalk's codec", "codec_artalk", "recode", False),
}


@dataclass(frozen=True)
class Plan:
    """What a folder of results is made with; it is saved there as JSON."""

    conversations: int  # of the paired store
    people_alone: int  # of the unpaired store
    seeds: int  # trainings of each system
    times: float  # factor on the configs' steps
    configs: str = ""  # folder of the trainings' configs; "": ours
    voices: str = "builtin"  # of the conversations: "builtin" or "bank", the user's cached one


@dataclass(frozen=True)
class Job:
    """One piece of work of a phase: a training, or the motion or the scores of a system."""

    kind: str  # "train", "move" or "score"
    name: str  # a key of RUNS to train, else of SYSTEMS
    seed: int  # -1: one job serves all seeds
    out: str  # folder of all results
    plan: Plan
    jobs: int  # so many share the cores

    @property
    def done(self) -> Path:
        """The file that exists once the job is done."""
        if self.kind == "train":
            return self.workdir(self.name) / "done.json"
        return self.motion(self.name) if self.kind == "move" else Path(self.out) / "scores" / f"{self.name}.json"

    def workdir(self, run: str) -> Path:
        """Returns the workdir of a run of this job's seed."""
        return Path(self.out) / "runs" / self._label(run, run)

    def motion(self, system: str) -> Path:
        """Returns the file of a system's motion, of this job's seed."""
        return Path(self.out) / "motion" / f"{self._label(system, SYSTEMS[system].run)}.npz"

    def _label(self, name: str, run: str | None) -> str:
        return f"{name}-{self.seed}" if is_seeded(run) else name


def config_file(folder: str, name: str) -> Path:
    """Returns the file of a config in a folder of configs other than ours."""
    return Path(folder) / f"{name.removeprefix('miniature/')}.py"


def phases(out: Path, plan: Plan, jobs: int) -> list[list[Job]]:
    """Returns the jobs that may run at the same time, phase after phase, the long ones first."""
    make = partial(Job, out=str(out), plan=plan, jobs=jobs)

    def trainings(*names: str) -> list[Job]:
        return [make("train", name, seed) for name in names for seed in seeds_of(name, plan)]

    def motions(*names: str) -> list[Job]:
        return [make("move", name, seed) for name in names for seed in seeds_of(SYSTEMS[name].run, plan)]

    return [
        trainings("codec", "codec_paired", "codec_artalk", "dualtalk"),
        trainings("no_prior", "artalk", "prior", "prior_paired"),
        trainings("unils", "mixed", "no_unpaired"),
        motions(*(name for name in SYSTEMS if name != "dualtalk_chain")),
        motions("dualtalk_chain"),
        [make("score", name, -1) for name in SYSTEMS],
    ]


def seeds_of(run: str | None, plan: Plan) -> Sequence[int]:
    """Returns the seeds of a run; (-1,) for one that serves all seeds."""
    return range(plan.seeds) if is_seeded(run) else (-1,)


def is_seeded(run: str | None) -> bool:
    """Returns whether there is one run for every seed."""
    return run is not None and RUNS[run].seeded
