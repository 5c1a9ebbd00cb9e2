"""`unils miniature`: what the paper compares, trained with one budget and scored on conversations of known truth."""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

MINUTES, SEED = 0.6, 0


class Run(NamedTuple):
    """A training: its config, its store, and the run it starts from. A run that is not `seeded` serves all seeds."""

    config: str
    store: str
    parent: str | None = None
    seeded: bool = True


class System(NamedTuple):
    """A row of the table: what it is called, the run it decodes with (None: no model), how its motion comes, and
    whether the picture has it."""

    title: str
    run: str | None
    motion: str = "decode"
    pictured: bool = True


RUNS = {
    "codec": Run("miniature_codec", "unpaired", seeded=False),
    "codec_paired": Run("miniature_codec", "paired", seeded=False),
    "codec_artalk": Run("miniature_artalk_codec", "paired", seeded=False),
    "dualtalk": Run("miniature_dualtalk", "paired"),
    "prior": Run("miniature_prior", "unpaired", "codec"),
    "prior_paired": Run("miniature_prior", "paired", "codec_paired"),
    "no_prior": Run("miniature_scratch", "paired", "codec"),
    "artalk": Run("miniature_artalk", "paired", "codec_artalk"),
    "unils": Run("miniature_dialogue", "paired", "prior"),
    "mixed": Run("miniature_mixed", "paired", "prior"),
    "no_unpaired": Run("miniature_dialogue", "paired", "prior_paired"),
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
    """What a folder of results was made with; `configs` is the folder of the trainings' configs (empty: ours)."""

    conversations: int
    people_alone: int
    seeds: int
    times: float
    configs: str = ""


@dataclass(frozen=True)
class Job:
    """One piece of work of a phase: a training, or the motion or the scores of a system."""

    kind: str
    name: str
    seed: int
    out: str
    plan: Plan
    jobs: int

    @property
    def done(self) -> Path:
        """What is there once the job is done."""
        out = Path(self.out)
        if self.kind == "score":
            return out / "scores" / f"{self.name}.json"
        label = self.name if self.seed < 0 else f"{self.name}-{self.seed}"
        return out / "motion" / f"{label}.npz" if self.kind == "move" else out / "runs" / label / "done.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Trains UniLS, three of its ablations, ARTalk and DualTalk on synthetic conversations, each with the same "
        "budget and three seeds, and scores them with a frozen face and another take of the truth on people nobody "
        "has seen: a table with intervals beside the paper's rows, what of the paper's order holds, and a picture. "
        "Within an hour on two CPU cores; run again it continues."
    )
    parser.epilog = "example:\n  unils miniature --out runs/miniature"
    parser.add_argument("--out", default="runs/miniature", metavar="DIR", help="results folder (default: %(default)s)")
    parser.add_argument(
        "--conversations", type=int, default=200, metavar="N", help="a tenth is scored (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each (default: %(default)s)")
    parser.add_argument(
        "--times", type=float, default=1.0, metavar="X", help="train X times as long (default: %(default)s)"
    )
    parser.add_argument("--configs", metavar="DIR", help="other miniature_*.py, as for larger models (default: ours)")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: a core each, at most 6)")


