"""Figures of speech and liveliness on motion whose answer is known."""

import dataclasses

import numpy as np
import pytest
from random_people import person

from data_pipelines.phones import Phone, Speech
from data_pipelines.synthetic.faces import JAW_PER_OPENING, NAMED_MIX
from unils_jax.evaluation.behaviour_metrics import blinks, border_jumps
from unils_jax.evaluation.figures.speech import (
    Voice,
    articulation,
    cut_phones,
    jaw_loudness,
    lip_phones,
    phone_figures,
    silent_frames,
    speech_figures,
    spread,
    spread_in_silence,
)
from unils_jax.evaluation.metrics import ScoreTable, score_person
from unils_jax.motion import GROUPS, HEAD, JAW, STANDIN_SHAPES

FULL = np.array(list(STANDIN_SHAPES.values()))


def still(frames: int) -> np.ndarray:
    return np.zeros((frames, 108), np.float32)


def of_latents(frames: int, **latents: np.ndarray) -> np.ndarray:
    """Motion in the stand-in basis in which the articulators move as given, 0..1."""
    motion = still(frames)
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        motion[:, channel] = full * sum(NAMED_MIX[name].get(latent, 0.0) * track for latent, track in latents.items())
    motion[:, JAW] = JAW_PER_OPENING * np.reshape(latents.get("open", np.zeros(frames)), (-1, 1))
    return motion


def voice_of(phones: list[Phone], frames: int) -> Voice:
    return Voice(np.ones(frames, bool), None, lip_phones(Speech(tuple(phones)), frames))


def test_twelve_blinks_a_minute_of_a_fifth_of_a_second():
    motion = still(1500)  # a minute
    for start in range(60, 1500, 125):
        motion[start : start + 5, [list(STANDIN_SHAPES).index(f"blink_{side}") for side in ("left", "right")]] = 4.0
    found = blinks(motion, np.ones(1500, bool))
    assert found.per_minute == 12 and found.duration_s == pytest.approx(0.2)


