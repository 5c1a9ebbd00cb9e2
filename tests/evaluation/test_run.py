"""Evaluation from Python: the report is a value, and a file where one is named."""

import json

import numpy as np
import pytest
from tiny_runs import quick_compiles

from data_pipelines.store.reader import Store
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.evaluation.run import EvaluationSettings, evaluate, evaluate_files
from unils_jax.motion import save_motion


@pytest.fixture
def truth(tiny_store, tmp_path):
    """The test split's true motion as files."""
    store = Store(tiny_store)
    for i, entry in enumerate(store.records("test")):
        motion = store.read("test", i).motion.astype(np.float32)
        save_motion(
            tmp_path / "truth" / f"{entry['name']}.npz", motion, expression_basis="standin", source={"by": "us"}
        )
    return tmp_path / "truth"


def test_the_report_is_the_file_that_is_written(truth, tiny_store, tmp_path):
    settings, out = EvaluationSettings("unils-clean", limit=1), tmp_path / "report.json"
    report = evaluate_files(truth, tiny_store, settings, out=out)
    assert json.loads(out.read_text()) == report
    assert {path.name for path in tmp_path.iterdir()} == {"truth", "report.json", "report.md", "report.html"}
    assert report["settings"]["source"] == {"by": "us"} and report["settings"]["dtype"] is None
    assert report["metrics"]["unils/speaking/FDD"]["mean"] == pytest.approx(0, abs=0.01)


def test_borders_lie_where_each_file_s_own_window_has_them(tiny_store, tmp_path):
    """The files of a folder may be of several models; one that does not say is of the release's windows."""
    store, jumps = Store(tiny_store), {}
    entry = store.records("test")[0]
    motion = store.read("test", 0).motion.astype(np.float32)
    steps = np.arange(motion.shape[1])
    motion[:, :, 103] = 0.001 * steps + 0.005 * (steps // 10)
    for source in ({}, {"window_frames": 10}):
        folder = tmp_path / str(len(source))
        save_motion(folder / f"{entry['name']}.npz", motion, expression_basis="standin", source=source)
        metrics = evaluate_files(folder, tiny_store, EvaluationSettings("unils-clean", limit=1))["metrics"]
        jumps[len(source)] = metrics["behaviour/both/border_jump_jaw"]["mean"]
    assert jumps[1] == pytest.approx(6, rel=1e-3) and jumps[0] < 5


def test_a_loaded_checkpoint_is_scored_and_nothing_is_written(tiny_runs, tiny_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = load(tiny_runs.workdirs["dialogue"])
    with quick_compiles():
        report = evaluate(checkpoint, tiny_store, limit=1)
    assert report["settings"]["protocol"]["name"] == "unils-clean" and report["settings"]["seeds"] == [42]
    assert report["settings"]["motion_from"] == checkpoint.source["checkpoint"]
    assert report["metrics"]["unils/speaking/LVE"]["mean"] > 0 and not list(tmp_path.iterdir())


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match="protocol must be one of unils-release, unils-clean, dualtalk, got 'fast'"):
        EvaluationSettings("fast")
