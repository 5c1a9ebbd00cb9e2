"""Named protocols: who is scored, on which frames, from which style."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.errors import UserError
from unils_jax.evaluation.protocols import PROTOCOLS, conversation_of, people_to_score, skip_reason
from unils_jax.motion import HEAD
from unils_jax.systems.registry import SYSTEMS

RELEASE, CLEAN = PROTOCOLS["unils-release"], PROTOCOLS["unils-clean"]
FITTING = {"name": "a", "frames": 300, "people": 2, "audio": True, "speech_mask": True, "observed": None}


@pytest.fixture(scope="module")
def record():
    return make_conversation(SynthConfig(minutes=0.2), 0, 0)


def test_the_release_scores_the_first_person_with_the_style_of_the_scored_clip(record):
    conversation = conversation_of(record, RELEASE)
    people = people_to_score(conversation, conversation.motion, RELEASE)
    assert len(people) == 1 and len(people[0].truth) == 300
    np.testing.assert_array_equal(conversation.style[0], people[0].truth[150:250])
    np.testing.assert_array_equal(people[0].partner, conversation.motion[1])
    assert (RELEASE.seed, RELEASE.tau, RELEASE.cfg) == (42, 1.0, 1.5)


def test_clean_scores_both_and_never_a_frame_of_the_style(record):
    conversation = conversation_of(record, CLEAN)
    people = people_to_score(conversation, conversation.motion, CLEAN)
    assert len(people) == 2
    for i, person in enumerate(people):
        np.testing.assert_array_equal(conversation.style[i], conversation.motion[i, :100])
        np.testing.assert_array_equal(person.truth, conversation.motion[i, 100:])
        np.testing.assert_array_equal(person.speaking, record.speech_mask[i, 100:])
        assert len(person.loudness_db) == len(person.truth)


def test_a_turned_camera_changes_the_offset_alone(record):
    conversation = conversation_of(record, RELEASE)
    turned = conversation.motion.copy()
    turned[..., HEAD] += [0.3, -0.3, 0.3]
    (straight,) = people_to_score(conversation, conversation.motion, RELEASE)
    (person,) = people_to_score(conversation, turned, RELEASE)
    np.testing.assert_allclose(person.prediction, straight.prediction, atol=1e-6)
    assert person.head_offset == pytest.approx(0.3, abs=1e-3)


def test_prediction_and_truth_are_cut_to_the_shorter(record):
    conversation = conversation_of(record, RELEASE)
    (person,) = people_to_score(conversation, conversation.motion[:, :280], RELEASE)
    assert len(person.prediction) == len(person.truth) == len(person.speaking) == len(person.loudness_db) == 280
    longer = np.concatenate([conversation.motion, conversation.motion[:, :20]], axis=1)
    (person,) = people_to_score(conversation, longer, RELEASE)
    assert len(person.prediction) == len(person.truth) == 300


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m[:, :200], "200 frames at 25 fps, the truth 300"),
        (lambda m: m[:1], "holds 1 person"),
        (lambda m: np.where(m > 0, np.nan, m).astype(np.float32), "NaN"),
    ],
)
def test_motion_that_cannot_be_scored_is_named(record, change, told):
    conversation = conversation_of(record, CLEAN)
    with pytest.raises(UserError, match=f"{record.name}.*{told}"):
        people_to_score(conversation, change(conversation.motion), CLEAN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"people": 1}, "1 person"),
        ({"speech_mask": False}, "speech mask"),
        ({"audio": False}, "audio"),
        ({"frames": 101}, "101 frames"),
        ({"observed": np.repeat([[False], [True]], 108, axis=1)}, "no motion of person 1"),
    ],
)
def test_records_that_do_not_fit_say_why(change, told):
    assert skip_reason(FITTING, RELEASE, needs_audio=True) is None
    assert told in skip_reason(FITTING | change, RELEASE, needs_audio=True)


def test_a_partner_without_motion_matters_only_where_both_are_scored():
    heard_only = FITTING | {"observed": np.repeat([[True], [False]], 108, axis=1)}
    assert skip_reason(heard_only, RELEASE, needs_audio=True) is None
    assert "no motion of person 2" in skip_reason(heard_only, CLEAN, needs_audio=True)


def test_channels_that_the_truth_lacks_are_left_out_of_the_prediction(record):
    observed = np.ones((2, 108), bool)
    observed[0, 50:100] = False
    motion = np.where(observed[:, None], record.motion, 0).astype(record.motion.dtype)
    conversation = conversation_of(dataclasses.replace(record, motion=motion, observed=observed), RELEASE)
    (person,) = people_to_score(conversation, np.ones((2, 300, 108), np.float32), RELEASE)
    assert not person.prediction[:, 50:100].any() and person.prediction[:, :50].all()
    np.testing.assert_array_equal(person.channel_mask, observed[0])


def test_motion_files_need_no_audio_and_a_held_out_style_needs_more_frames():
    assert skip_reason(FITTING | {"audio": False}, RELEASE, needs_audio=False) is None
    assert skip_reason(FITTING | {"frames": 150}, RELEASE, needs_audio=True) is None
    assert skip_reason(FITTING | {"frames": 150}, CLEAN, needs_audio=True) is not None


def test_a_record_without_audio_has_no_loudness(record):
    conversation = conversation_of(dataclasses.replace(record, audio=None), RELEASE)
    (person,) = people_to_score(conversation, conversation.motion, RELEASE)
    assert person.loudness_db is None


def test_settings_say_everything_that_differs():
    release, clean = RELEASE.settings(SYSTEMS["unils"]), CLEAN.settings(SYSTEMS["unils"])
    assert {name for name in release if release[name] != clean[name]} == {
        "name",
        "people_scored",
        "first_scored_frame",
        "style",
    }


def test_motion_made_elsewhere_claims_no_settings_of_a_decode():
    assert set(RELEASE.settings(SYSTEMS["unils"])) - set(RELEASE.settings(None)) == {
        "style",
        "previous_motion",
        "first_seed",
        "tau",
        "cfg",
        "top_p",
    }
