"""Writing a store: whole shards or none, equal bytes for equal records, a layout that others read."""

import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from random_records import record
from read_back import snapshot

from data_pipelines.record import Record
from data_pipelines.store.reader import Store, write_store
from data_pipelines.store.writer import Dtypes, finish_store, shard_is_complete, shard_summary, write_shard
from unils_jax.errors import UserError


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record("a", 130, seed=1), record("b", 170, seed=2), record("d", 110, seed=4)]


def test_tensorflow_datasets_opens_a_store_without_tensorflow(tmp_path, records):
    stray = [record("e", 260, people=1, seed=5)]
    folder = tmp_path / "store"
    write_shard(folder, "train", 0, [records[0]])
    write_shard(folder, "train", 1, [])
    write_shard(folder, "train", 2, [replace(stray[0], audio=None), records[1]])
    write_shard(folder, "test", 0, stray)
    finish_store(folder, {"train": 3, "test": 1})
    program = textwrap.dedent(
        f"""
        import importlib.util, json
        assert importlib.util.find_spec("tensorflow") is None, "this test says something where TensorFlow is absent"
        import tensorflow_datasets as tfds
        place = {str(folder)!r}
        motion, audio = tfds.builder_from_directory(place), tfds.builder_from_directory(place + "/audio")
        rows = motion.as_data_source(split="train")
        print(json.dumps([
            [[r["record"].decode(), *(int(r[k]) for k in ("person", "start_frame")), r["motion"].sum(dtype="f8")] 
             for r in rows],
            [r["audio"].astype("f8").sum() for r in audio.as_data_source(split="train")],
            [len(motion.as_data_source(split="test")), sorted(motion.info.splits), str(rows[0]["motion"].dtype)],
        ]))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    motion_rows, audio_sums, rest = json.loads(done.stdout.splitlines()[-1])
    assert rest == [3, ["test", "train"], "float16"]
    expected, sums = [], []
    for r, has_audio in ((records[0], True), (stray[0], False), (records[1], True)):
        for first in range(0, r.num_frames, 125):
            for person in range(r.num_people):
                cut = r.motion[person, first : first + 125]
                expected.append([r.name, person, first, cut.astype(np.float64).sum()])
                if has_audio:
                    sums.append(float(r.audio[person, first * 640 : (first + 125) * 640].astype(np.float64).sum()))
    assert motion_rows == expected and audio_sums == sums


def test_equal_records_give_equal_bytes_in_any_order_of_shards(tmp_path, records):
    plan = {("train", 0): [records[0]], ("train", 1): [records[1]], ("test", 0): [records[2]]}
    for name, order in (("a", list(plan)), ("b", list(plan)[::-1])):
        for split, shard in order:
            write_shard(tmp_path / name, split, shard, plan[split, shard])
        finish_store(tmp_path / name, {"train": 2, "test": 1}, source="lab", settings={"x": 1})
    finish_store(tmp_path / "b", {"train": 2, "test": 1}, source="lab", settings={"x": 1})
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    manifest = Store(tmp_path / "a").manifest
    files = snapshot(tmp_path / "a")
    listed = {name: hashlib.sha256(files[name]).hexdigest() for name in manifest["files"]}
    assert listed == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert set(files) - set(listed) == {"manifest.json", *(f"index/{s}-0000{i}.npz" for s, i in plan)}


def test_a_shard_is_there_when_it_is_whole(tmp_path, records):
    def cut_short():
        yield records[0]
        raise UserError("power cut")

    with pytest.raises(UserError, match="power cut"):
        write_shard(tmp_path, "train", 0, cut_short())
    assert not shard_is_complete(tmp_path, "train", 0) and not any(snapshot(tmp_path))
    write_shard(tmp_path, "train", 0, [records[0]])
    assert shard_is_complete(tmp_path, "train", 0)
    with pytest.raises(UserError, match="power cut"):
        write_shard(tmp_path, "train", 0, cut_short())
    assert not shard_is_complete(tmp_path, "train", 0)
    with pytest.raises(UserError, match="is no store"):
        Store(tmp_path)
    with pytest.raises(UserError, match="lacks 2 shards: train-0, train-1"):
        finish_store(tmp_path, {"train": 2})
    made = write_shard(tmp_path, "train", 0, [records[0]])
    assert made == shard_summary(tmp_path, "train", 0) and made["records"] == 1 and made["frames"] == 130


def test_shards_that_do_not_belong_together_are_refused(tmp_path, records):
    write_shard(tmp_path, "train", 0, [records[0]])
    write_shard(tmp_path, "train", 1, [replace(records[1], expression_basis="flame")])
    with pytest.raises(UserError, match=r"one expression_basis, got \['flame', 'standin'\]"):
        finish_store(tmp_path, {"train": 2})
    with pytest.raises(UserError, match="another expression_basis"):
        write_shard(tmp_path, "train", 1, [records[1]], basis="flame")
    write_shard(tmp_path, "train", 1, [records[1]], dtypes=Dtypes("float32"))
    with pytest.raises(UserError, match="shards of other dtypes"):
        finish_store(tmp_path, {"train": 2})
    (tmp_path / "index" / "train-00001.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="train-00001.npz is damaged"):
        finish_store(tmp_path, {"train": 2})


def test_what_float16_and_int16_cost_is_stated(tmp_path):
    rng = np.random.default_rng(0)
    wide = replace(
        record("a"),
        motion=rng.uniform(-1, 1, (2, 130, 108)).astype(np.float32),
        audio=rng.uniform(-1, 1, (2, 130 * 640)).astype(np.float32),
    )
    write_store(tmp_path / "half", [("train", wide)])
    write_store(tmp_path / "full", [("train", wide)], dtypes=Dtypes("float32", "float32"))
    half, full = Store(tmp_path / "half"), Store(tmp_path / "full")
    stored = half.read("train", 0)
    worst = np.abs(stored.motion.astype(np.float32) - wide.motion).max()
    stated = half.manifest["conversion_error"]
    assert stated["motion"]["largest_absolute"] == worst and 1e-4 < worst <= 2**-12
    worst = np.abs(stored.audio / np.float32(32768) - wide.audio).max()
    assert stated["audio"]["largest_absolute"] == worst <= 0.5 / 32768 + 1e-9
    assert [full.manifest["conversion_error"][k]["largest_absolute"] for k in ("motion", "audio")] == [0, 0]
    np.testing.assert_array_equal(full.read("train", 0).motion, wide.motion)
    np.testing.assert_array_equal(full.read("train", 0).audio, wide.audio)
    with pytest.raises(UserError, match="record 'a': motion of 70000 does not fit float16"):
        write_store(tmp_path / "big", [("train", replace(wide, motion=wide.motion + np.float32(7e4) - wide.motion))])
    with pytest.raises(UserError, match="keeps motion as one of"):
        Dtypes("bfloat16")


def test_a_store_without_training_records_is_for_evaluation(tmp_path, records):
    write_store(tmp_path / "store", [("test", records[0])])
    store = Store(tmp_path / "store")
    assert store.lengths("train").tolist() == [] and store.read("test", 0).name == "a"
    with pytest.raises(UserError, match="no motion in the train split"):
        store.statistics()
