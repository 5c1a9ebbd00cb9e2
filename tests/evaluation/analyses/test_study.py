"""What the answers of a user study say."""

import json

import numpy as np
import pytest

from unils_jax.cli.main import main
from unils_jax.errors import UserError
from unils_jax.evaluation.analyses.study import analyse, krippendorff_alpha, read_answers, table

CRITERIA = ["lips", "head"]
CLIPS = [f"clip{i}" for i in range(20)]


def answers(rater: str, share: float = 0.8, *, attentive: bool = True, study: str = "s") -> dict:
    """The answers of a rater who prefers system a with a probability."""
    rng = np.random.default_rng(list(rater.encode()))

    def answer(clip: str, check: str | None, first: str, second: str, like_first: float) -> dict:
        swapped = rng.random() < 0.5
        sides = (second, first) if swapped else (first, second)
        choices = {name: "left" if (rng.random() < like_first) != swapped else "right" for name in CRITERIA}
        return {"clip": clip, "check": check, "left": sides[0], "right": sides[1], "choices": choices, "seconds": 9.5}

    given = [answer(clip, None, "a", "b", share) for clip in CLIPS]
    given += [answer(CLIPS[i], "ab"[i], "moving", "frozen", float(attentive)) for i in range(2)]
    of = {"id": study, "systems": {"a": "ours", "b": "theirs"}, "seed": 0, "clips": CLIPS, "num_checks": 2}
    of["criteria"] = CRITERIA
    return {"format": "unils-study-answers", "study": of, "rater": rater, "answers": given}


def write(folder, *given: dict):
    for i, one in enumerate(given):
        (folder / f"{i}.json").write_text(json.dumps(one))
    return folder


def test_a_known_preference_is_within_its_interval(tmp_path):
    report = analyse(read_answers(write(tmp_path, *(answers(f"rater {i}", 0.8) for i in range(10)))))
    (study,) = report["studies"]
    assert (study["systems"], study["raters"], study["left_out"]) == (["ours", "theirs"], 10, [])
    for name in CRITERIA:
        lips = study["criteria"][name]
        assert lips["answers"] == 200 and lips["interval"][0] < 0.8 < lips["interval"][1]
        assert lips["interval"][1] - lips["interval"][0] < 0.12 and lips["p_value"] < 1e-9
        assert abs(lips["alpha"]) < 0.1, "raters who draw lots agree by chance only"


def test_the_interval_is_wilsons(tmp_path):
    """15 of 20: 0.5313 to 0.8881 by Wilson's formula at 1.96 deviations."""
    one = answers("r")
    for i, answer in enumerate(one["answers"][:20]):
        answer["choices"]["lips"] = "left" if (answer["left"] == "a") == (i < 15) else "right"
    (study,) = analyse(read_answers(write(tmp_path, one)))["studies"]
    assert study["criteria"]["lips"]["interval"] == pytest.approx([0.5313, 0.8881], abs=1e-4)
    assert table({"studies": [study]})[1][3] == "75.0 % [53.1, 88.8]"


def test_raters_who_like_a_frozen_face_are_left_out_and_named(tmp_path, capsys, caplog):
    write(tmp_path, *(answers(f"r{i}", 1.0) for i in range(3)), answers("bot", 0.0, attentive=False))
    assert main(["study", "--answers", str(tmp_path), "--out", str(tmp_path / "out" / "report.json")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())["studies"][0]
    assert report["criteria"]["lips"]["share"] == 1.0 and report["raters"] == 3
    assert report["left_out"] == [{"rater": "bot", "file": "3.json", "checks": [0, 2]}]
    assert "bot (3.json) passed 0 of 2 checks" in caplog.text
    assert "| ours | theirs | 3 | 100.0 % [94.0, 100.0] | 100.0 % [94.0, 100.0] | - |" in capsys.readouterr().out


def test_a_study_without_attentive_raters_has_no_figures(tmp_path):
    report = analyse(read_answers(write(tmp_path, answers("bot", attentive=False))))
    assert report["studies"][0]["criteria"] == {} and table(report)[1] == ["ours", "theirs", "0", "-"]


def test_several_studies_are_rows_of_one_table(tmp_path):
    other = answers("r", 0.1, study="t")
    other["study"]["systems"]["b"] = "others"
    rows = table(analyse(read_answers(write(tmp_path, answers("r", 0.9), other))))
    assert [row[1] for row in rows] == ["over", "theirs", "others"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda one: one["answers"].pop(3), "answers 19 of 20 pairs, see 'clip3'"),
        (lambda one: one["answers"].pop(), "1 of 2 attention checks"),
        (lambda one: one["answers"].append(one["answers"][0]), "answers clip 'clip0' twice"),
        (lambda one: one["answers"][0]["choices"].pop("lips"), "every criterion of clip 'clip0'"),
        (lambda one: one["answers"][0]["choices"].update(lips="both"), "every criterion of clip 'clip0'"),
        (lambda one: one["answers"][0].update(left="b", right="b"), "shows 'b' and 'b'"),
        (lambda one: one["answers"][20].update(left="a", right="b"), "shows 'a' and 'b'"),
        (lambda one: one.update(rater=" "), "names no rater"),
        (lambda one: one.update(format="other"), "is no file of answers"),
        (lambda one: one.pop("study"), "is no file of answers"),
        (lambda one: one.update(answers=7), "is no file of answers"),
        (lambda one: one.update(answers=["x"]), "is no file of answers"),
    ],
)
def test_broken_answers_are_refused_with_their_file(tmp_path, capsys, broken, message):
    one = answers("r")
    broken(one)
    write(tmp_path, answers("good"), one)
    assert main(["study", "--answers", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "1.json: " in error and message in error and error.count("\n") == 1 and "0.json" not in error


def test_text_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="x.json: is no file of answers"):
        read_answers(tmp_path)
    with pytest.raises(UserError, match="holds no .json"):
        read_answers(tmp_path / "nothing")


def test_a_rater_answers_a_study_once(tmp_path):
    write(tmp_path, answers("Kim"), answers("kim "))
    with pytest.raises(UserError, match=r"1\.json and 0\.json: rater 'kim' has answered twice"):
        read_answers(tmp_path)
    write(tmp_path, answers("Kim"), answers("Kim", study="t"))
    assert len(read_answers(tmp_path)) == 2, "another study is another matter"


def test_alpha_is_krippendorffs():
    """His example of four raters and twelve units, with gaps: 0.743 for nominal values."""
    gap = np.nan
    values = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
            [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
        ],
        np.float64,
    )
    assert krippendorff_alpha(values) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(-0.5)
    assert krippendorff_alpha(np.array([[0.0, 1.0], [0.0, 1.0]])) == 1.0
    assert krippendorff_alpha(np.ones((3, 4))) is None and krippendorff_alpha(np.ones((1, 4))) is None
