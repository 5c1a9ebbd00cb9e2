"""Means over people, seeds and conversations, their intervals, and what of a split stands in the report."""

import dataclasses
import json

import numpy as np
import pytest
from random_people import motion, person

from unils_jax.evaluation.metrics import ScoreTable, jsonable, score_person, unit
from unils_jax.evaluation.statistics import frechet_distance, moments
from unils_jax.evaluation.unils_metrics import ROLES
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW


def score_table(basis: str = "standin") -> ScoreTable:
    return ScoreTable(None, basis, np.zeros(108, np.float32), np.ones(108, np.float32))


def test_the_truth_as_prediction_scores_as_the_truth():
    truth = motion(260, 3)
    figures, true = score_person(person(3, prediction=truth), None, "standin")
    for name, value in figures.items():
        if name in true:
            assert value == true[name] or np.isnan([value, true[name]]).all(), name
        elif name.startswith("unils") or name.endswith("_spectrum"):
            assert value == 0, name


def test_figures_of_channels_that_the_truth_lacks_are_undefined_and_others_as_they_were():
    whole = person()
    observed = np.ones(108, bool)
    observed[EYES] = observed[JAW] = False
    figures, _ = score_person(dataclasses.replace(whole, channel_mask=observed), None, "standin")
    before, _ = score_person(whole, None, "standin")
    lost = {name for name, value in figures.items() if np.isnan(value) and not np.isnan(before[name])}
    assert {
        "unils/speaking/JDD",
        "behaviour/both/gaze_spectrum",
        "dualtalk/mse/jaw",
        "behaviour/both/jitter_eyes",
    } <= lost
    assert all("jaw" in n or "eyes" in n or "gaze" in n or "JDD" in n or "mouth" in n for n in lost), lost
    assert all(figures[name] == value for name, value in before.items() if name not in lost and value == value)


def test_a_partner_without_motion_leaves_the_figures_against_him_undefined():
    alone = dataclasses.replace(person(), partner_channel_mask=np.zeros(108, bool))
    figures, _ = score_person(alone, None, "standin")
    undefined = {name.split("/")[1] for name in figures if name.startswith("dualtalk") and np.isnan(figures[name])}
    assert undefined == {"paired_fd", "rpcc"}


def test_who_lacks_the_channels_does_not_count_in_frechet_distances():
    eyes_only = np.zeros(108, bool)
    eyes_only[EYES] = True
    split, alone = score_table(), score_table()
    split.add("a", [[person(1), dataclasses.replace(person(2), channel_mask=eyes_only)]])
    alone.add("a", [[person(1)]])
    name = "fid/both/expression_fid"
    assert split.metrics()[name]["mean"] == alone.metrics()[name]["mean"]


def test_blinks_are_of_the_standin_basis_alone():
    names = {basis: score_person(person(), None, basis)[0] for basis in ("standin", "flame")}
    assert set(names["standin"]) - set(names["flame"]) == {
        f"behaviour/{role}/{name}" for role in ROLES for name in ("blinks_per_minute", "blink_duration_s")
    }


def test_means_go_over_people_then_conversations():
    split = score_table()
    split.add("a", [[person(1), person(2)]])
    split.add("b", [[person(3)]])
    entry = split.metrics()["behaviour/both/head_offset"]
    assert entry["mean"] == pytest.approx((0.15 + 0.3) / 2)
    assert entry["conversations"] == 2
    assert entry["interval"] == pytest.approx([0.15, 0.3])
    assert entry["seed_std"] is None


@pytest.mark.parametrize("silent_first", [True, False])
def test_a_record_without_audio_leaves_the_mouth_lag_to_the_others(silent_first):
    split, silent = score_table(), dataclasses.replace(person(3), loudness_db=None)
    for name, someone in (("a", silent), ("b", person(1)))[:: 1 if silent_first else -1]:
        split.add(name, [[someone]])
    assert split.metrics()["behaviour/speaking/mouth_correlation"]["conversations"] == 1


def test_several_seeds_have_a_spread():
    split = score_table()
    split.add("a", [[person(1)], [person(3)]])
    entry = split.metrics()["behaviour/both/head_offset"]
    assert entry["mean"] == pytest.approx(0.2)
    assert entry["seed_std"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert entry["interval"] is None  # one conversation has no spread


def test_frechet_distances_are_of_all_frames_of_the_split():
    split, people = score_table(), [person(seed) for seed in range(4)]
    split.add("a", [[people[0], people[1]]])
    split.add("b", [[people[2], people[3]]])
    metrics = split.metrics()
    prediction, truth = (np.concatenate([getattr(p, side) for p in people]) for side in ("prediction", "truth"))
    speaking = np.concatenate([p.speaking for p in people])
    for role, mask in (("both", slice(None)), ("speaking", speaking), ("listening", ~speaking)):
        for name, channels in (("expression_fid", EXPRESSION), ("pose_fid", HEAD)):
            direct = frechet_distance(*(moments(x[mask, channels]) for x in (prediction, truth)))
            entry = metrics[f"fid/{role}/{name}"]
            assert entry["mean"] == pytest.approx(direct, rel=1e-9)
            assert entry["interval"][0] <= entry["mean"] <= entry["interval"][1]


def test_what_no_conversation_defines_is_null():
    split = score_table()
    split.add("a", [[person(frames=110)]])  # too short a listener for a spectrum, one window, no border inside
    entry = jsonable(split.metrics()["behaviour/listening/gaze_spectrum"])
    assert entry == {"mean": None, "interval": None, "conversations": 0, "seed_std": None, "unit": "dB"}


def test_a_role_that_nobody_has_is_null_in_the_frechet_distances():
    silent = person(1)
    silent.speaking[:] = False
    split = score_table()
    split.add("a", [[silent]])
    split.add("b", [[silent]])
    entry = split.metrics()["fid/speaking/pose_fid"]
    assert np.isnan(entry["mean"]) and entry["interval"] is None and entry["conversations"] == 0


def test_best_and_worst_clips_are_kept():
    split = score_table()
    for name, shift in (("middling", 0.2), ("good", 0.01), ("bad", 2.0), ("fair", 0.1)):
        split.add(name, [[person(1, prediction=motion(260, 1) + np.float32(shift))]])
    traces = split.traces()
    assert (traces["best"]["name"], traces["worst"]["name"]) == ("good", "bad")
    assert traces["worst"]["jaw"][:, 0] == pytest.approx(traces["worst"]["jaw"][:, 1] + 2)


def test_distributions_count_every_value():
    split = score_table()
    split.add("a", [[person(1), person(2)]])
    groups = split.pictures()["distributions"]
    assert sum(groups["head"]["prediction"]) == sum(groups["head"]["truth"]) == 2 * 260 * 3


def test_json_has_plain_numbers_and_null():
    value = {"a": np.float32(0.1), "b": [float("nan"), 1, True, "x", None], "c": (1.23456789012,)}
    text = json.dumps(jsonable(value), allow_nan=False)
    assert json.loads(text) == {"a": 0.1, "b": [None, 1, True, "x", None], "c": [1.2345679]}


def test_units_are_named():
    assert unit("unils/speaking/LVE") == "mm"
    assert unit("behaviour/both/jitter_head") == "rad/s^3"
    assert unit("dualtalk/fd/expression") == ""