def run(args: argparse.Namespace) -> None:
    """Runs all phases that are not done yet."""
    from unils_jax.errors import UserError
    from unils_jax.files import atomic_output, check_output

    problems = []
    if args.conversations < 20:
        problems.append(f"--conversations must be at least 20, got {args.conversations}")
    if args.seeds < 1:
        problems.append(f"--seeds must be at least 1, got {args.seeds}")
    if not 0 < args.times < 1000:
        problems.append(f"--times must be above 0 and below 1000, got {args.times}")
    if args.jobs is not None and args.jobs < 1:
        problems.append(f"--jobs must be at least 1, got {args.jobs}")
    if args.configs is not None:
        lacking = [
            name for name in sorted({r.config for r in RUNS.values()}) if not config_file(args.configs, name).exists()
        ]
        problems += [f"--configs {args.configs} lacks {', '.join(lacking)}"] if lacking else []
    if problems:
        raise UserError("; ".join(problems))
    out = Path(args.out)
    configs = "" if args.configs is None else str(Path(args.configs).absolute())
    plan = Plan(args.conversations, 2 * args.conversations, args.seeds, args.times, configs)
    saved = check_output(out / "plan.json")
    if not saved.exists():
        with atomic_output(saved) as partial_file:
            partial_file.write_text(json.dumps(asdict(plan)))
    elif json.loads(saved.read_text()) != asdict(plan):
        raise UserError(f"{out} was begun with {saved.read_text()}; use the same flags or another --out")
    started = time.perf_counter()
    make_data(out, plan)
    work(out, plan, args.jobs or default_jobs())
    print(report(out, plan, time.perf_counter() - started))


def config_file(folder: str, name: str) -> Path:
    """Where a config of `--configs` is."""
    return Path(folder) / f"{name}.py"


def default_jobs() -> int:
    """One where there is an accelerator, which trainings cannot share."""
    import jax

    return 1 if jax.default_backend() != "cpu" else min(os.cpu_count() or 1, 6)


def make_data(out: Path, plan: Plan) -> None:
    """Both stores, through the very command a user would give."""
    from unils_jax.commands import data

    for name, flags in (
        ("paired", ("--conversations", plan.conversations)),
        ("unpaired", ("--unpaired", plan.people_alone)),
    ):
        parser = argparse.ArgumentParser()
        data.add_arguments(parser)
        words = ["synth", "--out", out / name, "--minutes", MINUTES, "--seed", SEED, *flags]
        data.run(parser.parse_args([str(word) for word in words]))


def phases(out: Path, plan: Plan, jobs: int) -> list[list[Job]]:
    """Jobs that may run side by side, phase after phase, the long ones of each first."""
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
    """The seeds of a run, -1 for one that serves all."""
    return range(plan.seeds) if run and RUNS[run].seeded else (-1,)


def work(out: Path, plan: Plan, jobs: int) -> None:
    """Does what is not done yet, `jobs` at a time."""
    from data_pipelines.workers import run_in_processes

    planned = phases(out, plan, jobs)
    total = sum(map(len, planned))
    for phase in planned:
        left = [job for job in phase if not job.done.exists()]
        run_in_processes(perform, left, jobs, log.info) if left else None
        finished = sum(job.done.exists() for jobs_of in planned for job in jobs_of)
        log.info("--- %d of %d jobs are done", finished, total)


def perform(job: Job, at: Callable[[str], None], done: Callable[[Any], None]) -> None:
    """One job, in a process of its own cores."""
    from unils_jax.runtime import prepare

    label = " ".join((job.kind, job.name, *([f"seed {job.seed}"] if job.seed >= 0 else [])))
    at(label)
    take_cores(Path(job.out), job.jobs)
    prepare()
    logging.getLogger("unils_jax").setLevel(logging.WARNING)
    started = time.perf_counter()
    job.done.parent.mkdir(parents=True, exist_ok=True)
    {"train": train, "move": move, "score": score}[job.kind](job)
    done(f"{label}: {time.perf_counter() - started:.0f} s")


_held: list[Any] = []  # the locked file that stands for this process's cores, open as long as it lives


def take_cores(out: Path, jobs: int) -> None:
    """Binds this process to its share of the cores: two trainings on a core each are faster than one after the other on
    both."""
    if _held or jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for share in range(jobs):
        file = (out / f".cores-{share}").open("w")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.append(file)
            os.sched_setaffinity(0, cores[share % len(cores) :: jobs])
            return
        file.close()


def workdir(job: Job, run: str) -> Path:
    """Where a run of this job's seed is."""
    return Path(job.out) / "runs" / (f"{run}-{job.seed}" if RUNS[run].seeded else run)


