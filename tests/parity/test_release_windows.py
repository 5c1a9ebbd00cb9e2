"""Windows against what the release's data sets cut, with the release's own random draws replayed."""

import dataclasses

import numpy as np
import pytest
from random_records import one_person

from data_pipelines.record import Record
from data_pipelines.store.reader import Store, write_store
from data_pipelines.windows import RecordSource, cut_window, training_index, whole_sequence
from unils_jax.motion import from_motioncode


class Replay:
    """Hands out recorded draws and checks that they are asked for in the recorded order and ranges."""

    def __init__(self, calls: list[list[int]]):
        self.calls = list(calls)

    def __call__(self, low: int, high: int) -> int:
        expected_low, expected_high, value = self.calls.pop(0)
        assert (low, high) == (expected_low, expected_high)
        return value


def checksum(audio: np.ndarray) -> tuple[float, float]:
    samples = audio.astype(np.float64)
    return samples.sum(), (samples * np.arange(len(samples))).sum()


@pytest.fixture(scope="module")
def data(golden):
    return golden("data")


@pytest.fixture(scope="module")
def info(data):
    return data.config["info"]


@pytest.fixture(scope="module")
def pair(data) -> Record:
    # The fixture casts float16 to float32; the way back is exact, and the release centres in float16.
    motion = [from_motioncode(data.inputs[f"motioncode_{p}"].astype(np.float16)) for p in "AB"]
    audio = [data.inputs[f"audio_{p}_i8"].astype(np.float32) / 128 for p in "AB"]
    masks = [data.inputs[f"mask_{p}"].astype(bool) for p in "AB"]
    return Record("pair", np.stack(motion), np.stack(audio), np.stack(masks), "flame")


@pytest.fixture(scope="module")
def stored(pair, tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("release") / "store"
    write_store(path, [("train", pair)])
    return Store(path)


@pytest.fixture(params=["memory", "store"])
def source(request, pair, stored):
    """The pair, or one person of it, as a source of windows: the record in memory, and read from a store."""
    if request.param == "store":
        return lambda person=None: stored.source("train", 0, person)
    return lambda person=None: RecordSource(pair if person is None else one_person(pair, person))


@pytest.fixture(params=["memory", "store"])
def whole(request, pair, stored) -> Record:
    return stored.read("train", 0) if request.param == "store" else pair


def test_training_index_lists_the_release_items(info, pair):
    expected = [[0, int(entry[2])] for entry in info["motion_train_index"]]
    assert training_index([pair.num_frames]).tolist() == expected
    assert [[0, int(entry[3])] for entry in info["pair_train_index"]] == expected


def test_unpaired_training_window_is_bit_exact(data, info, source):
    draws = Replay(info["motion_train1_randint_calls"])
    window = cut_window(source(0), int(info["motion_train_index"][1][2]), draws)
    for ours, theirs in (("motion", "motion_code"), ("prev", "prev_motion_code"), ("style", "style_motion_code")):
        expected = data.outputs[f"motion_train1.{theirs}"]
        assert window[ours].dtype == expected.dtype
        np.testing.assert_array_equal(window[ours][0], expected)
    assert draws.calls == []


def test_dialogue_training_window_is_bit_exact(data, info, source):
    draws = Replay(info["pair_train1_randint_calls"])
    window = cut_window(source(), int(info["pair_train_index"][1][3]), draws)
    for ours, theirs in (("motion", "motion_code"), ("prev", "prev_motion_code"), ("style", "style_motion_code")):
        np.testing.assert_array_equal(window[ours], data.outputs[f"pair_train1.{theirs}"])
    assert list(window["audio"].shape) == data.outputs["pair_train1.audio_shape"].tolist()
    for person in range(2):
        assert checksum(window["audio"][person]) == tuple(data.outputs["pair_train1.audio_checksum"][person])
    assert draws.calls == []


def test_unpaired_test_item_is_bit_exact(data, whole):
    item = whole_sequence(one_person(whole, 0))
    np.testing.assert_array_equal(item["motion"][0], data.outputs["motion_test0.motion_code"])
    np.testing.assert_array_equal(item["style"][0], data.outputs["motion_test0.style_motion_code"])


def test_dialogue_test_item_is_bit_exact(data, whole):
    item = whole_sequence(whole)
    np.testing.assert_array_equal(item["motion"], data.outputs["pair_test0.motion_code"])
    np.testing.assert_array_equal(item["style"], data.outputs["pair_test0.style_motion_code"])
    np.testing.assert_array_equal(item["speech_mask"], data.outputs["pair_test0.speech_mask"].astype(bool))
    assert list(item["audio"].shape) == data.outputs["pair_test0.audio_shape"].tolist()
    for person in range(2):
        assert checksum(item["audio"][person]) == tuple(data.outputs["pair_test0.audio_checksum"][person])


def test_centring_in_float32_would_not_match_the_release(data, pair):
    wide = dataclasses.replace(pair, motion=pair.motion.astype(np.float32))
    difference = np.abs(whole_sequence(wide)["motion"] - data.outputs["pair_test0.motion_code"].astype(np.float32))
    assert difference.max() > 1e-5
