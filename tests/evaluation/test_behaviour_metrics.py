"""Behaviour: each figure on motion whose answer is known, and on synthetic people against their own events."""

import numpy as np
import pytest

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.audio import frame_loudness
from unils_jax.evaluation.behaviour_metrics import (
    FREQUENCIES,
    blinks,
    border_jumps,
    gaze,
    jitter,
    mouth_lag,
    mouth_shut_in_silence,
    spectral_distance,
    spectrum,
)
from unils_jax.motion import EYES, GROUPS, JAW, STANDIN_SHAPES

LIDS = [list(STANDIN_SHAPES).index(name) for name in ("blink_left", "blink_right")]


def still(frames: int) -> np.ndarray:
    return np.zeros((frames, 108), np.float32)


def everywhere(frames: int) -> np.ndarray:
    return np.ones(frames, bool)


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 108)).astype(np.float32)


@pytest.fixture(scope="module")
def synthetic():
    return make_conversation(SynthConfig(minutes=3.0), 5, 0)


def test_blinks_are_counted_and_timed():
    motion = still(1500)  # a minute
    for start in (100, 400, 1200):
        motion[start : start + 5, LIDS] = np.array([1, 4, 4, 4, 1], np.float32)[:, None]
    counted = blinks(motion, everywhere(1500))
    assert counted.per_minute == 3
    # Half closure is crossed a third of a frame after the first and before the last of five frames.
    assert counted.duration_s == pytest.approx((4 - 2 / 3) / 25)


def test_lids_that_tremble_half_shut_blink_once():
    motion = still(100)
    motion[20:26, LIDS] = np.array([3, 1.5, 3, 1.5, 3, 0], np.float32)[:, None]
    assert blinks(motion, everywhere(100)).per_minute == 1 / (100 / 25 / 60)


def test_a_blink_belongs_to_the_frames_in_which_it_begins():
    motion = still(200)
    motion[50:54, LIDS] = motion[150:154, LIDS] = 4
    early = np.arange(200) < 100
    assert blinks(motion, early).per_minute == blinks(motion, ~early).per_minute == 1 / (100 / 25 / 60)


def test_nobody_who_blinks_has_a_rate_of_zero_and_no_duration():
    rate, duration = blinks(still(100), everywhere(100))
    assert rate == 0 and np.isnan(duration)
    assert np.isnan(blinks(still(100), np.arange(100) < 20)).all()


def test_synthetic_people_blink_as_often_as_their_events_say(synthetic):
    for person in range(2):
        events = synthetic.events["people"][person]["blinks"]
        rate, duration = blinks(synthetic.motion[person].astype(np.float32), everywhere(synthetic.num_frames))
        assert rate == pytest.approx(len(events) / 3, rel=0.1)
        assert duration == pytest.approx(0.6 * np.mean([length for _, length, _ in events]), rel=0.15)


def test_a_spectrum_holds_the_variance_of_its_track():
    track = noise(20_000)[:, :2]
    psd = spectrum(track, everywhere(len(track)))
    assert psd.mean() == pytest.approx(2 / 25, rel=0.03)  # unit variance, one-sided, up to 12.5 Hz


def test_a_sine_stands_at_its_frequency():
    t = np.arange(1000) / 25
    psd = spectrum(np.sin(2 * np.pi * 3.125 * t)[:, None], everywhere(1000))
    assert FREQUENCIES[psd.argmax()] == 3.125
    assert psd.sum() * (FREQUENCIES[1] - FREQUENCIES[0]) == pytest.approx(0.5, rel=1e-6)


def test_a_spectrum_looks_at_whole_segments_of_the_mask_alone():
    track = noise(400)[:, :3]
    mask = np.arange(400) < 128
    spoiled = np.where(mask[:, None], track, np.nan)
    np.testing.assert_array_equal(spectrum(spoiled, mask), spectrum(track[:128], everywhere(128)))
    assert np.isnan(spectrum(track, np.arange(400) % 50 > 0)).all()


def test_half_the_amplitude_is_six_decibels_off_and_a_frozen_face_finitely_many():
    track, mask = noise(300)[:, :3], everywhere(300)
    psd = spectrum(track, mask)
    assert spectral_distance(psd, psd) == 0
    assert spectral_distance(spectrum(0.5 * track, mask), psd) == pytest.approx(20 * np.log10(2), rel=1e-5)
    assert 30 < spectral_distance(spectrum(0 * track, mask), psd) < 100


