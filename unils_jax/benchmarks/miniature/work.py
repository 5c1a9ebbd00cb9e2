"""What a job of the miniature does: it trains a run or scores a system."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.store.reader import Store
from unils_jax.benchmarks.miniature.motions import held_out
from unils_jax.benchmarks.miniature.plan import RUNS, SYSTEMS, Job, config_file, seeds_of
from unils_jax.benchmarks.miniature.scores import score as scores_of
from unils_jax.config import load_config
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.face.standin import standin_asset
from unils_jax.files import write_text
from unils_jax.training import run as training


def train(job: Job) -> None:
    """Trains a run with its config, for `times` as many steps.

    It resumes from its newest checkpoint.
    """
    spec, folder = RUNS[job.name], job.plan.configs
    config = load_config(str(config_file(folder, spec.config)) if folder else spec.config)
    config.data.store = str(Path(job.out) / spec.store)
    config.seed = max(job.seed, 0)
    config.num_steps = max(1, round(job.plan.times * config.num_steps))
    parent = None if spec.parent is None else str(job.workdir(spec.parent))
    metrics = training.train(config.to_dict(), job.workdir(job.name), parent=parent)
    write_text(job.done, json.dumps({name: float(value) for name, value in metrics.items()}))


def score(job: Job) -> None:
    """Scores a system over all its seeds."""
    seeds = seeds_of(SYSTEMS[job.name].run, job.plan)
    files = [replace(job, seed=seed).motion(job.name) for seed in seeds]
    by_seed = [np.load(path)["motion"].astype(np.float32) for path in files]
    store = Store(Path(job.out) / "paired")
    table = scores_of(held_out(job), list(zip(*by_seed, strict=True)), mesh_of(standin_asset()), *store.statistics())
    write_text(job.done, json.dumps(table))
