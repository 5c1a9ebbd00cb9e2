"""Workers of the loader that shared memory has no room for."""

from collections import namedtuple

import numpy as np
import pytest

from data_pipelines import shared_memory
from data_pipelines.loader import make_loader
from data_pipelines.shared_memory import fitting_workers
from unils_jax.errors import UserError

Room = namedtuple("Room", "total used free")


@pytest.mark.parametrize(("free_batches", "workers"), [(0, 0), (2, 0), (3, 1), (6, 2), (9, 4), (1000, 4)])
def test_as_many_workers_as_have_room(monkeypatch, caplog, free_batches, workers):
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: Room(64 << 20, 0, free_batches << 20))
    assert fitting_workers(1 << 20, 4) == workers
    assert ("/dev/shm" in caplog.text and "--shm-size" in caplog.text) == (workers < 4)


def test_without_room_threads_cut_the_same_batches(monkeypatch, tiny_store):
    settings = {"view": "solo", "batch_size": 2, "seed": 3}
    expected = next(iter(make_loader(tiny_store, "train", **settings)))
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: Room(1, 0, 1))
    batch = next(iter(make_loader(tiny_store, "train", num_workers=2, **settings)))
    assert all(np.array_equal(batch[name], expected[name]) for name in expected)


def test_a_worker_that_dies_is_one_line_that_names_shared_memory(tiny_store):
    class Dying:
        def __next__(self):
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -7")

    batches = iter(make_loader(tiny_store, "train", view="solo", batch_size=2, seed=0))
    batches._batches = Dying()
    with pytest.raises(UserError, match=r"a worker of the loader died .*exit code -7.*/dev/shm may have run out"):
        next(batches)
