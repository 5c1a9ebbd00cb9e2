"""The loader: deterministic, complete, resumable, and off the accelerator."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import grain.checkpoint
import numpy as np
import orbax.checkpoint as ocp
import pytest
from random_records import assert_same, dialogue, take

from data_pipelines.loader import WindowOf, make_loader, window_items
from data_pipelines.record import Record
from data_pipelines.store.reader import Store, write_store
from unils_jax.errors import UserError
from unils_jax.motion import Window

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def store_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "store"
    records = [("train", dialogue(f"r{i}", 130 + 50 * i, i)) for i in range(3)]
    write_store(path, [*records, ("val", dialogue("v", 120, 3)), ("test", dialogue("t", 90, 4))])
    return str(path)


def test_head_rotation_stays_as_it_was_where_it_is_not_centred(store_path):
    options = {"view": "pair", "batch_size": 3, "seed": 0}
    centred, plain = (take(make_loader(store_path, "train", centre_head=c, **options), 1)[0] for c in (True, False))
    records = [Store(store_path).read("train", i).motion.astype(np.float32) for i in plain["record"].tolist()]
    starts = plain["motion"][:, 0, 0, 1].astype(int)
    for window, record, start in zip(plain["motion"], records, starts, strict=True):
        np.testing.assert_array_equal(window, record[:, start : start + 100])
    for name in ("motion", "style"):
        assert (centred[name][..., 100:103] != plain[name][..., 100:103]).any(-1).all()
        np.testing.assert_array_equal(centred[name][..., :100], plain[name][..., :100])


def test_solo_batches_hold_single_people(store_path):
    (batch,) = take(make_loader(store_path, "train", view="solo", batch_size=5, seed=0), 1)
    expected = {name: ((5, 100, 108), np.float32) for name in ("motion", "prev", "style")}
    expected |= {"observed": ((5, 108), np.float32), "record": ((5,), np.int32)}
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
    # Style is of the same person as motion.
    np.testing.assert_array_equal(batch["motion"][:, 0, 0], batch["style"][:, 0, 0])


def test_short_clips_serve_short_windows(tmp_path):
    path, window = str(tmp_path / "s"), Window(10, 2, 15, 3)
    write_store(path, [("train", dialogue(f"r{i}", 30, i)) for i in range(2)])
    options = {"view": "pair", "batch_size": 2, "seed": 0}
    (batch,) = take(make_loader(path, "train", window=window, **options), 1)
    shapes = {"motion": (2, 2, 10, 108), "prev": (2, 2, 20, 108), "style": (2, 2, 20, 108), "audio": (2, 2, 28 * 640)}
    assert {name: batch[name].shape for name in shapes} == shapes
    with pytest.raises(UserError, match="no record of at least 102 frames in its train split"):
        make_loader(path, "train", **options)


def test_a_position_is_of_one_window(store_path):
    options = {"view": "solo", "batch_size": 4, "seed": 0}
    plain, release, live = (
        make_loader(store_path, "train", **options, **window)
        for window in ({}, {"window": Window()}, {"window": Window(10, 10)})
    )
    iter(release).set_state(iter(plain).get_state())
    with pytest.raises(UserError, match="view or window"):
        iter(live).set_state(iter(plain).get_state())


def test_pair_batches_hold_both_people_with_audio(store_path):
    (batch,) = take(make_loader(store_path, "train", view="pair", batch_size=3, seed=0), 1)
    expected = {name: (3, 2, 100, 108) for name in ("motion", "prev", "style")}
    expected |= {"audio": (3, 2, 64000), "speech_mask": (3, 2, 100), "observed": (3, 2, 108), "record": (3,)}
    assert {name: array.shape for name, array in batch.items()} == expected
    assert {name for name, array in batch.items() if array.dtype != np.float32} == {"record"}
    np.testing.assert_array_equal(batch["motion"][:, 0, 0, 0] // 2, batch["record"])
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


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_all_processes_are_the_batch_of_one(store_path, count):
    options = {"view": "pair", "batch_size": 4, "seed": 0}
    whole = take(make_loader(store_path, "train", **options), 5)
    parts = [
        take(make_loader(store_path, "train", **options, process_index=k, process_count=count), 5) for k in range(count)
    ]
    for batch, *sample_weights in zip(whole, *parts, strict=True):
        assert_same(batch, {name: np.concatenate([share[name] for share in sample_weights]) for name in batch})


@pytest.mark.parametrize("before, after", [(1, 1), (4, 4), (4, 2), (2, 4), (2, 1)])
def test_a_stopped_loader_goes_on_exactly_on_any_number_of_processes(store_path, before, after):
    options = {"view": "pair", "batch_size": 4, "seed": 3}
    expected = take(make_loader(store_path, "train", **options), 8)
    states = set()
    for index in range(before):
        batches = iter(make_loader(store_path, "train", **options, process_index=index, process_count=before))
        for _ in range(5):
            next(batches)
        states.add(batches.get_state())
    # Every process has the same state, and any process can go on from it.
    (state,) = states
    resumed = [
        iter(make_loader(store_path, "train", **options, process_index=index, process_count=after))
        for index in range(after)
    ]
    for batches in resumed:
        batches.set_state(state)
    for whole in expected[5:]:
        sample_weights = [next(batches) for batches in resumed]
        assert_same(whole, {name: np.concatenate([share[name] for share in sample_weights]) for name in whole})


def test_a_loader_starts_at_any_step_without_replaying(store_path):
    loader = make_loader(store_path, "train", view="solo", batch_size=4, seed=0)
    expected = take(loader, 6)
    started = loader.at_step(5)
    assert_same(next(started), expected[5])
    assert started.step == 6
    cut, inner = [], WindowOf.cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowOf, "cut", lambda self, *args: cut.append(args) or inner(self, *args))
        far = loader.at_step(10_000_000)
        next(far)
        far.close()
    assert len(cut) <= 4 * 6  # this batch and what is prefetched
    with pytest.raises(UserError, match="step must not be negative"):
        loader.at_step(-1)


def test_the_position_travels_in_an_orbax_checkpoint(store_path, tmp_path):
    loader = make_loader(store_path, "train", view="solo", batch_size=4, seed=0)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        expected = [next(batches) for _ in range(2)]
        resumed = iter(make_loader(store_path, "train", view="solo", batch_size=4, seed=0))
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    for batch in expected:
        assert_same(next(resumed), batch)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"view": "pair"}])
def test_a_position_of_another_order_is_refused(store_path, change):
    options = {"view": "solo", "batch_size": 4, "seed": 0}
    state = iter(make_loader(store_path, "train", **options)).get_state()
    other = iter(make_loader(store_path, "train", **(options | change)))
    with pytest.raises(UserError, match="saved position is of other stores"):
        other.set_state(state)
    with pytest.raises(UserError, match="saved position in the data is damaged"):
        other.set_state(b"{}")


def test_people_without_motion_are_heard_in_pairs_and_not_seen_alone(tmp_path):
    observed = np.ones((2, 108), bool)
    observed[1], observed[0, 104:] = False, False
    one = dialogue("half", 200, 1)
    heard = replace(one, motion=one.motion * observed[:, None].astype(np.float16), observed=observed)
    alone = dialogue("alone", 150, 2)
    alone = replace(alone, motion=alone.motion[:1], audio=None, speech_mask=alone.speech_mask[:1])
    write_store(tmp_path / "s", [("train", heard), ("train", alone)])
    options = {"batch_size": 6, "seed": 0}
    (solo,) = take(make_loader(str(tmp_path / "s"), "train", view="solo", **options), 1)
    assert set(zip(solo["record"].tolist(), solo["observed"].sum(axis=1).tolist(), strict=True)) == {(0, 104), (1, 108)}
    assert "speech_mask" not in solo and "audio" not in solo
    (pair,) = take(make_loader(str(tmp_path / "s"), "train", view="pair", **options), 1)
    assert set(pair["record"].tolist()) == {0}
    np.testing.assert_array_equal(pair["observed"], np.broadcast_to(observed, (6, 2, 108)))
    assert not pair["motion"][:, 1].any() and pair["audio"][:, 1].any()
    assert make_loader(str(tmp_path / "s"), "train", view="solo", **options).names == ["half", "alone"]


def test_a_dialogue_without_a_speech_mask_trains_and_leaves_the_batches_without_one(tmp_path):
    unmasked = replace(dialogue("unmasked", 150, 1), speech_mask=None)
    write_store(tmp_path / "s", [("train", unmasked), ("train", dialogue("masked", 150, 2))])
    batches = take(make_loader(str(tmp_path / "s"), "train", view="pair", batch_size=2, seed=0), 4)
    assert {number for batch in batches for number in batch["record"].tolist()} == {0, 1}
    assert all("speech_mask" not in batch and batch["audio"].any() for batch in batches)


@pytest.fixture
def damaged(store_path, tmp_path) -> str:
    """The store with one chunk of record r1 overwritten."""
    path = tmp_path / "damaged"
    shutil.copytree(store_path, path)
    file = path / "train.array_record-00000"
    content = bytearray(file.read_bytes())
    store = Store(store_path)
    chunk = store.motion_files.read("train.array_record-00000", [int(store.index("train").first_motion[1]) + 2])[0]
    at = content.index(chunk[:2000])
    content[at + 100 : at + 900] = bytes(800)
    file.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_record_that_cannot_be_read_is_named(damaged, num_workers):
    options = {"view": "pair", "batch_size": 6, "seed": 0, "num_workers": num_workers}
    with pytest.raises(UserError, match=r"'r1' \(number 1 of train in .*damaged\).*train.array_record-00000") as error:
        take(make_loader(damaged, "train", **options), 3)
    assert "1 bad records, data.max_bad_records allows 0" in str(error.value)


def test_so_many_bad_records_as_allowed_are_logged_and_replaced(damaged, store_path, caplog):
    options = {"view": "solo", "batch_size": 4, "seed": 0, "max_bad_records": 1}
    first, again = (take(make_loader(damaged, "train", **options), 9) for _ in range(2))
    for ours, theirs in zip(first, again, strict=True):
        assert_same(ours, theirs)
    (told,) = {record.getMessage() for record in caplog.records if record.name == "data_pipelines.loader"}
    assert "left out: record 'r1'" in told
    healthy = take(make_loader(store_path, "train", **options), 9)
    differ = [
        (ours["record"][k], theirs["record"][k])
        for ours, theirs in zip(first, healthy, strict=True)
        for k in range(4)
        if (ours["motion"][k] != theirs["motion"][k]).any() or (ours["style"][k] != theirs["style"][k]).any()
    ]
    assert differ and set(differ) == {(2, 1)}
    # Every process counts for itself, and so does every start.
    parts = [take(make_loader(damaged, "train", **options, process_index=k, process_count=2), 9) for k in range(2)]
    for whole, *sample_weights in zip(first, *parts, strict=True):
        assert_same(whole, {name: np.concatenate([share[name] for share in sample_weights]) for name in whole})


def test_bad_requests_are_refused(store_path, tmp_path):
    base = {"view": "solo", "batch_size": 2, "seed": 0}
    for change, message in (
        ({"view": "trio"}, "view must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"process_index": 2, "process_count": 2}, "process_index must be in 0..1"),
        ({"batch_size": 3, "process_count": 2}, "batch_size must be a multiple of the 2 processes"),
        ({"max_bad_records": -1}, "max_bad_records must be at least 0"),
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


PROGRAM = """
import json, sys
import numpy as np
from data_pipelines.loader import WindowOf, make_loader