def train(job: Job) -> None:
    """A run with its config, `times` as long; it resumes where it stands."""
    from unils_jax.commands.train import train_stage
    from unils_jax.config import load_config
    from unils_jax.files import atomic_output

    spec = RUNS[job.name]
    given = job.plan.configs
    config = load_config(str(config_file(given, spec.config)) if given else spec.config)
    config.data.store = str(Path(job.out) / spec.store)
    config.seed = max(job.seed, 0)
    config.num_steps = max(1, round(job.plan.times * config.num_steps))
    parent = None if spec.parent is None else str(workdir(job, spec.parent))
    metrics = train_stage(config.to_dict(), workdir(job, job.name), parent)
    with atomic_output(job.done) as partial_file:
        partial_file.write_text(json.dumps({name: float(value) for name, value in metrics.items()}))


def test_records(job: Job) -> list[Any]:
    """The conversations to score."""
    from data_pipelines.store import Store

    store = Store(Path(job.out) / "paired")
    return [store.read("test", i) for i in range(len(store.lengths("test")))]


def move(job: Job) -> None:
    """The motion of both people in every conversation to score, float16 [records, 2, T, 108]."""
    import numpy as np

    from unils_jax.files import atomic_output

    make = {
        "decode": decoded,
        "respond": responses,
        "respond_to_unils": responses,
        "respond_to_nobody": responses,
        "mean": mean_faces,
        "retake": retakes,
        "recode": recoded,
    }[SYSTEMS[job.name].motion]
    motion = np.stack(make(job, test_records(job))).astype(np.float16)
    with atomic_output(job.done) as partial_file, partial_file.open("wb") as file:
        np.savez(file, motion=motion)


def decoded(job: Job, records: Sequence[Any]) -> list[Any]:
    """A dialogue's."""
    from unils_jax.decode import Request, Sampling, decode_many, make_program
    from unils_jax.load import load
    from unils_jax.miniature_scores import PROTOCOL
    from unils_jax.protocol import conversation_of

    model = load(workdir(job, SYSTEMS[job.name].run)).model
    sampling, seed = Sampling(PROTOCOL.tau, PROTOCOL.cfg, PROTOCOL.top_p), PROTOCOL.seed + job.seed
    requests = []
    for i, record in enumerate(records):
        conversation = conversation_of(record, PROTOCOL)
        requests.append(Request(*conversation.audio, conversation.style, sampling=sampling, seed=seed, name=str(i)))
    motions = {int(request.name): motion for request, motion in decode_many(make_program(model, people=2), requests)}
    return [motions[i] for i in range(len(records))]


def responses(job: Job, records: Sequence[Any]) -> list[Any]:
    """DualTalk's, to the partner's true motion, to UniLS', or to none. What it lacks stands at the training mean."""
    import numpy as np

    from data_pipelines.store import Store
    from data_pipelines.windows import whole_sequence
    from unils_jax.dualtalk_decode import respond
    from unils_jax.load import load
    from unils_jax.motion import dualtalk_channels, from_dualtalk

    kind, model = SYSTEMS[job.name].motion, load(workdir(job, "dualtalk")).model
    mean, _ = Store(Path(job.out) / "paired").statistics()
    lacking = mean - from_dualtalk(dualtalk_channels(mean[None]))[0]
    seen = None
    if kind == "respond_to_unils":
        seen = np.load(Path(job.out) / "motion" / f"unils-{job.seed}.npz")["motion"].astype(np.float32)
    motions = []
    for i, record in enumerate(records):
        audio, partner = whole_sequence(record)["audio"], record.motion if seen is None else seen[i]
        partner = np.zeros_like(partner) if kind == "respond_to_nobody" else partner
        both = [respond(model, audio[p], audio[1 - p], partner[1 - p]) for p in range(2)]
        motions.append(np.stack(both) + lacking)
    return motions


