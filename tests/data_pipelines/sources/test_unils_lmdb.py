"""The release's two sets are read as they are; what is wrong with a record is said of that record."""

import json

import numpy as np
import pytest
from foreign_data import motioncode, npz, release_value, talking, write_lmdb
from read_back import read_all

from data_pipelines.sources.base import Entry, SkippedEntry
from data_pipelines.sources.unils_lmdb import ReleaseSource, find_index, identity
from unils_jax.errors import UserError
from unils_jax.motion import from_motioncode

SEAMLESS = ("V00_S0809_I00000582_P0947", "V00_S0809_I00000582_P0950A")


@pytest.fixture
def make(tmp_path):
    def made(values: dict, index: dict) -> ReleaseSource:
        return ReleaseSource(*write_lmdb(tmp_path / f"release{len(list(tmp_path.iterdir()))}", values, index))

    return made


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("channels", [111, 112, 150])
def test_unpaired_motion_comes_as_it_is_stored(make, dtype, channels):
    code = motioncode(130, 1, dtype=dtype, channels=channels)
    source = make({"clip.a": npz(motioncode=code)}, {"train": [["clip.a", 130, "ignored"]], "val": [], "test": []})
    reading = read_all(source)["train", "clip.a"]
    assert source.entries() == [Entry("train", "clip.a", ("clip.a",), 130)]
    assert reading.record.motion.dtype == dtype and reading.frames_in == 130
    np.testing.assert_array_equal(reading.record.motion[0], from_motioncode(code))
    assert reading.record.audio is None and reading.record.speech_mask is None
    assert reading.record.expression_basis == "flame" and reading.record.observed is None


def test_an_index_of_people_alone_with_their_audio_as_artalk_has_it(make):
    source = make({"one": release_value(140, 4, audio="float32")}, {"train": [["one", 140]]})
    record = read_all(source)["train", "one"].record
    assert record.motion.shape == (1, 140, 108) and record.observed is None
    np.testing.assert_array_equal(record.audio[0], talking(140, 4)[1])


@pytest.mark.parametrize("audio", ["int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("compressed", [False, True])
def test_pairs_are_found_by_the_base_names_of_their_paths(make, audio, compressed):
    first, second = SEAMLESS
    values = {
        f"{first}.npz": release_value(140, 1, audio=audio, compressed=compressed),
        second: release_value(140, 2, audio=audio, mask=True),
    }
    source = make(values, {"val": {"pair": [f"some/path/{first}.npz", f"other/{second}", 140, "more"]}})
    (entry,) = source.entries()
    record = read_all(source)["val", "pair"].record
    assert entry.split == "val" and record.name == "pair"
    assert record.identities == ("V00_P0947", "V00_P0950A")
    assert record.motion.shape == (2, 140, 108) and record.audio.shape == (2, 140 * 640)
    _, samples, mask = talking(140, 2)
    np.testing.assert_array_equal(record.speech_mask[1], mask)
    if audio == "int16":
        np.testing.assert_array_equal(record.audio[1], (samples * 32767).astype(np.int16))
    else:
        np.testing.assert_array_equal(record.audio[1], samples.astype(audio).astype(np.float32))


def test_a_pair_without_a_mask_has_none(make):
    values = {"a": release_value(120, 1), "b": release_value(120, 2, mask=False)}
    assert read_all(make(values, {"train": {"p": ["a", "b", 120]}}))["train", "p"].record.speech_mask is None


def test_tracks_a_frame_apart_are_cut_to_the_shorter(make):
    values = {"a": release_value(141, 1), "b": release_value(140, 2)}
    reading = read_all(make(values, {"train": {"p": ["a", "b", 141]}}))["train", "p"]
    assert reading.frames_in == 141 and reading.record.motion.shape == (2, 140, 108)
    assert reading.record.speech_mask.shape == (2, 140) and reading.record.audio.shape == (2, 140 * 640)


def test_identities_are_read_where_the_names_tell_them():
    assert identity("V03_S0001_I00000009_P0011.npz") == identity("x/V03_S0777_I00000001_P0011") == "V03_P0011"
    for name in ("", "clip_0001", "V03_S0001", "XV03_S1_I2_P3", "V03_S1_I2_P3b4"):
        assert identity(name) == ""


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"b": release_value(140, 2)}, "missing partner: no value for 'a'"),
        ({}, "missing: no value for 'a', 'b'"),
        ({"a": b"nothing", "b": release_value(140, 2)}, "damaged: record 'a' is no .npz archive"),
        ({"a": release_value(150, 1)}, "lengths disagree: motion of person 1 150 frames.*the index 140 frames"),
        ({"a": npz(motioncode=motioncode(140, 1), audio=np.zeros(80_000, np.int16))}, "audio of person 1 125.0 frames"),
        ({"a": npz(motioncode=motioncode(140, 1))}, "record 'a' of a pair holds no audio"),
        ({"a": npz(audio=np.zeros(89_600, np.int16))}, r"must hold float motioncode \[T, 111 or more\], got none"),
        ({"a": release_value(140, 1, channels=110)}, r"got float16 \[140, 110\]"),
        ({"a": npz(motioncode=np.zeros((140, 112), int))}, r"got int64 \[140, 112\]"),
        ({"a": npz(motioncode=motioncode(140, 1), audio=np.zeros((2, 9)))}, r"float audio \[N\], got float64 \[2, 9\]"),
        (
            {"a": npz(motioncode=motioncode(140, 1), audio=np.zeros(89_600), speech_mask=np.zeros((140, 2)))},
            r"a speech_mask \[T\] of 0 and 1, got float64 \[140, 2\]",
        ),
        ({"a": npz(motioncode=np.array([None, {}]))}, "as pickled objects, which are never read"),
        (
            {"a": npz(motioncode=motioncode(140, 1), audio=np.full(89_600, 1200.0))},
            "out of range: audio reaches 1200, floating point audio is -1..1",
        ),
        (
            {"a": npz(motioncode=motioncode(140, 1), audio=np.full(89_600, np.inf))},
            "NaN or infinite values: audio in 89600 samples",
        ),
        (
            {"a": npz(motioncode=np.full((140, 112), 2e3, np.float32), audio=np.zeros(89_600))},
            "out of range: motion reaches 2000",
        ),
        (
            {
                "a": npz(
                    motioncode=np.where(np.arange(140)[:, None] == 7, np.nan, motioncode(140, 1)),
                    audio=np.zeros(89_600),
                )
            },
            "NaN or infinite values: motion in 1 frames, the first 7",
        ),
    ],
)
def test_broken_pairs_are_dropped_with_the_reason(make, values, reason):
    whole = {"b": release_value(140, 2)} if values and "b" not in values else {}
    source = make(values | whole, {"train": {"pair": ["x/a", "x/b", 140]}})
    dropped = read_all(source)["train", "pair"]
    assert isinstance(dropped, SkippedEntry) and dropped.frames == 140
    with pytest.raises(SkippedEntry, match=reason):
        raise dropped


