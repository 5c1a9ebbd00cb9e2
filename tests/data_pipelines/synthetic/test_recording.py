"""Recording conditions: each does what the record says of it."""

import numpy as np
import pytest
from scipy.signal import welch

from data_pipelines.synthetic.conversation import Phrase
from data_pipelines.synthetic.recording import CODECS, LEVEL_DB, SNR_DB, Recording, _coded, draw_recording, record_track

PLAIN = Recording(-20.0, 60.0, -60.0, 0.0, 10.0, 0.0, 0.0, 20.0, 8000.0, "none", 0.0)
PHRASES = [Phrase(1.0, 2.0, False, False), Phrase(2.5, 3.5, False, False)]


def voice(seed: int) -> np.ndarray:
    """Noise bursts of the phrases."""
    track = np.zeros(4 * 16000, np.float32)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(16000).astype(np.float32)
    track[16000:32000] = track[40000:56000] = noise
    return track


def recorded(**changes) -> np.ndarray:
    other = np.zeros(4 * 16000, np.float32)
    other[:8000] = voice(1)[16000:24000]
    return record_track(PLAIN._replace(**changes), voice(0), other, PHRASES, np.random.default_rng(0)) / 32768.0


def level(track: np.ndarray, start_s: float, end_s: float) -> float:
    return 10 * np.log10(np.mean(track[round(start_s * 16000) : round(end_s * 16000)] ** 2) + 1e-12)


@pytest.mark.parametrize("codec", [name for name, _ in CODECS])
@pytest.mark.parametrize("level_db", [-36.0, -24.0])
def test_the_level_is_that_of_the_record(level_db, codec):
    track = recorded(level_db=level_db, codec=codec)
    assert level(track, 1.0, 2.0) == pytest.approx(level_db, abs=0.3)


def test_noise_and_crosstalk_lie_below_the_voice_as_stated():
    assert level(recorded(snr_db=20.0), 3.6, 4.0) == pytest.approx(-40.0, abs=0.5)
    assert level(recorded(crosstalk_db=-30.0), 0.05, 0.45) == pytest.approx(-50.0, abs=0.7)


def test_a_gate_silences_what_is_below_it_and_leaves_the_voice_and_what_is_above():
    quiet, heard = recorded(crosstalk_db=-30.0, gate_db=-25.0), recorded(crosstalk_db=-30.0, gate_db=-35.0)
    assert level(quiet, 0.1, 0.4) < -85 and level(quiet, 3.7, 4.0) < -85
    assert level(heard, 0.1, 0.4) == pytest.approx(-50.0, abs=0.7)  # the other's voice, 30 dB below the own one
    assert level(heard, 3.7, 4.0) < -85
    for track in (quiet, heard):
        assert level(track, 1.0, 2.0) == pytest.approx(-20.0, abs=0.3)


def test_a_room_rings_and_a_dry_one_does_not():
    assert level(recorded(), 2.05, 2.2) < -70
    assert -50 < level(recorded(room_s=0.5, direct_db=6.0), 2.05, 2.2) < -25


def test_bands_and_tilts_shape_the_spectrum():
    def spectrum(**changes) -> dict[int, float]:
        frequency, power = welch(recorded(**changes)[16000:32000], 16000, nperseg=512)
        return {hz: 10 * np.log10(power[np.abs(frequency - hz) < 60].mean()) for hz in (125, 500, 1000, 2000, 6000)}

    flat, telephone, bright = spectrum(), spectrum(low_hz=250.0, high_hz=3600.0), spectrum(tilt_db=3.0)
    assert abs(flat[500] - flat[6000]) < 2
    assert telephone[1000] - telephone[6000] > 30 and telephone[1000] - telephone[125] > 12
    assert bright[2000] - bright[1000] - flat[2000] + flat[1000] == pytest.approx(3.0, abs=0.7)


def test_codecs_lose_what_is_far_below_the_voice():
    time = np.arange(16000) / 16000
    sound = (np.sqrt(2) * np.sin(600 * np.pi * time) + 0.01 * np.sin(10000 * np.pi * time)).astype(np.float32)

    def tone(track: np.ndarray, hz: int) -> float:
        return 2 * abs(np.mean(track * np.exp(-2j * np.pi * hz * time)))

    coded = {name: _coded(name, sound) for name, _ in CODECS}
    np.testing.assert_array_equal(coded["none"], sound)
    assert tone(coded["transform"], 5000) < 0.002 < 0.008 < tone(coded["mulaw"], 5000)
    for track in coded.values():
        assert tone(track, 300) == pytest.approx(np.sqrt(2), rel=0.02)
    noise = coded["mulaw"] - sound
    assert 0.003 < noise.std() < 0.05


def test_conditions_are_drawn_over_their_whole_ranges():
    drawn = [draw_recording(np.random.default_rng(seed)) for seed in range(300)]
    for name, (low, high) in (("level_db", LEVEL_DB), ("snr_db", SNR_DB)):
        values = [getattr(recording, name) for recording in drawn]
        assert low <= min(values) < low + 2 and high - 2 < max(values) <= high
    assert {recording.codec for recording in drawn} == {name for name, _ in CODECS}
    assert 0.1 < np.mean([recording.gate_db < 0 for recording in drawn]) < 0.5
    assert 0.15 < np.mean([recording.room_s == 0 for recording in drawn]) < 0.45
    assert draw_recording(np.random.default_rng(5)) == drawn[5]


def test_a_person_who_says_nothing_has_a_quiet_track():
    silent = np.zeros(16000, np.float32)
    track = record_track(PLAIN, silent, silent, [], np.random.default_rng(0))
    assert track.dtype == np.int16 and np.abs(track).max() < 3000
