"""Workdirs: loaded as a checkpoint, resumed, and asked for what they say of a run."""

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from hostile.reader import Reader
from tiny_models import CONFIGS

from data_pipelines.loader import LoaderIterator
from data_pipelines.sources.tracking import TrackOptions
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.model_card import last_metrics
from unils_jax.evaluation.analyses.study import analyse, read_answers, table
from unils_jax.evaluation.motion_files import FolderMotion
from unils_jax.evaluation.protocols import PROTOCOLS
from unils_jax.evaluation.unils_metrics import Mesh
from unils_jax.models.unils import UniLS
from unils_jax.motion import save_motion
from unils_jax.nn.params import abstract
from unils_jax.systems.registry import STAGES
from unils_jax.training.checkpoint import Checkpoints, check_workdir
from unils_jax.training.config import DataConfig, RunConfig, run_config
from unils_jax.training.loop import check_position, first_state, state_shapes
from unils_jax.training.metrics import KeptRows, MetricsLog
from unils_jax.training.run import _saved_model
from unils_jax.training.sharding import make_mesh
from unils_jax.training.wandb_run import ID_FILE, _saved_id

# It writes, and takes longer to start than all reading.
sys.modules["tensorboardX"] = SimpleNamespace(SummaryWriter=lambda *_, **__: SimpleNamespace(close=lambda: None))

CONFIG = run_config(RunConfig("codec", num_steps=5, data=DataConfig("-", 2), model=CONFIGS["codec"]).to_dict())
STAGE = STAGES["codec"]
BATCHES = LoaderIterator(SimpleNamespace(order="abc"), 0)


@cache
def shapes() -> dict:
    return abstract(lambda rngs: UniLS(CONFIG.model, rngs=rngs))[1]


def few() -> dict:
    """Some of the model's arrays, trained and frozen: as many files as a resumed run has kinds of."""
    chosen = ("codec/motion_mean", "codec/encoder/inp/kernel", "codec/encoder/inp/bias")
    return {path: shapes()[path] for path in chosen}


@cache
def state_like():
    return state_shapes(STAGE, few(), CONFIG, make_mesh(CONFIG.mesh))


def make_workdir(folder: Path, chosen: dict) -> None:
    """A run of a tiny codec that has saved twice."""
    workdir = folder / "run"
    rng = np.random.default_rng(0)
    params = {path: rng.standard_normal(shape.shape).astype(np.float32) for path, shape in chosen.items()}
    first = first_state(STAGE, params, CONFIG, make_mesh(CONFIG.mesh))
    with Checkpoints(workdir, CONFIG) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, first.state, first.frozen, {"step": step, "order": "abc"})
    (workdir / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (workdir / ID_FILE).write_text("abcd1234\n")
    rows = [{"step": step, "split": split, "loss": 1.5} for step in (1, 2) for split in ("train", "val")]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_workdir(folder: Path) -> None:
    """Loads the averaged weights, as decode, evaluation and export do."""
    checkpoint = load(folder / "run")
    last_metrics(folder / "run", checkpoint.source["step"])


def resume(folder: Path) -> None:
    """Goes through all that `unils train` reads of a workdir before its first step."""
    workdir = folder / "run"
    _saved_model(workdir)
    _saved_id(workdir)
    if not check_workdir(CONFIG, workdir):
        return
    with Checkpoints(workdir, CONFIG) as checkpoints:
        restored = checkpoints.restore(state_like())
    if restored is not None:
        check_position(BATCHES, restored)
        with MetricsLog(workdir, KeptRows(int(restored.state.step), restored.evaluated)):
            jax.block_until_ready(restored.state.params)


def make_answers(folder: Path) -> None:
    """One rater's answers to a study of two clips and an attention check."""
    choices = {"lips": "left", "head": "right"}
    asked = [("one", None, "a", "b"), ("two", None, "b", "a"), ("one", "a", "moving", "frozen")]
    given = [
        {"clip": clip, "check": check, "left": left, "right": right, "choices": choices, "seconds": 9.5}
        for clip, check, left, right in asked
    ]
    study = {"id": "s", "systems": {"a": "ours", "b": "theirs"}, "seed": 0, "clips": ["one", "two"], "num_checks": 1}
    study["criteria"] = list(choices)
    answers = {"format": "unils-study-answers", "study": study, "rater": "someone", "answers": given}
    (folder / "someone.json").write_text(json.dumps(answers))


def read_study(folder: Path) -> None:
    """Reads and analyses them, as `unils study --answers` does."""
    table(analyse(read_answers(folder)))


REST = np.random.default_rng(0).standard_normal((120, 3)).astype(np.float32) * 0.08
MESH = Mesh(lambda motion: np.repeat(REST[None], len(motion), 0), np.arange(8), np.arange(60, 120))


def make_scored(folder: Path) -> None:
    """A record in our file, one in another system's parameters, one in vertices."""
    motion = (np.random.default_rng(0).standard_normal((1, 30, 108)) * 0.1).astype(np.float32)
    save_motion(folder / "a.npz", motion, expression_basis="flame", source={"window_frames": 25})
    np.savez(folder / "b.npz", exp=motion[0, :, :50], pose=motion[0, :, 98:104], fps=30.0)
    np.save(folder / "c.npy", np.repeat(REST[None], 30, 0))


def read_scored(folder: Path) -> None:
    """Reads them as `unils evaluate --motion` does."""
    store = SimpleNamespace(expression_basis="flame", path="store")
    for path in sorted(folder.iterdir()):
        motion = FolderMotion(folder, store, TrackOptions())
        motion.open(PROTOCOLS["unils-release"], [path.stem], MESH)(SimpleNamespace(name=path.stem), 0)
        motion.window_frames(path.stem)


READ = (
    "run/config.json",
    "run/wandb_id",
    "run/metrics.jsonl",
    "run/checkpoints/4/",
)  # the other step is for when these are damaged
READERS = {
    "workdir": Reader(lambda folder: make_workdir(folder, shapes()), read_workdir, READ[2:]),
    "workdir resumed": Reader(lambda folder: make_workdir(folder, few()), resume, READ),
    "answers of a study": Reader(make_answers, read_study),
    "motion to score": Reader(make_scored, read_scored, apart=True),
}
