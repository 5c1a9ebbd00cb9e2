"""`unils miniature`: what the paper compares, trained with one budget and scored on conversations of known truth."""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unils_jax.benchmarks.miniature.plan import MINUTES, RUNS, SEED, SYSTEMS, Job, Plan, phases, seeds_of

log = logging.getLogger(__name__)


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
        problems += (
            [f"--configs {args.configs} lacks {', '.join(name.removeprefix('miniature/') for name in lacking)}"]
            if lacking
            else []
        )
    if problems:
        raise UserError("; ".join(problems))
    out = Path(args.out)
    configs = "" if args.configs is None else str(Path(args.configs).absolute())
    plan = Plan(args.conversations, 2 * args.conversations, args.seeds, args.times, configs)
    saved, told = check_output(out / "plan.json"), json.dumps(asdict(plan))
    if not saved.exists():
        with atomic_output(saved) as partial_file:
            partial_file.write_text(told)
    elif saved.read_text() != told:
        raise UserError(f"{out} was begun with {saved.read_text()}; use the same flags or another --out")
    started = time.perf_counter()
    make_data(out, plan)
    work(out, plan, args.jobs or default_jobs())
    print(report(out, plan, time.perf_counter() - started))


def config_file(folder: str, name: str) -> Path:
    """Where a config of `--configs` is."""
    return Path(folder) / f"{name.removeprefix('miniature/')}.py"


def default_jobs() -> int:
    """One where there is an accelerator, which trainings cannot share."""
    from unils_jax.runtime import has_accelerator

    return 1 if has_accelerator() else min(os.cpu_count() or 1, 6)


def make_data(out: Path, plan: Plan) -> None:
    """Both stores, through the very command a user would give."""
    from unils_jax.cli import data

    for name, flags in (
        ("paired", ("--conversations", plan.conversations)),
        ("unpaired", ("--unpaired", plan.people_alone)),
    ):
        parser = argparse.ArgumentParser()
        data.add_arguments(parser)
        words = ["synth", "--out", out / name, "--minutes", MINUTES, "--seed", SEED, *flags]
        data.run(parser.parse_args([str(word) for word in words]))


def work(out: Path, plan: Plan, jobs: int) -> None:
    """Does what is not done yet, `jobs` at a time."""
    from data_pipelines.conversion.workers import run_in_processes

    planned = phases(out, plan, jobs)
    total = sum(map(len, planned))
    for phase in planned:
        run_in_processes(perform, [job for job in phase if not job.done.exists()], jobs, log.info)
        finished = sum(job.done.exists() for jobs_of in planned for job in jobs_of)
        log.info("--- %d of %d jobs are done", finished, total)


def perform(job: Job, at: Callable[[str], None], done: Callable[[Any], None]) -> None:
    """One job, in a process of its own cores."""
    from unils_jax.benchmarks.miniature import motions as miniature_motion
    from unils_jax.runtime import prepare

    label = " ".join((job.kind, job.name, *([f"seed {job.seed}"] if job.seed >= 0 else [])))
    at(label)
    take_cores(Path(job.out), job.jobs)
    prepare()
    logging.getLogger("unils_jax").setLevel(logging.WARNING)
    started = time.perf_counter()
    job.done.parent.mkdir(parents=True, exist_ok=True)
    {"train": train, "move": miniature_motion.move, "score": score}[job.kind](job)
    done(f"{label}: {time.perf_counter() - started:.0f} s")


_held: list[Any] = []  # the locked file that stands for this process's cores, open as long as it lives


def take_cores(out: Path, jobs: int) -> None:
    """Binds this process to its share of the cores, so that those side by side do not wait for each other's threads."""
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


def train(job: Job) -> None:
    """A run with its config, `times` as long; it resumes where it stands."""
    from unils_jax.config import load_config
    from unils_jax.files import atomic_output
    from unils_jax.training.run import train_stage

    spec = RUNS[job.name]
    given = job.plan.configs
    config = load_config(str(config_file(given, spec.config)) if given else spec.config)
    config.data.store = str(Path(job.out) / spec.store)
    config.seed = max(job.seed, 0)
    config.num_steps = max(1, round(job.plan.times * config.num_steps))
    parent = None if spec.parent is None else str(job.workdir(spec.parent))
    metrics = train_stage(config.to_dict(), job.workdir(job.name), parent)
    with atomic_output(job.done) as partial_file:
        partial_file.write_text(json.dumps({name: float(value) for name, value in metrics.items()}))


def score(job: Job) -> None:
    """The figures of a system over all its seeds."""
    import numpy as np

    from data_pipelines.store.reader import Store
    from unils_jax.benchmarks.miniature import scores as miniature_scores
    from unils_jax.benchmarks.miniature.motions import held_out
    from unils_jax.evaluation.scoring import mesh_of
    from unils_jax.face.standin import standin_asset
    from unils_jax.files import atomic_output

    seeds = seeds_of(SYSTEMS[job.name].run, job.plan)
    files = [replace(job, seed=seed).motion(job.name) for seed in seeds]
    by_seed = [np.load(path)["motion"].astype(np.float32) for path in files]
    store = Store(Path(job.out) / "paired")
    scores = miniature_scores.score(
        held_out(job), list(zip(*by_seed, strict=True)), mesh_of(standin_asset()), *store.statistics()
    )
    with atomic_output(job.done) as partial_file:
        partial_file.write_text(json.dumps(scores))


def report(out: Path, plan: Plan, seconds: float) -> str:
    """Writes MINIATURE.md, miniature.json and listening.png; returns the table and the summary line."""
    from unils_jax.benchmarks.miniature import report as miniature_report
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