class Watching(WindowOf):
    # Where windows are cut: in the worker processes, if there are any.
    def __call__(self, element, rng):
        import os
        from jax._src import xla_bridge
        assert not xla_bridge._backends, "a JAX backend was started"
        return super().__call__(element, rng) | {"pid": np.int64(os.getpid())}

def main():
    import data_pipelines.loader as module
    module.WindowOf = Watching
    path, workers = sys.argv[1], int(sys.argv[2])
    batches = make_loader(path, "train", view="pair", batch_size=2, seed=0, num_workers=workers).at_step(3)
    taken = [next(batches) for _ in range(4)]
    state = batches.get_state().decode()
    batches.close()
    from jax._src import xla_bridge
    pids = sorted({int(pid) for batch in taken for pid in batch.pop("pid")})
    sums = [[float(v.astype("f8").sum()) for _, v in sorted(batch.items())] for batch in taken]
    print(json.dumps([sums, state, len(pids), len(xla_bridge._backends)]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loading_starts_no_jax_backend_and_workers_change_nothing(store_path, tmp_path, num_workers):
    file = tmp_path / "load.py"
    file.write_text(PROGRAM)
    command = [sys.executable, str(file), store_path, str(num_workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    sums, state, num_processes, num_backends = json.loads(done.stdout.splitlines()[-1])
    assert num_processes == max(1, num_workers) and num_backends == 0
    here = make_loader(store_path, "train", view="pair", batch_size=2, seed=0).at_step(3)
    taken = [next(here) for _ in range(4)]
    assert sums == [[float(v.astype(np.float64).sum()) for _, v in sorted(batch.items())] for batch in taken]
    assert state == here.get_state().decode()


@pytest.mark.slow
def test_a_loader_with_workers_is_restored_in_one_without_and_back(store_path):
    expected = take(make_loader(store_path, "train", view="pair", batch_size=2, seed=0), 6)
    state = None
    for num_workers, steps in ((0, range(0, 2)), (2, range(2, 4)), (0, range(4, 5)), (1, range(5, 6))):
        batches = iter(make_loader(store_path, "train", view="pair", batch_size=2, seed=0, num_workers=num_workers))
        if state is not None:
            batches.set_state(state)
        for step in steps:
            assert_same(next(batches), expected[step])
        state = batches.get_state()
        batches.close()
