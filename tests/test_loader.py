"""The loader: deterministic, complete, resumable, and off the accelerator."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from data_pipelines.loader import RecordCache, make_loader, window_items
from data_pipelines.schema import Record
from data_pipelines.store import Store, write_store
from data_pipelines.windows import centered
from unils_jax.errors import UserError


def dialogue(name: str, frames: int, seed: int) -> Record:
    rng = np.random.default_rng(seed)
    motion = rng.standard_normal((2, frames, 108)).astype(np.float16)
    # Channels 0 and 1 name the person and the frame.
    motion[:, :, 0] = np.array([[2 * seed], [2 * seed + 1]])
    motion[:, :, 1] = np.arange(frames)
    audio = rng.integers(-3000, 3000, (2, frames * 640)).astype(np.int16)
    return Record(name, motion, audio, rng.random((2, frames)) < 0.5, "standin")


@pytest.fixture(scope="module")
def store_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "store"
    records = [("train", dialogue(f"r{i}", 130 + 50 * i, i)) for i in range(3)]
    write_store(path, [*records, ("val", dialogue("v", 120, 3)), ("test", dialogue("t", 90, 4))])
    return str(path)


def take(loader, count: int) -> list[dict[str, np.ndarray]]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def assert_same(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_solo_batches_hold_single_people(store_path):
    (batch,) = take(make_loader(store_path, "train", view="solo", batch_size=5, seed=0), 1)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: ((5, 100, 108), np.float32) for name in ("motion", "prev", "style")
    }
    # Style is of the same person as motion.
    np.testing.assert_array_equal(batch["motion"][:, 0, 0], batch["style"][:, 0, 0])


def test_pair_batches_hold_both_people_with_audio(store_path):
    (batch,) = take(make_loader(store_path, "train", view="pair", batch_size=3, seed=0), 1)
    expected = {name: (3, 2, 100, 108) for name in ("motion", "prev", "style")}
    expected |= {"audio": (3, 2, 64000), "speech_mask": (3, 2, 100)}
    assert {name: array.shape for name, array in batch.items()} == expected
    assert all(array.dtype == np.float32 for array in batch.values())
    np.testing.assert_array_equal(batch["motion"][:, 0, :, 1], batch["motion"][:, 1, :, 1])
    assert set(np.unique(batch["speech_mask"])) == {0, 1}
    assert 0.01 < np.abs(batch["audio"]).max() < 0.1


def test_one_epoch_visits_every_person_of_every_item_once(store_path):
    store = Store(store_path)
    items = window_items(store, "train", "solo")
    assert len(items) == 2 * (1 + 2 + 3)
    (batch,) = take(make_loader(store_path, "train", view="solo", batch_size=len(items), seed=0), 1)
    people, counts = np.unique(batch["motion"][:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(people, range(6))
    np.testing.assert_array_equal(counts, [1, 1, 2, 2, 3, 3])


def test_the_same_seed_repeats_and_another_does_not(store_path):
    a, b, c = (take(make_loader(store_path, "train", view="pair", batch_size=4, seed=s), 6) for s in (1, 1, 2))
    for ours, theirs in zip(a, b, strict=True):
        assert_same(ours, theirs)
    assert any((ours["motion"] != theirs["motion"]).any() for ours, theirs in zip(a, c, strict=True))


def test_epochs_differ_in_order_and_jitter(store_path):
    first, second = take(make_loader(store_path, "train", view="solo", batch_size=12, seed=0), 2)
    assert (first["motion"][:, 0, 0] != second["motion"][:, 0, 0]).any()
    starts = [
        set(zip(b["motion"][:, 0, 0].tolist(), b["motion"][:, 0, 1].tolist(), strict=True)) for b in (first, second)
    ]
    assert starts[0] != starts[1]


def test_two_processes_see_together_what_one_sees(store_path):
    whole = take(make_loader(store_path, "train", view="pair", batch_size=4, seed=0), 5)
    parts = [
        take(make_loader(store_path, "train", view="pair", batch_size=2, seed=0, process_index=k, process_count=2), 5)
        for k in range(2)
    ]
    for batch, even, odd in zip(whole, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name][0::2], even[name])
            np.testing.assert_array_equal(batch[name][1::2], odd[name])


def test_an_iterator_resumes_exactly_from_its_state(store_path):
    loader = make_loader(store_path, "train", view="solo", batch_size=4, seed=0)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(4)]
    resumed = iter(make_loader(store_path, "train", view="solo", batch_size=4, seed=0))
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)


def test_the_cache_keeps_within_its_size_and_gives_centred_records(store_path):
    store = Store(store_path)
    record = centered(store.read("train", 0))
    one = record.motion.nbytes + record.audio.nbytes + record.speech_mask.nbytes
    cache = RecordCache(store, "train", with_audio=True, max_bytes=3 * one)
    for i in (0, 1, 2, 0, 1, 2):
        np.testing.assert_array_equal(cache(i).motion, centered(store.read("train", i)).motion)
        kept = sum(r.motion.nbytes + r.audio.nbytes + r.speech_mask.nbytes for r in cache._records.values())
        assert kept == cache._bytes and (kept <= cache.max_bytes or len(cache._records) == 1)
    assert cache(2) is cache(2)


def test_bad_requests_are_refused(store_path, tmp_path):
    base = {"view": "solo", "batch_size": 2, "seed": 0}
    for change, message in (
        ({"view": "trio"}, "view must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"process_index": 2, "process_count": 2}, "process_index must be in 0..1"),
    ):
        with pytest.raises(UserError, match=message):
            make_loader(store_path, "train", **(base | change))
    with pytest.raises(UserError, match="no record of at least 102 frames in its test split"):
        make_loader(store_path, "test", **base)
    with pytest.raises(UserError, match="is no store"):
        make_loader(str(tmp_path), "train", **base)


def test_pairs_need_dialogues_with_audio(tmp_path):
    record = dialogue("a", 150, 0)
    write_store(tmp_path / "s", [("train", Record("a", record.motion, None, record.speech_mask, "standin"))])
    with pytest.raises(UserError, match="no dialogue with audio"):
        make_loader(str(tmp_path / "s"), "train", view="pair", batch_size=1, seed=0)


def test_loading_in_a_fresh_process_starts_no_jax_backend(store_path):
    program = textwrap.dedent(
        f"""
        from data_pipelines.loader import make_loader
        batch = next(iter(make_loader({store_path!r}, "train", view="pair", batch_size=2, seed=0)))
        from jax._src import xla_bridge
        print(batch["motion"].shape, len(xla_bridge._backends))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(2, 2, 100, 108) 0", done.stderr


def test_worker_processes_give_the_same_batches(store_path):
    plain = take(make_loader(store_path, "train", view="pair", batch_size=2, seed=0), 4)
    batches = iter(make_loader(store_path, "train", view="pair", batch_size=2, seed=0, num_workers=1))
    for expected in plain[:2]:
        assert_same(next(batches), expected)
    state = batches.get_state()
    batches.close()
    resumed = iter(make_loader(store_path, "train", view="pair", batch_size=2, seed=0, num_workers=1))
    resumed.set_state(state)
    assert_same(next(resumed), plain[2])
    resumed.close()
