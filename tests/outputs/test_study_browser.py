"""A user study in a real browser: raters who judge by what they see, and what their answers say."""

import json
from collections import Counter

import numpy as np
import pytest
from browser import chromium, until

from unils_jax.errors import UserError
from unils_jax.evaluation.analyses.study import analyse, read_answers
from unils_jax.face.standin import standin_asset
from unils_jax.motion import JAW
from unils_jax.outputs.page import page_script
from unils_jax.outputs.study import CRITERIA, Pair, StudyOptions, make_study

pytestmark = pytest.mark.slow

# How often the raters of this test prefer system a, whose jaw opens wider.
PREFERENCES = {"lips": 0.9, "expression": 0.7, "reaction": 0.5, "head": 0.2}
NUM_CLIPS, NUM_CHECKS, NUM_RATERS, FRAMES = 4, 2, 10, 15
WIDE, NARROW = 0.3, 0.1


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    try:
        page_script("study")
    except UserError:
        pytest.skip("the page's script is not built: run `make viewer` (needs Node)")
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)
    pairs = []
    for i in range(NUM_CLIPS):
        motions = np.zeros((2, 2, FRAMES, 108), np.float32)
        motions[0, ..., JAW], motions[1, ..., JAW] = WIDE * swing[:, None], NARROW * swing[:, None]
        sound = [0.1 * np.sin(np.arange(FRAMES * 640) / (5 + i + p)).astype(np.float32) for p in range(2)]
        pairs.append(Pair(f"clip{i}", (motions[0], motions[1]), sound))
    path = tmp_path_factory.mktemp("study") / "index.html"
    options = StudyOptions(systems=("wide", "narrow"), num_checks=NUM_CHECKS, seed=4)
    make_study(path, pairs, standin_asset(), options, expression_basis="standin")
    return path


class Rater:
    """Goes through the study, judging by how wide the jaws open on either side."""

    def __init__(self, session, path, name: str):
        self.session, self.rng = session, np.random.default_rng(list(name.encode()))
        session.get(path.as_uri())
        until(lambda: session.find_elements("id", "rater"), "the first page")
        session.find_element("id", "rater").send_keys(name)
        session.find_element("id", "begin").click()
        until(lambda: session.execute_script("return !!window.unils"), "the study")

    def state(self) -> dict:
        return self.session.execute_script("return unils.state()")

    def wait(self, asked: int) -> dict:
        return until(lambda: (s := self.state())["asked"] == asked and s["ready"] and s, f"question {asked}")

    def play(self) -> None:
        self.session.find_element("id", "play").click()
        until(lambda: self.state()["seen"] and not self.state()["playing"], "the end of the clip")

    def judge(self) -> str:
        """Answers the pair that is shown and returns what was on the left."""
        left, right = (np.max(side) for side in self.state()["jaws"])
        for name, preference in PREFERENCES.items():
            if min(left, right) < 0.01:  # a face that does not move
                better = left > right
            else:
                better = (left > right) == (self.rng.random() < preference)
            self.session.find_element("id", f"{name}-{'left' if better else 'right'}").click()
        until(lambda: self.session.find_element("id", "next").is_enabled(), "the answers to be taken")
        self.session.find_element("id", "next").click()
        return "wide" if left > 0.2 else "narrow" if left > 0.01 else "frozen"

    def download(self, folder, count: int) -> None:
        """Takes the answers that the page hands out at its end: the folder's `count`-th file."""
        until(lambda: self.session.find_elements("id", "download"), "the end")[0].click()
        until(lambda: len(list(folder.glob("*.json"))) == count, "the download")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    return folder


@pytest.fixture
def session(tmp_path, folder):
    with chromium(tmp_path / "profile", 520, 560) as session:  # small: faces are drawn in software
        session.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        yield session
        assert not [entry for entry in session.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_ten_raters_preferences_are_recovered(path, folder, session):
    orders, sides = [], Counter()
    for i in range(NUM_RATERS):
        rater, seen = Rater(session, path, f"rater {i}"), []
        for asked in range(NUM_CLIPS + NUM_CHECKS):
            assert rater.wait(asked)["total"] == NUM_CLIPS + NUM_CHECKS
            rater.play()
            seen.append(rater.judge())
        rater.download(folder, i + 1)
        sides.update(seen)
        orders.append(tuple(seen))
    assert len(set(orders)) > 5, "raters see the pairs in different orders"
    read = read_answers(folder)
    (study,) = analyse(read)["studies"]
    assert (study["raters"], study["left_out"], study["systems"]) == (NUM_RATERS, [], ["wide", "narrow"])
    for name, preference in PREFERENCES.items():
        found = study["criteria"][name]
        assert found["answers"] == NUM_RATERS * NUM_CLIPS
        assert found["interval"][0] <= preference <= found["interval"][1], name
    given = [json.loads(one.path.read_text())["answers"] for one in read]
    left = {sum(answer["left"] == "a" for answer in answers) for answers in given}
    assert left == {NUM_CLIPS // 2}, "either system is on the left in half of a rater's pairs"
    assert sides["frozen"] and list(CRITERIA) == list(given[0][0]["choices"])


def test_a_pair_is_answered_after_it_was_played_and_an_interrupted_study_goes_on(path, folder, session):
    rater = Rater(session, path, "Ünal <b>")
    rater.wait(0)
    for name in PREFERENCES:
        session.find_element("id", f"{name}-left").click()
    session.execute_script(
        "const e = document.getElementById('place'); e.value = 1; e.dispatchEvent(new Event('input'))"
    )
    until(lambda: rater.state()["time"] > 0.59, "a jump to the end")
    hint = session.find_element("css selector", ".hint")
    until(lambda: "to its end" in hint.text, "the hint")
    assert not session.find_element("id", "next").is_enabled(), "a jump is not watching"
    rater.play()
    until(lambda: session.find_element("id", "next").is_enabled(), "Next")
    rater.judge()
    second = rater.wait(1)
    again = Rater(session, path, "Ünal <b>")
    assert again.wait(1)["jaws"] == second["jaws"]
    for asked in range(1, NUM_CLIPS + NUM_CHECKS):
        again.wait(asked)
        again.play()
        again.judge()
    again.download(folder, 1)
    (answers,) = read_answers(folder)
    assert answers.rater == "Ünal <b>" and answers.attentive
