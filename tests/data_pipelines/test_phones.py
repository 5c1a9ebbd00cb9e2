"""Phones: their classes, their openness, and what a record and a store keep of them."""

import dataclasses
import json

import numpy as np
import pytest
import random_records

from data_pipelines.phones import ARPABET, Phone, PhoneClass, Speech, ipa, openness, phone_class, phone_tracks
from data_pipelines.record import validate
from data_pipelines.store import Store, write_store
from unils_jax.errors import UserError

SPEECH = Speech(
    (Phone("m", 0.2, 0.3), Phone("aɪ", 0.3, 0.5)),
    engine="flite",
    speaker="slt-0",
    language="en",
    lead_s=0.05,
    sentences=(("my", 0.2, 0.5, 1.1),),
    recording={"level_db": -20.0, "codec": "none"},
)


@pytest.mark.parametrize(
    ("label", "group"),
    [("m", "bilabial"), ("bʲ", "bilabial"), ("p͡f", "bilabial"), ("f", "labiodental"), ("vː", "labiodental"),
     ("aɪ", "vowel"), ("ˈɔ̃", "vowel"), ("s", "other"), ("tʃ", "other"), ("w", "other"), ("?", "other")],
)  # fmt: skip
def test_a_phone_has_the_class_of_its_lips(label, group):
    assert phone_class(label) == PhoneClass(group)
    assert (openness(label) is None) == (group != "vowel")


def test_vowels_open_in_the_order_of_the_chart():
    heights = [openness(label) for label in ("i", "ɪ", "e", "ə", "ɛ", "æ", "a")]
    assert heights == sorted(heights) and heights[0] == 0 and heights[-1] == 1
    assert openness("aɪ") == pytest.approx((openness("a") + openness("ɪ")) / 2)


def test_arpabet_becomes_ipa_and_pauses_become_silence():
    assert [ipa(label) for label in ("M", "AY1", "ah0", "jh", "SIL", "pau")] == ["m", "aɪ", "ʌ", "dʒ", "", ""]
    assert sum(phone_class(label) == PhoneClass.VOWEL for label in ARPABET.values()) == 18
    with pytest.raises(KeyError):
        ipa("qq")


def test_tracks_are_shares_of_frames():
    phones = [Phone("m", 0.06, 0.10), Phone("aɪ", 0.10, 0.16), Phone("f", 0.16, 0.2), Phone("s", 0.2, 0.24)]
    tracks = phone_tracks(phones, 8)
    np.testing.assert_allclose(tracks.silence, [1, 0.5, 0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(tracks.bilabial, [0, 0.5, 0.5, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(tracks.vowel, [0, 0, 0.5, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(tracks.labiodental, [0, 0, 0, 0, 1, 0, 0, 0])
    # Half of the diphthong is "a", of which 20 ms lie in the third frame and 10 in the fourth.
    np.testing.assert_allclose(tracks.openness[2:4], [1.0, 0.25 + 0.75 * 0.2])
    assert np.isnan(tracks.openness[[0, 1, 4, 5, 6, 7]]).all()


def test_a_store_keeps_what_was_said(tmp_path):
    record = random_records.record("talk")
    with_speech = dataclasses.replace(
        record, events={**record.events, "speech": [SPEECH.to_json(), Speech(()).to_json()]}
    )
    assert json.loads(json.dumps(with_speech.events)) == with_speech.events
    write_store(tmp_path / "s", [("train", with_speech), ("train", dataclasses.replace(record, name="silent"))])
    store = Store(tmp_path / "s")
    assert store.read("train", 0).speech == store.source("train", 0).speech() == (SPEECH, Speech(()))
    assert store.source("train", 0, 1).speech() == store.source("train", 0, 1).read().speech == (Speech(()),)
    assert store.read("train", 1).speech == store.source("train", 1).speech() == ()


def test_bad_phones_are_named():
    record = random_records.record("talk")
    late = Speech((Phone("m", 5.1, 9.0),)).to_json()
    for speech, problem in (
        ([SPEECH.to_json()], "must have 2 entries, got 1"),
        ([SPEECH.to_json(), late], "phones of person 1 must follow each other in the record, got 'm' from 5.1 to 9.0"),
        ([{}, {}], "must list 2 entries of Speech.to_json"),
    ):
        with pytest.raises(UserError, match=problem):
            validate(dataclasses.replace(record, events={"speech": speech}))
