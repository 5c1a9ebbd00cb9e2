"""Scores, table and verdicts of the miniature, on a few records and motions whose order is known."""

import numpy as np
import pytest

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.benchmarks.miniature import report as miniature_report
from unils_jax.benchmarks.miniature.plan import SYSTEMS
from unils_jax.benchmarks.miniature.report import LISTENING_FDD, LVE, ORDER
from unils_jax.benchmarks.miniature.scores import BLINKS, score
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.evaluation.report import COLUMNS
from unils_jax.face.standin import standin_asset

TITLES = {name: system.title for name, system in SYSTEMS.items()}


@pytest.fixture(scope="module")
def scores() -> dict:
    """Every system is the truth, shrunk towards its mean: UniLS little, no audio-free stage more, DualTalk most."""
    config = SynthConfig(minutes=0.2)
    records = [make_conversation(config, 3, index) for index in range(3)]
    frames = np.concatenate([record.motion.reshape(-1, 108) for record in records]).astype(np.float32)
    mesh, mean, std = mesh_of(standin_asset()), frames.mean(0), frames.std(0)

    def shrunk(by: float) -> dict:
        motions = [[mean + (record.motion.astype(np.float32) - mean) * (1 - by)] for record in records]
        return score(records, motions, mesh, mean, std)

    sizes = {"unils": 0.1, "no_prior": 0.4, "dualtalk": 0.9, "mixed": 0.6, "mean": 1.0, "retake": 0.0}
    made = {size: shrunk(size) for size in set(sizes.values())}
    return {name: made[sizes.get(name, 0.1)] for name in SYSTEMS}


def test_the_truth_has_no_error_and_its_own_blinks_and_liveliness(scores):
    truth = scores["retake"]
    assert truth["metrics"][LVE]["mean"] == pytest.approx(0, abs=1e-3)
    assert truth["metrics"][BLINKS]["mean"] == pytest.approx(truth["metrics"][BLINKS]["truth"])
    lively = truth["liveliness"]
    np.testing.assert_allclose(np.array(lively["system"], float), np.array(lively["truth"], float), rtol=1e-4)


def test_a_frozen_face_never_answers_and_is_not_lively(scores):
    frozen = scores["mean"]
    assert frozen["reactions"]["nods"]["rate"] == 0 and frozen["reactions"]["nods"]["causes"] > 0
    assert np.nanmax(np.array(frozen["liveliness"]["system"], float)) < 1e-6
    assert frozen["metrics"][LISTENING_FDD]["mean"] > 3 * scores["unils"]["metrics"][LISTENING_FDD]["mean"]


def test_an_order_with_intervals_apart_is_said_to_hold_and_a_tie_is_not(scores):
    by_order = {verdict[:3]: verdict for verdict in miniature_report.verdicts(scores)}
    assert len(by_order) == len(ORDER)
    clear = by_order[LISTENING_FDD, "unils", "no_prior"]
    assert clear.words == "holds, intervals apart" and 0 < clear.interval[0] < clear.difference < clear.interval[1]
    tied = dict(scores, mixed=scores["unils"])
    verdict = next(v for v in miniature_report.verdicts(tied) if v[:3] == (LVE, "unils", "mixed"))
    assert verdict.difference == 0 and verdict.words == "is the other way round, but intervals overlap"


def test_every_system_is_a_row_of_the_table_and_the_paper_stands_beside_it(scores):
    rows = miniature_report.rows(scores, TITLES)
    assert [row[0] for row in rows[1:]] == list(TITLES.values())
    assert {len(row) for row in rows} == {1 + len(COLUMNS) + 3}
    assert f"{scores['unils']['metrics'][LVE]['mean']:.3g} (" in rows[1][1]
    text = miniature_report.markdown(scores, TITLES, "made for a test")
    assert (
        "| UniLS (paper) | 5.83 |" in text
        and "- LVE, UniLS below UniLS, one cross-attention, mixed audio: holds" in text
    )


def test_the_picture_holds_every_system_and_the_truth(scores):
    figure = miniature_report.picture(scores, TITLES)
    assert [line.get_label() for line in figure.axes[0].lines] == ["truth", *TITLES.values()]
