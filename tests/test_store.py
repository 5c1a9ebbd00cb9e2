"""The store: what goes in comes out, statistics are right, and damage is named."""

import json
import pickle

import numpy as np
import pytest

from data_pipelines.schema import Record
from data_pipelines.store import Store, write_store
from unils_jax.errors import UserError
from unils_jax.motion import center_head


def record(name: str, frames: int = 130, people: int = 2, dtype=np.float16, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    motion = (rng.standard_normal((people, frames, 108)) + 0.5).astype(dtype)
    audio = rng.integers(-3000, 3000, (people, frames * 640)).astype(np.int16)
    return Record(name, motion, audio, rng.random((people, frames)) < 0.5, "standin", {"turns": [[0, 1.5, 2.0]]})


@pytest.fixture(scope="module")
def records() -> list[tuple[str, Record]]:
    return [
        ("train", record("a", 130, seed=1)),
        ("train", record("b", 170, seed=2)),
        ("val", record("c", 120, seed=3)),
        ("test", record("d", 110, seed=4)),
    ]


@pytest.fixture
def store(tmp_path, records) -> Store:
    write_store(tmp_path / "store", iter(records), settings={"seed": 3})
    return Store(tmp_path / "store")


def test_records_come_back_bit_for_bit(store, records):
    for split, i, expected in (("train", 0, records[0][1]), ("train", 1, records[1][1]), ("test", 0, records[3][1])):
        got = store.read(split, i)
        for name in ("motion", "audio", "speech_mask"):
            assert getattr(got, name).dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert (got.name, got.expression_basis, got.events) == (expected.name, "standin", expected.events)


def test_records_without_audio_and_mask_come_back_without(tmp_path):
    single = Record("s", np.ones((1, 120, 108), np.float32), None, None, "flame")
    write_store(tmp_path / "store", [("train", single)])
    got = Store(tmp_path / "store").read("train", 0)
    assert got.audio is None and got.speech_mask is None and got.motion.dtype == np.float32


def test_audio_can_be_left_on_the_disk(store):
    got = store.read("train", 0, with_audio=False)
    assert got.audio is None and got.speech_mask is not None


def test_the_manifest_tells_names_and_lengths_without_reading(store):
    assert store.lengths("train") == [130, 170]
    assert [entry["name"] for entry in store.records("val")] == ["c"]
    train = store.manifest["splits"]["train"]
    assert (train["count"], train["frames"]) == (2, 300)
    assert train["hours"] == pytest.approx(300 / 25 / 3600)
    assert store.manifest["settings"] == {"seed": 3} and store.expression_basis == "standin"


def test_statistics_are_those_of_the_centred_training_split(store, records):
    frames = [center_head(r.motion).astype(np.float64).reshape(-1, 108) for split, r in records if split == "train"]
    mean, std = store.statistics()
    np.testing.assert_allclose(mean, np.concatenate(frames).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, np.concatenate(frames).std(axis=0), atol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_a_store_pickles_before_and_after_reading(store, records):
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(copy.read("val", 0).motion, records[2][1].motion)
        store.read("val", 0)


def test_an_existing_folder_with_something_in_it_is_left_alone(tmp_path, records):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        write_store(tmp_path, records)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path, records):
    (tmp_path / "store").mkdir()
    write_store(tmp_path / "store", records)
    assert Store(tmp_path / "store").lengths("test") == [110]


def test_a_failure_half_way_leaves_nothing(tmp_path, records):
    def failing():
        yield records[0]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_store(tmp_path / "store", failing())
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_when_writing(tmp_path, records):
    bad = Record("bad", np.full((1, 120, 108), np.nan, np.float32), None, None, "flame")
    other_basis = Record("f", np.ones((1, 120, 108), np.float32), None, None, "flame")
    for items, message in (
        ([("train", bad)], "record 'bad'.*NaN"),
        ([("dev", records[0][1])], "split of record 'a'"),
        ([("val", records[0][1])], "at least one record in its train split"),
        ([records[0], ("train", other_basis)], "another expression_basis"),
    ):
        with pytest.raises(UserError, match=message):
            write_store(tmp_path / "store", items)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_store(tmp_path / "file" / "store", records)


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match="is no store: .*manifest.json does not exist"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [("{", "manifest.json is damaged"), ("[]", "manifest.json is damaged"), ("{}", "manifest.json is damaged")],
)
def test_a_damaged_manifest_is_named(store, content, message):
    (store.path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Store(store.path)


def test_a_manifest_of_another_version_is_refused(store):
    manifest = store.manifest | {"format_version": 99}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="format_version 99"):
        Store(store.path)


def test_missing_and_truncated_files_are_named(store):
    file = store.path / "train.array_record"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="train.array_record has .* bytes, its manifest says"):
        store.read("train", 0)
    file.unlink()
    with pytest.raises(UserError, match="train.array_record is missing"):
        store.read("train", 0)


def test_overwritten_bytes_are_found_and_named(store):
    file = store.path / "train.array_record"
    content = bytearray(file.read_bytes())
    content[1000:60000] = bytes(59000)
    file.write_bytes(content)
    with pytest.raises(UserError, match="train.array_record is damaged at record 0") as error:
        store.read("train", 0)
    assert "\n" not in str(error.value)


def test_records_and_splits_that_are_not_there_are_refused(store):
    with pytest.raises(UserError, match="there is no record 2"):
        store.read("train", 2)
    with pytest.raises(UserError, match="split must be one of"):
        store.lengths("dev")