def test_gaze_is_the_mean_of_both_eyes():
    motion = still(2)
    motion[:, EYES] = [1, 2, 3, 6]
    np.testing.assert_array_equal(gaze(motion), [[2, 4], [2, 4]])


def test_a_mouth_that_hangs_open_in_silence_is_not_shut():
    truth, speaking = still(300), np.arange(300) < 150
    truth[:150, JAW] = 0.1 * (1 + np.sin(np.arange(150)))[:, None]
    hanging = truth.copy()
    hanging[225:, JAW] = 0.15
    sample_weights = [mouth_shut_in_silence(x, truth, speaking, everywhere(300)) for x in (truth, hanging)]
    assert sample_weights == [1, pytest.approx(70 / 145)]  # five frames after speech do not count


def test_a_shut_mouth_needs_silence_and_speech_and_a_jaw_that_moves():
    truth, all_frames = noise(100), everywhere(100)
    assert np.isnan(mouth_shut_in_silence(truth, truth, all_frames, all_frames))
    assert np.isnan(mouth_shut_in_silence(truth, truth, ~all_frames, all_frames))
    assert np.isnan(mouth_shut_in_silence(truth, still(100), np.arange(100) < 50, all_frames))


def test_jitter_is_the_third_derivative():
    t = np.arange(60) / 25
    motion = np.tile((2 * t**3 - t**2 + 4)[:, None], (1, 108)).astype(np.float64)
    assert jitter(motion, everywhere(60)) == pytest.approx(dict.fromkeys(GROUPS, 12.0), rel=1e-6)


def test_jitter_needs_four_frames_in_a_row():
    motion = noise(40)
    assert np.isnan(list(jitter(motion, np.arange(40) % 4 > 0).values())).all()
    assert np.isnan(list(jitter(motion[:3], everywhere(3)).values())).all()
    assert jitter(motion, np.arange(40) < 4)["jaw"] > 0


def test_steps_over_borders_are_compared_with_those_inside():
    motion = np.tile(np.arange(400, dtype=np.float32)[:, None], (1, 108))
    motion += 2 * (np.arange(400) // 100)[:, None].astype(np.float32)
    assert border_jumps(motion, everywhere(400)) == pytest.approx(dict.fromkeys(GROUPS, 3.0))
    assert border_jumps(motion, everywhere(400), 200)["jaw"] == pytest.approx(3 / (1 + 2 * 2 / 398))


def test_border_jumps_need_a_border_and_something_that_moves():
    assert np.isnan(list(border_jumps(noise(100), everywhere(100)).values())).all()
    assert np.isnan(list(border_jumps(still(300), everywhere(300)).values())).all()


@pytest.mark.parametrize("lag", [-6, -2, 0, 3])
def test_the_lag_between_mouth_and_sound_is_found(lag):
    loudness = np.convolve(np.random.default_rng(0).normal(size=600), np.hanning(9), mode="same")
    motion = still(600)
    motion[:, JAW] = np.roll(loudness, lag)[:, None]
    found = mouth_lag(motion, loudness, everywhere(600))
    assert found.lag_s == pytest.approx(lag / 25, abs=0.004)
    assert found.correlation == pytest.approx(1, abs=0.01)


def test_synthetic_lips_lead_the_sound_as_configured(synthetic):
    for person in range(2):
        loudness = frame_loudness(synthetic.audio[person].astype(np.float32) / 32768)[: synthetic.num_frames]
        motion = synthetic.motion[person].astype(np.float32)
        found = mouth_lag(motion, loudness, synthetic.speech_mask[person])
        assert found.lag_s == pytest.approx(-synthetic.events["people"][person]["lead_s"], abs=0.02)
        assert found.correlation > 0.7


def test_a_lag_needs_a_second_of_speech_and_a_jaw_that_moves():
    loudness = np.random.default_rng(0).normal(size=200)
    assert np.isnan(mouth_lag(noise(200), loudness, np.arange(200) < 20)).all()
    assert np.isnan(mouth_lag(still(200), loudness, everywhere(200))).all()
