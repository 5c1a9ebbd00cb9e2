"""Conversations out of the bank: what is said, where, and a face that follows it."""

import dataclasses

import fake_engine
import numpy as np
import pytest
from fake_engine import FakeEngine

from data_pipelines.phones import Phone, phone_tracks
from data_pipelines.record import validate
from data_pipelines.store import Store
from data_pipelines.synthetic import dataset
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.stretch import stretch
from data_pipelines.synthetic.bank.talk import STRETCH, Cast
from data_pipelines.synthetic.bank.visemes import opened, paint_phones
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.lips import LipTargets
from unils_jax.motion import JAW, STANDIN_SHAPES

CONFIG = SynthConfig(minutes=1.0)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Bank:
    made = Bank(tmp_path_factory.mktemp("bank"), speakers=fake_engine.SPEAKERS, engines={"fake": FakeEngine()})
    made.make()
    return made


@pytest.fixture(scope="module")
def record(bank):
    return dataset.make_conversation(CONFIG, 0, 0, cast=Cast(bank, "train", 0))


def test_a_conversation_repeats_bit_for_bit_and_is_valid(bank, record):
    validate(record)
    again = dataset.make_conversation(CONFIG, 0, 0, cast=Cast(bank, "train", 0))
    np.testing.assert_array_equal(again.audio, record.audio)
    np.testing.assert_array_equal(again.motion, record.motion)
    assert again.events == record.events


def test_another_take_says_the_same(bank, record):
    again = dataset.make_conversation(CONFIG, 0, 0, take=1, cast=Cast(bank, "train", 0))
    np.testing.assert_array_equal(again.audio, record.audio)
    assert again.speech == record.speech and (again.motion != record.motion).any()


def test_blinks_gazes_and_turns_are_drawn_as_with_builtin_voices(bank, record):
    builtin = dataset.make_conversation(CONFIG, 0, 0)
    assert record.events["turns"] == builtin.events["turns"]
    for ours, theirs in zip(record.events["people"], builtin.events["people"], strict=True):
        assert ours["blinks_per_min"] == theirs["blinks_per_min"] and ours["lead_s"] == theirs["lead_s"]
        assert len(ours["blinks"]) == pytest.approx(len(theirs["blinks"]), abs=12)


def test_phrases_hold_their_sentences_stretched_within_limits(record):
    for person, said in zip(record.events["people"], record.speech, strict=True):
        phrases = [(start, end) for start, end, *_ in person["phrases"]]
        assert phrases == [(start, end) for _, start, end, _ in said.sentences]
        assert all(a[1] < b[0] for a, b in zip(phrases, phrases[1:], strict=False))
        factors = [factor for *_, factor in said.sentences]
        assert STRETCH[0] - 1e-3 <= min(factors) and max(factors) <= STRETCH[1] + 1e-3
        spoken = phone_tracks(said.phones, record.num_frames).silence < 0.5
        mask = record.speech_mask[record.speech.index(said)]
        assert spoken.mean() > 0.1 and (spoken & ~mask).mean() < 0.02


def test_the_record_says_who_spoke_and_how_it_was_recorded(record):
    for said, track in zip(record.speech, record.audio, strict=True):
        assert said.engine == "fake" and said.speaker.startswith("fake-train") and said.language == "en-us"
        conditions = "level_db snr_db crosstalk_db room_s tilt_db low_hz high_hz codec gate_db"
        assert set(conditions.split()) <= set(said.recording)
        speaking = np.zeros(track.size, bool)
        for _, start, end, _ in said.sentences:
            speaking[round(start * 16000) : round(end * 16000)] = True
        level = 10 * np.log10(np.mean((track[speaking] / 32768.0) ** 2))
        assert level == pytest.approx(said.recording["level_db"], abs=1.0)


def test_faces_follow_the_phones(record):
    press = list(STANDIN_SHAPES).index("lip_press")
    for person, said in enumerate(record.speech):
        lead = round(said.lead_s * 25)
        tracks = [track[lead:] for track in phone_tracks(said.phones, record.num_frames)]
        bilabial, _, vowel, silence, openness = tracks
        motion = record.motion[person, : len(silence)].astype(float)
        jaw, spoken = motion[:, JAW][:, 0], silence < 0.5
        assert np.corrcoef(motion[spoken, press], bilabial[spoken])[0, 1] > 0.6
        clear = vowel > 0.9
        assert np.corrcoef(jaw[clear], openness[clear])[0, 1] > 0.4
        # Mouths rest where nothing is said for a while.
        near = np.convolve(~(silence == 1), np.ones(15), mode="same") > 0
        assert jaw[~near].std() < 0.25 * jaw[spoken].std()