def test_sequences_too_short_for_a_window_are_dropped(make):
    values = {name: npz(motioncode=motioncode(frames, 1)) for name, frames in (("a", 101), ("b", 102))}
    got = read_all(make(values, {"train": [["a", 101], ["b", 102]]}))
    short = got["train", "a"]
    assert str(short) == "too short: 101 frames, at least 102 are needed" and short.frames == 101
    assert got["train", "b"].record.num_frames == 102


def test_an_index_that_is_wrong_about_an_entry_costs_that_entry_only(make):
    values = {"a": npz(motioncode=motioncode(130, 1))}
    index = {
        "train": [["a", 130], ["a"], 3, ["x", "y"], ["x", -1], ["x", 10**12], [None, 3], ["k" * 600, 130], ["", 5]]
    }
    got = list(read_all(make(values, index)).values())
    reasons = [item.reason for item in got if isinstance(item, SkippedEntry)]
    assert got[0].record.name == "a" and set(reasons) == {"damaged", "missing"}
    assert sum(item.frames for item in got if isinstance(item, SkippedEntry)) == 130 + 5


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"train": 3}', "[" * 100_000, '{"train": "abc"}'])
def test_an_index_that_is_none_is_refused(make, content):
    source = make({}, {"train": []})
    source.index.write_text(content)
    with pytest.raises(UserError, match="index") as error:
        source.entries()
    assert "\n" not in str(error.value)


def test_the_index_is_found_beside_or_in_the_source(tmp_path):
    path, index = write_lmdb(tmp_path / "a", {}, {})
    assert find_index(path) == index and find_index(tmp_path / "a") == index
    (tmp_path / "a" / "more.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="found index.json, more.json; name it with --index"):
        find_index(path)


def test_a_folder_that_is_no_lmdb_or_is_cut_short_is_refused(make, tmp_path):
    source = make({str(i): release_value(120, 1) for i in range(8)}, {"train": [["0", 120]]})
    data = source.lmdb_path / "data.mdb"
    content = data.read_bytes()
    for cut, message in ((content[: len(content) // 2], "its own header says"), (b"x" * 9000, "is no LMDB")):
        data.write_bytes(cut)
        with pytest.raises(UserError, match=message), source.open():
            pass
    with pytest.raises(UserError, match="data.mdb does not exist"), ReleaseSource(tmp_path, source.index).open():
        pass