def mean_faces(job: Job, records: Sequence[Any]) -> list[Any]:
    """Nobody ever moves."""
    import numpy as np

    from data_pipelines.store import Store

    mean, _ = Store(Path(job.out) / "paired").statistics()
    return [np.broadcast_to(mean, record.motion.shape) for record in records]


def retakes(job: Job, records: Sequence[Any]) -> list[Any]:
    """The same words by the same people, their faces moved anew."""
    from data_pipelines.conversation import SynthConfig
    from data_pipelines.synthetic import make_conversation, splits, who_meets

    config = SynthConfig(minutes=MINUTES)
    numbers = splits(job.plan.conversations)["test"]
    meetings = zip(numbers, who_meets(numbers, config.meetings_per_person), strict=True)
    takes = [make_conversation(config, SEED, number, people, take=1) for number, people in meetings]
    by_name = {take.name: take.motion for take in takes}
    return [by_name[record.name] for record in records]


def recoded(job: Job, records: Sequence[Any]) -> list[Any]:
    """The truth through a codec: what no generator on it can surpass."""
    import jax.numpy as jnp
    import numpy as np

    from unils_jax.load import load
    from unils_jax.motion import center_head

    codec = load(workdir(job, SYSTEMS[job.name].run)).model.codec
    return [np.asarray(codec.reconstruct(jnp.asarray(center_head(r.motion), jnp.float32))) for r in records]


def score(job: Job) -> None:
    """The figures of a system over all its seeds."""
    import numpy as np

    from data_pipelines.store import Store
    from unils_jax import miniature_scores
    from unils_jax.files import atomic_output
    from unils_jax.models.standin import standin_asset
    from unils_jax.scoring import mesh_of

    seeds = seeds_of(SYSTEMS[job.name].run, job.plan)
    files = [Job("move", job.name, seed, job.out, job.plan, job.jobs).done for seed in seeds]
    by_seed = [np.load(path)["motion"].astype(np.float32) for path in files]
    store = Store(Path(job.out) / "paired")
    scores = miniature_scores.score(
        test_records(job), list(zip(*by_seed, strict=True)), mesh_of(standin_asset()), *store.statistics()
    )
    with atomic_output(job.done) as partial_file:
        partial_file.write_text(json.dumps(scores))


def report(out: Path, plan: Plan, seconds: float) -> str:
    """Writes MINIATURE.md, miniature.json and listening.png; returns the table and the summary line."""
    from unils_jax import miniature_report
    from unils_jax.files import atomic_output

    titles = {name: system.title for name, system in SYSTEMS.items()}
    scores = {name: json.loads((out / "scores" / f"{name}.json").read_text()) for name in SYSTEMS}
    held_out = len(next(iter(scores["unils"]["values"].values())))
    summary = (
        f"{plan.conversations} synthetic conversations of {MINUTES * 60:g} s, {held_out} of them scored, "
        f"{plan.people_alone} people alone, {plan.seeds} training seeds, {plan.times:g} times the configs' steps."
    )
    text = miniature_report.markdown(scores, titles, summary)
    verdicts = [verdict._asdict() for verdict in miniature_report.verdicts(scores)]
    contents = {
        "MINIATURE.md": text,
        "miniature.json": json.dumps({"plan": asdict(plan), "verdicts": verdicts, "systems": scores}, indent=1) + "\n",
    }
    for name, content in contents.items():
        with atomic_output(out / name) as partial_file:
            partial_file.write_text(content, encoding="utf-8")
    with atomic_output(out / "listening.png") as partial_file:
        pictured = {name: titles[name] for name, system in SYSTEMS.items() if system.pictured}
        miniature_report.picture(scores, pictured).savefig(partial_file, format="png", dpi=120)
    return f"{text}\n{out}: MINIATURE.md, miniature.json, listening.png; this time {seconds:.0f} s"
