"""Kept audio features: rounding as stated, records and windows where they belong, going on, and what is refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.record import Record
from data_pipelines.store.features import RECORDS_PER_SHARD, FeatureFacts, FeatureStore, frame_bytes, pack, unpack
from data_pipelines.store.features import write_features as write
from data_pipelines.windows import RecordSource, cut_window
from unils_jax.errors import UserError
from unils_jax.motion import Window

FACTS = FeatureFacts("window", "s", "e", "each", 4, 6, 320, Window())
COUNTS = {"train": RECORDS_PER_SHARD + 2, "val": 1}


def features(split: str, record: int, frames: int = 12) -> np.ndarray:
    seed = 100 * (split == "val") + record
    return np.random.default_rng(seed).normal(0, 2, (2, frames, FACTS.dim)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 0.0), ("bf16", 2.0**-8), ("int8", 0.01)])
def test_numbers_come_back_within_their_rounding(dtype, relative):
    x = features("train", 0) * np.logspace(-3, 3, 12).astype(np.float32)[None, :, None]
    rows = np.frombuffer(pack(x, dtype), np.uint8).reshape(2, 12, frame_bytes(FACTS.dim, dtype))
    back = unpack(rows, dtype)
    assert back.shape == x.shape and back.dtype == np.float32
    bound = np.abs(x) if dtype == "bf16" else np.abs(x).max(-1, keepdims=True)
    assert (np.abs(back - x) <= relative * bound).all() and (relative == 0) == (back == x).all()
    assert not unpack(np.frombuffer(pack(0 * x, dtype), np.uint8).reshape(rows.shape), dtype).any()


def test_every_record_is_read_where_it_was_written_and_the_error_is_stated(tmp_path):
    manifest = write(tmp_path / "f", FACTS, COUNTS, features, dtype="bf16")
    store = pickle.loads(pickle.dumps(FeatureStore(tmp_path / "f")))
    assert store.facts == FACTS and not store.facts.problems(FACTS)
    for split, record in (("train", 0), ("train", RECORDS_PER_SHARD - 1), ("train", RECORDS_PER_SHARD + 1), ("val", 0)):
        np.testing.assert_allclose(store.frames(split, record, 3, 4), features(split, record)[:, 3:7], rtol=2.0**-8)
    outside = store.frames("train", 1, -2, 16)
    assert not outside[:, :2].any() and not outside[:, 14:].any() and outside[:, 2:14].any()
    every = [features(split, record) for split, count in COUNTS.items() for record in range(count)]
    kept = [store.frames(split, record, 0, 12) for split, count in COUNTS.items() for record in range(count)]
    error = np.stack(kept).astype(np.float64) - np.stack(every)
    np.testing.assert_allclose(manifest["error"]["largest"], np.abs(error).max())
    np.testing.assert_allclose(
        manifest["error"]["relative_rms"], np.sqrt((error**2).sum() / (np.stack(every) ** 2).sum()), rtol=1e-5
    )


def test_an_interrupted_encoding_goes_on_with_the_shard_that_it_was_at(tmp_path):
    made = []

    def encode(split: str, record: int) -> np.ndarray:
        if len(made) == RECORDS_PER_SHARD + 1:
            raise KeyboardInterrupt
        made.append((split, record))
        return features(split, record)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f", FACTS, COUNTS, encode, dtype="int8")
    with pytest.raises(UserError, match="holds no finished features"):
        FeatureStore(tmp_path / "f")
    again = []
    first = write(tmp_path / "f", FACTS, COUNTS, lambda *place: again.append(place) or features(*place), dtype="int8")
    assert again == [("train", RECORDS_PER_SHARD), ("train", RECORDS_PER_SHARD + 1), ("val", 0)]
    whole = write(tmp_path / "whole", FACTS, COUNTS, features, dtype="int8")
    assert first == whole
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "f" / file.name).read_bytes() == file.read_bytes()


def test_other_features_and_other_folders_are_not_written_over(tmp_path):
    write(tmp_path / "f", FACTS, COUNTS, features, dtype="bf16")
    for facts, dtype in ((replace(FACTS, encoder="other"), "bf16"), (FACTS, "int8")):
        with pytest.raises(UserError, match="of another store, encoder or setting; name a new folder"):
            write(tmp_path / "f", facts, COUNTS, features, dtype=dtype)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no features"):
        write(tmp_path / "mine", FACTS, COUNTS, features, dtype="bf16")
    (tmp_path / "f" / "val-00000.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="are damaged .*holds 5 bytes"):
        FeatureStore(tmp_path / "f").frames("val", 0, 0, 1)
    words = FACTS.problems(replace(FACTS, store="t", encoder="u", dim=7))
    assert words == ["of another store", "of another audio encoder", "dim is 6, not 7"]


def record(frames: int) -> RecordSource:
    rng = np.random.default_rng(0)
    motion = rng.normal(0, 1, (2, frames, 108)).astype(np.float32)
    audio = rng.normal(0, 0.1, (2, frames * 640)).astype(np.float32)
    return RecordSource(Record("r", motion, audio, None, "standin"))


def test_windows_of_mode_window_have_no_jitter_and_their_own_features(tmp_path):
    write(tmp_path / "f", FACTS, COUNTS, features, dtype="float32")
    store, source = FeatureStore(tmp_path / "f"), record(260)
    cut = store.cut(source, 100, lambda low, high: high, Window(), centred=True, place=("train", 1))
    fixed = cut_window(source, 100, lambda low, high: 100 if low == 100 else high)
    assert cut.keys() == (fixed.keys() - {"audio"}) | {"audio_features"}
    for name in ("motion", "prev", "style"):
        np.testing.assert_array_equal(cut[name], fixed[name])
    np.testing.assert_array_equal(cut["audio_features"], features("train", 1)[:, 8:12])


def test_windows_of_mode_record_have_the_jitter_and_the_features_of_where_they_are(tmp_path):
    facts, frames = replace(FACTS, mode="record", frames_per_window=199), 520
    write(tmp_path / "f", facts, {"train": 1}, lambda *place: features(*place, frames), dtype="float32")
    store, source = FeatureStore(tmp_path / "f"), record(260)
    for drawn, start in ((130, 130), (150, 150)):
        cut = store.cut(
            source, 100, lambda low, high, at=drawn: min(at, high), Window(), centred=True, place=("train", 0)
        )
        found = features("train", 0, frames)[:, 2 * start : 2 * start + 199]
        np.testing.assert_array_equal(cut["audio_features"], found)
        np.testing.assert_array_equal(
            cut["motion"], cut_window(source, 100, lambda low, high, at=drawn: min(at, high))["motion"]
        )