def test_speakers_of_a_split_share_no_person_with_another_one(bank):
    casts = {split: Cast(bank, split, 0) for split in ("train", "val", "test")}
    speakers = {split: {cast.speaker(n).name for n in range(10)} for split, cast in casts.items()}
    assert all(len(names) == 2 for names in speakers.values())
    assert len(set.union(*speakers.values())) == 6
    assert all(casts["train"].speaker(n) != casts["train"].speaker(n + 3) for n in range(10))


def test_scenes_have_phones_too_but_no_sound(bank):
    cast = Cast(bank, "train", 0)
    monologue, idle = (dataset.make_scene(CONFIG, 0, index, cast) for index in range(2))
    assert monologue.audio is None and len(monologue.speech[0].phones) > 50 and not idle.speech[0].phones
    validate(monologue)
    jaw = monologue.motion[0, :, JAW][:, 0].astype(float)
    spoken = phone_tracks(monologue.speech[0].phones, monologue.num_frames).silence < 0.5
    assert jaw[spoken].mean() > jaw[~spoken].mean() + 0.01


def test_a_store_of_the_bank_repeats_and_its_settings_name_the_bank(bank, tmp_path):
    lines = [dataset.write(tmp_path / name, 3, minutes=0.2, bank=bank) for name in ("a", "b")]
    assert all("3 conversations" in line for line in lines)
    files = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]
    store = Store(tmp_path / "a")
    assert store.manifest["settings"]["bank"]["engines"] == {"fake": "1"}
    assert "already there" in dataset.write(tmp_path / "a", 3, minutes=0.2, bank=bank)
    splits = [store.source(split, 0).speech()[0].speaker.split("-")[1][:-1] for split in ("train", "val", "test")]
    assert splits == ["train", "val", "test"]


@pytest.mark.parametrize("factor", [0.85, 0.97, 1.0, 1.2])
def test_stretching_changes_the_length_and_not_the_pitch(factor):
    time = np.arange(32000) / 16000
    sound = (0.3 * np.sin(2 * np.pi * 150 * time) * (1 + 0.3 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)
    longer = stretch(sound, round(len(sound) * factor))
    assert len(longer) == round(len(sound) * factor)
    spectrum = np.abs(np.fft.rfft(longer))
    assert np.argmax(spectrum) * 16000 / len(longer) == pytest.approx(150, abs=2)
    assert np.std(longer) == pytest.approx(np.std(sound), rel=0.05)


def test_an_event_is_where_its_time_is_scaled_to():
    sound = np.random.default_rng(0).standard_normal(32000).astype(np.float32) * 0.01
    sound[16000:16400] += 1
    middle = np.mean(np.flatnonzero(np.abs(stretch(sound, 36000)) > 0.5))
    assert middle == pytest.approx(16200 * 36000 / 32000, abs=200)


def painted(*phones: Phone) -> dict[str, np.ndarray]:
    lips = LipTargets(1000, 1000, 0.0)
    paint_phones(lips, phones)
    return lips.blended(0.08)


def test_lips_do_what_each_phone_needs():
    for label in ("m", "b", "p"):
        lips = painted(Phone("a", 0.2, 0.4), Phone(label, 0.4, 0.46), Phone("a", 0.46, 0.7))
        assert lips["close"][430] > 0.55 and lips["open"][430] < 0.45 * lips["open"][300]
    lips = painted(Phone("a", 0.2, 0.4), Phone("f", 0.4, 0.5), Phone("i", 0.5, 0.7))
    assert lips["teeth"][450] > 0.4 and 0.2 < lips["close"][450] < 0.5
    assert lips["open"][300] > 2 * lips["open"][600] and lips["spread"][600] > 0.8
    lips = painted(Phone("u", 0.2, 0.5), Phone("aɪ", 0.5, 0.9))
    assert lips["round"][350] > 0.8 and lips["open"][600] > 1.3 * lips["open"][850]
    assert not any(track[950:].max() > 0.2 for track in lips.values())


def test_louder_is_wider_but_not_without_limit():
    wider = opened(np.full(4, 1.35), np.array([0.1, 1.0, 2.5, 100.0]))
    assert (np.diff(wider) > 0).all() and wider[0] < 0.4 and wider[-1] <= 2
    assert opened(np.array([0.1]), np.array([2.0]))[0] == pytest.approx(0.1 * 2**0.6, rel=0.01)


def test_builtin_voices_have_no_speech():
    record = dataset.make_conversation(dataclasses.replace(CONFIG, minutes=0.1), 0, 0)
    assert record.speech == () and "speech" not in record.events
