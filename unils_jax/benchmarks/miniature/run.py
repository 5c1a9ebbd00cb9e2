"""The work of the miniature: data, trainings, motion and scores, side by side, and the report."""

import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

from data_pipelines.conversion.workers import run_in_processes
from data_pipelines.synthetic import dataset
from data_pipelines.synthetic.bank.bank import Bank
from unils_jax.benchmarks.miniature import report as miniature_report
from unils_jax.benchmarks.miniature.jobs import perform
from unils_jax.benchmarks.miniature.plan import MINUTES, SEED, SYSTEMS, Plan, phases
from unils_jax.errors import UserError
from unils_jax.files import atomic_output, check_output, write_text
from unils_jax.runtime import has_accelerator

log = logging.getLogger(__name__)


def run(out: Path, plan: Plan, jobs: int | None = None, bank: Bank | None = None) -> str:
    """Does all work of a plan that is not done yet; returns the table and a summary line.

    `jobs=None` takes `default_jobs`; `bank` has the voices where the plan asks for them. Raises
    UserError for a folder of another plan.
    """
    started = time.perf_counter()
    begin(out, plan)
    for line in make_data(out, plan, bank):
        log.info(line)
    work(out, plan, jobs or default_jobs())
    return write_report(out, plan, time.perf_counter() - started)


def begin(out: Path, plan: Plan) -> None:
    """Notes the plan in the folder. Raises UserError where another one is noted there."""
    saved, text = check_output(out / "plan.json"), json.dumps(asdict(plan))
    if not saved.exists():
        write_text(saved, text)
    elif saved.read_bytes() != text.encode():
        noted = " ".join(saved.read_text(errors="replace").split())[:200]
        raise UserError(f"{out} was begun with {noted}; use the same flags or another --out")


def default_jobs() -> int:
    """Returns one a core, at most six, and one where trainings would share an accelerator."""
    return 1 if has_accelerator() else min(os.cpu_count() or 1, 6)


def make_data(out: Path, plan: Plan, bank: Bank | None = None) -> list[str]:
    """Makes both stores; returns a line on each."""
    common = {"minutes": MINUTES, "seed": SEED}
    return [
        dataset.write(out / "paired", plan.conversations, bank=bank, **common),
        dataset.write(out / "unpaired", plan.people_alone, unpaired=True, bank=bank, **common),
    ]


def work(out: Path, plan: Plan, jobs: int) -> None:
    """Does the jobs that are not done yet, `jobs` at a time."""
    planned = phases(out, plan, jobs)
    # A phase needs files of the phases before it; what has a file is done, also by an earlier call.
    total = sum(map(len, planned))
    for phase in planned:
        run_in_processes(perform, [job for job in phase if not job.done.exists()], jobs, log.info)
        finished = sum(job.done.exists() for jobs_of in planned for job in jobs_of)
        log.info("--- %d of %d jobs are done", finished, total)


def write_report(out: Path, plan: Plan, seconds: float) -> str:
    """Writes MINIATURE.md, miniature.json and listening.png.

    Returns the table and the summary line.
    """
    titles = {name: system.title for name, system in SYSTEMS.items()}
    scores = {name: json.loads((out / "scores" / f"{name}.json").read_text()) for name in SYSTEMS}
    num_scored = len(next(iter(scores["unils"]["values"].values())))
    summary = (
        f"{plan.conversations} synthetic conversations of {MINUTES * 60:g} s, {num_scored} of them scored, "
        f"{plan.people_alone} people alone, {plan.seeds} training seeds, {plan.times:g} times the configs' steps."
    )
    text = miniature_report.markdown(scores, titles, summary)
    verdicts = [verdict._asdict() for verdict in miniature_report.verdicts(scores)]
    contents = {
        "MINIATURE.md": text,
        "miniature.json": json.dumps({"plan": asdict(plan), "verdicts": verdicts, "systems": scores}, indent=1) + "\n",
    }
    for name, content in contents.items():
        write_text(out / name, content)
    with atomic_output(out / "listening.png") as partial_file:
        pictured = {name: titles[name] for name, system in SYSTEMS.items() if system.pictured}
        miniature_report.picture(scores, pictured).savefig(partial_file, format="png", dpi=120)
    return f"{text}\n{out}: MINIATURE.md, miniature.json, listening.png; this time {seconds:.0f} s"
