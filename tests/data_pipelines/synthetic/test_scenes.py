"""The unpaired set: single persons in other situations, each recognisable by what it is."""

import json

import numpy as np
import pytest
from scipy.signal import welch

from data_pipelines.record import Record, validate
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_scene, make_scenes
from data_pipelines.synthetic.scenes import SCENES
from unils_jax.motion import EYES, STANDIN_SHAPES

CONFIG = SynthConfig(minutes=1.5)
SMILE = list(STANDIN_SHAPES).index("smile_left")


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    return {name: make_scene(CONFIG, 0, index) for index, name in enumerate(SCENES)}


@pytest.fixture(scope="module")
def moved(records) -> dict[str, np.ndarray]:
    """Motion `[T, 108]` of each scene, float64."""
    return {name: record.motion[0].astype(np.float64) for name, record in records.items()}


def test_a_scene_is_one_person_without_audio_and_repeats_bit_for_bit(records):
    for index, (name, record) in enumerate(records.items()):
        validate(record)
        assert record.motion.shape == (1, 2250, 108) and record.motion.dtype == np.float16
        assert record.audio is None and record.speech_mask is None
        assert record.events["scene"] == name and name in record.name
        assert json.loads(json.dumps(record.events)) == record.events
        np.testing.assert_array_equal(make_scene(CONFIG, 0, index).motion, record.motion)
        assert (make_scene(CONFIG, 1, index).motion != record.motion).any()


def test_who_idles_keeps_the_mouth_shut_and_blinks(records, moved):
    assert moved["idle"][:, 103].std() < 0.005
    assert not records["idle"].events["people"][0]["syllables"]
    assert len(records["idle"].events["people"][0]["blinks"]) > 10


@pytest.mark.parametrize("scene", ["monologue", "reading"])
def test_who_talks_to_nobody_moves_the_jaw_most_of_the_time(moved, scene):
    assert moved[scene][:, 103].std() > 0.03


def test_laughter_opens_the_mouth_in_bursts_under_a_smile_with_the_head_back():
    found, smiling, back = [], [], []
    for index in (2, 6, 10):
        record = make_scene(CONFIG, 0, index)
        motion = record.motion[0].astype(np.float64)
        for start, length, rate_hz, _ in record.events["people"][0]["laughs"]:
            first, last = int(start * 25), int((start + length) * 25)
            before = motion[max(0, first - 15) : first]
            smiling.append(motion[first:last, SMILE].mean() - before[:, SMILE].mean())
            back.append(motion[first + 5 : (first + last) // 2, 100].mean() - before[:, 100].mean())
            if length > 2:
                frequency, power = welch(motion[first:last, 103], 25, nperseg=last - first)
                found.append(frequency[3 + power[3:].argmax()] - rate_hz)
    assert len(found) > 5 and np.abs(found).max() < 0.6
    assert len(back) > 15 and np.mean(smiling) > 1.0
    # Negative pitch is up.
    assert np.mean(back) < -0.05


def test_eyes_that_read_go_right_in_steps_and_back_in_one(moved):
    yaw = moved["reading"][:, EYES][:, 1] + moved["reading"][:, 101]
    steps = np.diff(moved["reading"][:, EYES][:, 1])
    back = steps > 0.12
    assert 15 < back.sum() / CONFIG.minutes < 60
    assert steps[~back].mean() < 0 and not (steps < -0.2).any()
    # Eyes stay on the page; those of who speaks to a viewer wander.
    assert yaw.std() < moved["monologue"][:, EYES][:, 1].std() + moved["monologue"][:, 101].std()


def test_a_set_of_scenes_has_every_scene_in_train_and_nobody_twice():
    made = list(make_scenes(SynthConfig(minutes=0.1), 0, 20))
    train = {record.events["scene"] for split, record in made if split == "train"}
    assert train == set(SCENES)
    people = [record.identities for _, record in made]
    assert len(set(people)) == 20 and len({record.name for _, record in made}) == 20
