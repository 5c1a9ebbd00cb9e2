"""Training windows: what every draw must satisfy, beyond the recorded draws of tests/parity."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_records import one_person

from data_pipelines.record import Record
from data_pipelines.windows import RecordSource, cut_window, least_frames, training_index, whole_sequence
from unils_jax.errors import UserError
from unils_jax.motion import HEAD, Window, center_head


def dialogue(frames: int, missing_samples: int = 0) -> Record:
    """Each frame says its number: motion channel 0 is the frame, audio sample / 640 is the frame."""
    motion = np.random.default_rng(0).standard_normal((2, frames, 108)).astype(np.float32)
    motion[:, :, 0] = np.arange(1, frames + 1)
    audio = np.tile(np.arange(frames * 640, dtype=np.float32) / 640 + 1, (2, 1))
    mask = np.arange(frames)[None] % np.array([[2], [3]]) == 0
    return Record("numbered", motion, audio[:, : frames * 640 - missing_samples], mask, "flame")


def draw_from(seed: int):
    rng = np.random.default_rng(seed)
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


@settings(max_examples=50, deadline=None)
@given(frames=st.integers(102, 400), seed=st.integers(0, 1000), missing=st.integers(0, 2000))
def test_windows_lie_in_the_record_and_their_parts_belong_together(frames, seed, missing):
    record = dialogue(frames, missing)
    items = training_index([frames])
    i = int(items[seed % len(items), 1])
    window = cut_window(RecordSource(record), i, draw_from(seed))
    first = int(window["motion"][0, 0, 0])
    assert i < first <= min(i + 51, frames - 99)
    for person in range(2):
        np.testing.assert_array_equal(window["motion"][person, :, 0], np.arange(first, first + 100))
        before = np.arange(first - 100, first)
        np.testing.assert_array_equal(window["prev"][person, :, 0], np.where(before > 0, before, 0))
        assert (np.diff(window["style"][person, :, 0]) == 1).all()
        available = np.arange(first * 640, (first + 100) * 640)
        expected = np.where(available - 640 < frames * 640 - missing, available / 640, 0)
        np.testing.assert_allclose(window["audio"][person], expected, rtol=1e-6)
    np.testing.assert_array_equal(window["speech_mask"], record.speech_mask[:, first - 1 : first + 99])


WINDOWS = st.builds(Window, st.integers(1, 100), st.integers(1, 4), st.integers(0, 120), st.integers(0, 20))


@settings(max_examples=50, deadline=None)
@given(window=WINDOWS, more=st.integers(0, 200), seed=st.integers(0, 1000))
def test_a_window_of_any_length_has_its_context_and_its_audio(window, more, seed):
    frames = least_frames(window) + more
    items = training_index([frames - more - 1, frames], window.frames, window.context_frames)
    assert set(items[:, 0]) == {1}  # the first record is a frame too short
    cut = cut_window(RecordSource(dialogue(frames)), int(items[seed % len(items), 1]), draw_from(seed), window)
    first = int(cut["motion"][0, 0, 0])
    before = np.arange(first - window.context_frames, first)
    spoken = np.arange(first - window.past_audio_frames, first + window.frames + window.lookahead_frames)
    audio = np.where((spoken > 0) & (spoken <= frames), spoken, 0)
    for person in range(2):
        np.testing.assert_array_equal(cut["motion"][person, :, 0], np.arange(first, first + window.frames))
        np.testing.assert_array_equal(cut["prev"][person, :, 0], np.where(before > 0, before, 0))
        np.testing.assert_array_equal(np.diff(cut["style"][person, :, 0]), np.ones(window.context_frames - 1))
        np.testing.assert_array_equal(np.floor(cut["audio"][person, ::640]), audio)


def test_short_records_are_left_out_of_the_index():
    assert training_index([100, 101, 102, 150, 151]).tolist() == [[2, 0], [3, 0], [4, 0], [4, 50]]


def test_a_longer_clip_or_context_asks_for_longer_records():
    assert training_index([201, 202], clip_frames=200).tolist() == [[1, 0]]
    assert training_index([201, 202], prev_frames=200).tolist() == [[1, 0], [1, 50], [1, 100]]


def test_the_frames_before_the_record_are_zero_even_where_the_centred_head_is_not():
    window = cut_window(RecordSource(dialogue(300)), 0, lambda low, high: low)
    assert not window["prev"].any()


def test_the_head_is_centred_over_the_record_not_over_the_window():
    record = dialogue(300)
    window = cut_window(RecordSource(record), 50, lambda low, high: low)
    expected = record.motion.copy()
    expected[..., HEAD] -= record.motion[..., HEAD].mean(axis=1, keepdims=True)
    np.testing.assert_array_equal(window["motion"], expected[:, 50:150])
    assert np.abs(window["motion"][..., HEAD].mean(axis=1)).max() > 1e-3


def test_cutting_leaves_the_record_untouched():
    record = dialogue(300)
    before = record.motion.copy()
    cut_window(RecordSource(record), 50, draw_from(0))
    np.testing.assert_array_equal(record.motion, before)


def test_stored_float16_stays_float16_and_int16_audio_becomes_float():
    record = dialogue(300)
    record = dataclasses.replace(
        record, motion=record.motion.astype(np.float16), audio=np.full((2, 300 * 640), 16384, np.int16)
    )
    window = cut_window(RecordSource(record), 0, draw_from(0))
    assert window["motion"].dtype == window["style"].dtype == window["prev"].dtype == np.float16
    assert window["audio"].dtype == np.float32
    np.testing.assert_array_equal(window["audio"], 0.5)


def test_one_person_alone_is_what_the_pair_holds_of_them():
    record = dialogue(300)
    alone = whole_sequence(one_person(record, 1))
    assert set(alone) == {"motion", "style", "speech_mask"}
    np.testing.assert_array_equal(alone["motion"][0], whole_sequence(record)["motion"][1])


@pytest.mark.parametrize("frames, style_start", [(110, 10), (150, 50), (300, 150)])
def test_the_style_of_a_test_item_is_its_middle(frames, style_start):
    item = whole_sequence(dialogue(frames))
    assert item["style"][0, 0, 0] == style_start + 1
    np.testing.assert_array_equal(item["motion"], center_head(dialogue(frames).motion))
    assert item["audio"].shape == (2, frames * 640)


def test_a_record_too_short_for_a_window_is_refused():
    for cut in (whole_sequence, lambda record: cut_window(RecordSource(record), 0, draw_from(0))):
        with pytest.raises(UserError, match="has 101 frames"):
            cut(dialogue(101))