def test_a_step_three_times_as_large_at_the_border():
    motion = still(400)
    motion[:, HEAD.start] = 0.01 * np.arange(400) + 0.02 * (np.arange(400) // 100)
    assert border_jumps(motion, np.ones(400, bool))["head"] == pytest.approx(3, rel=1e-4)


def test_spread_is_the_deviation_over_time():
    motion = still(1000)
    motion[:, HEAD] = 0.2 * np.sin(np.arange(1000) * 2 * np.pi / 100)[:, None]
    motion[:, JAW.start] = np.tile([0.1, 0.3], 500)
    found = spread(motion)
    assert found["head"] == pytest.approx(0.2 / np.sqrt(2)) and found["jaw"] == pytest.approx(0.1)
    assert found["expression"] == found["eyes"] == 0


def test_liveliness_falls_from_quarter_to_quarter():
    motion = still(400)
    motion[:, JAW.start] = np.tile([-1.0, 1.0], 200) * np.repeat([0.4, 0.3, 0.2, 0.1], 100)
    found = speech_figures(motion, motion, Voice(np.ones(400, bool), None, None), "standin")
    quarters = [found[f"both/spread_quarter{number}_jaw"] for number in (1, 2, 3, 4)]
    assert quarters == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_jaw_that_is_the_loudness_a_frame_early_follows_it_and_no_shuffled_one():
    loudness = np.random.default_rng(0).normal(-30, 6, 800).astype(np.float32)
    motion, speaking = still(800), np.arange(800) // 100 % 2 == 0
    motion[:-1, JAW.start] = 0.01 * loudness[1:] + 0.5
    assert jaw_loudness(motion, loudness, speaking) == pytest.approx(1, abs=1e-5)
    assert abs(jaw_loudness(motion, loudness, speaking, shuffled=True)) < 0.05
    assert jaw_loudness(-motion, loudness, speaking) == pytest.approx(-1, abs=1e-5)
    motion[:, JAW.start] = loudness  # without the lead
    assert abs(jaw_loudness(motion, loudness, speaking)) < 0.3
    assert np.isnan(jaw_loudness(motion, None, speaking))
    assert np.isnan(jaw_loudness(motion, loudness, np.zeros(800, bool)))


def test_the_jaw_is_compared_with_the_loudness_of_speech_alone_and_a_still_one_not_at_all():
    loudness, motion, speaking = np.arange(100, dtype=np.float32), still(100), np.zeros(100, bool)
    speaking[20:60] = True
    assert np.isnan(jaw_loudness(motion, loudness, np.ones(100, bool)))
    motion[:-1, JAW.start] = np.where(speaking, loudness, 1000 - loudness)[1:]
    assert jaw_loudness(motion, loudness, speaking) == pytest.approx(1, abs=1e-5)


def test_silence_begins_a_fifth_of_a_second_from_speech():
    speaking = np.zeros(40, bool)
    speaking[15:20] = True
    assert np.flatnonzero(~silent_frames(speaking)).tolist() == list(range(10, 25))
    assert silent_frames(np.zeros(5, bool)).all()


def test_spread_in_silence_is_over_that_in_speech():
    speaking = np.arange(200) < 100
    motion = still(200)
    motion[:, JAW.start] = np.tile([0.0, 1.0], 100) * np.where(speaking, 0.4, 0.1)
    motion[100:105, JAW.start] = 9.0  # next to speech, where nothing is asked of the mouth
    silent = motion[105:, JAW.start]
    assert spread_in_silence(motion, speaking) == pytest.approx(silent.std() / 0.2, rel=1e-5)
    assert np.isnan(spread_in_silence(motion, np.ones(200, bool)))


def test_a_decoded_jaw_that_is_the_true_one_upside_down():
    motion = still(100)
    motion[:, JAW.start] = np.random.default_rng(0).normal(size=100)
    voice = Voice(np.arange(100) < 60, None, None)
    assert speech_figures(motion, motion, voice, "flame")["speaking/jaw_to_true_jaw"] == pytest.approx(1)
    assert speech_figures(-motion, motion, voice, "flame")["speaking/jaw_to_true_jaw"] == pytest.approx(-1)


def test_vowels_open_the_jaw_as_far_as_they_are_open():
    phones = [Phone(label, 0.2 * i, 0.2 * (i + 1)) for i, label in enumerate("iaumɛspɑ" * 5)]
    voice = voice_of(phones, 200)
    motion = still(200)
    motion[:, JAW.start] = np.nan_to_num(voice.phones.openness, nan=5.0)  # of consonants nothing is asked
    assert phone_figures(motion, voice, "flame")["vowel_openness"] == pytest.approx(1)
    assert phone_figures(-motion, voice, "standin")["vowel_openness"] == pytest.approx(-1)


def test_lips_close_at_bilabials_and_meet_the_teeth_at_labiodentals():
    phones = [Phone(label, 0.12 * i, 0.12 * (i + 1)) for i, label in enumerate("ambavisɛpafu" * 5)]
    voice = voice_of(phones, 200)
    tracks = voice.phones
    drift = np.sin(np.arange(200) / 30)
    spoken = of_latents(
        200, open=tracks.vowel, close=tracks.bilabial, teeth=tracks.labiodental, smile=0.3 * drift, drift1=drift
    )
    found = phone_figures(spoken, voice, "standin")
    assert found["bilabial_closure"] > 0.95 and found["labiodental_closure"] > 0.95
    # A jaw that closes at every consonant is no lips that do.
    noise = 0.01 * np.random.default_rng(0).normal(size=(200, 108)).astype(np.float32)
    jaw_alone = phone_figures(of_latents(200, open=tracks.vowel, drift1=drift) + noise, voice, "standin")
    assert abs(jaw_alone["bilabial_closure"]) < 0.25 and abs(jaw_alone["labiodental_closure"]) < 0.25
    # FLAME's coefficients say nothing by name: a closed jaw counts.
    jaw = still(200)
    jaw[:, JAW.start] = 1 - tracks.bilabial
    assert phone_figures(jaw, voice, "flame")["bilabial_closure"] == pytest.approx(1)


def test_articulators_are_read_back():
    rng = np.random.default_rng(0)
    latents = {name: rng.uniform(0, 0.5, 500) for name in ("open", "close", "teeth", "smile", "round")}
    motion = of_latents(500, **latents)
    motion[:, :24] += 0.02 * FULL * rng.normal(size=(500, 24))
    found = articulation(motion)
    for name in ("open", "close", "teeth"):
        assert np.corrcoef(found[name], latents[name])[0, 1] > 0.9


def test_lips_say_phones_before_they_sound():
    speech = Speech((Phone("m", 1.0, 1.2),), lead_s=0.08)
    assert np.flatnonzero(lip_phones(speech, 50).bilabial).tolist() == [23, 24, 25, 26, 27]
    assert np.flatnonzero(cut_phones(lip_phones(speech, 50), slice(20, 40)).bilabial).tolist() == [3, 4, 5, 6, 7]


def test_without_phones_their_figures_are_undefined_and_the_others_are_there():
    someone = person(1)
    figures, true = score_person(someone, None, "standin")
    assert np.isnan(figures["behaviour/speaking/bilabial_closure"])
    assert true["behaviour/speaking/jaw_to_true_jaw"] == pytest.approx(1)
    assert figures["behaviour/both/spread_head"] > 0
    phones = lip_phones(Speech((Phone("m", 1.0, 2.0), Phone("a", 2.0, 3.0), Phone("i", 3.0, 3.6))), 260)
    told, _ = score_person(dataclasses.replace(someone, phones=phones), None, "standin")
    assert np.isfinite(told["behaviour/speaking/bilabial_closure"])


def test_a_report_sets_each_figure_against_the_truth():
    table = ScoreTable(None, "standin", np.zeros(108, np.float32), np.ones(108, np.float32))
    truth = person(1)
    table.add("a", [[dataclasses.replace(truth, prediction=truth.truth * np.float32(0.5))]])
    for group in GROUPS:
        entry = table.metrics()[f"behaviour/both/spread_{group}"]
        assert entry["over_truth"] == pytest.approx(0.5) and entry["mean"] == pytest.approx(0.5 * entry["truth"])
