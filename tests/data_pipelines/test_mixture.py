"""Mixtures of stores: drawn by weight, statistics merged, one basis."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from random_records import dialogue

from data_pipelines.loader import make_loader
from data_pipelines.mixture import Mixture, parse_stores
from data_pipelines.store.reader import write_store
from unils_jax.errors import UserError
from unils_jax.motion import center_head


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixture")
    for name, seeds in (("a", (0, 1)), ("b", (2, 3, 4))):
        write_store(folder / name, [("train", dialogue(f"{name}{seed}", 130 + 40 * seed, seed)) for seed in seeds])
    return [str(folder / name) for name in "ab"]


def test_windows_are_drawn_by_weight_and_every_window_of_a_store_once_an_epoch(paths):
    loader = make_loader(list(zip(paths, (3.0, 1.0), strict=True)), "train", view="solo", batch_size=20, seed=0)
    assert loader.names == ["a0", "a1", "b2", "b3", "b4"]
    batches = list(islice(iter(loader), 8))
    records = np.concatenate([batch["record"] for batch in batches])
    assert (records < 2).sum() == 120 and (records >= 2).sum() == 40
    # A share of each in every batch, not only in the mean.
    assert all(13 <= (batch["record"] < 2).sum() <= 17 for batch in batches)
    people = np.concatenate([batch["motion"][:, 0, 0] for batch in batches]).astype(int)
    np.testing.assert_array_equal(people // 2, records)
    # a0 has one item and a1 two, for each of two people.
    np.testing.assert_array_equal(np.bincount(people[people < 4]), [20, 20, 40, 40])


def test_a_mixture_is_the_same_for_any_number_of_processes_and_resumes(paths):
    stores = list(zip(paths, (0.7, 0.3), strict=True))
    options = {"view": "pair", "batch_size": 4, "seed": 5}
    whole = list(islice(iter(make_loader(stores, "train", **options)), 5))
    parts = [make_loader(stores, "train", **options, process_index=k, process_count=2).at_step(3) for k in range(2)]
    for batch in whole[3:]:
        shares = [next(part) for part in parts]
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([share[name] for share in shares]))


def test_other_weights_are_another_order(paths):
    options = {"view": "solo", "batch_size": 2, "seed": 0}
    stores = [list(zip(paths, weights, strict=True)) for weights in ((1.0, 1.0), (1.0, 2.0))]
    states = [iter(make_loader(chosen, "train", **options)).get_state() for chosen in stores]
    assert states[0] != states[1]


def test_statistics_are_those_of_all_training_frames(paths):
    mean, std = Mixture([(paths[0], 1.0), (paths[1], 9.0)]).statistics()
    records = [dialogue("x", 130 + 40 * seed, seed) for seed in range(5)]
    frames = np.concatenate([center_head(r.motion).astype(np.float64).reshape(-1, 108) for r in records])
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-6, atol=1e-6)


def test_stores_of_two_bases_are_refused(paths, tmp_path):
    write_store(tmp_path / "f", [("train", replace(dialogue("f", 150, 0), expression_basis="flame"))])
    with pytest.raises(UserError, match=f"{paths[0]} is of the 'standin' basis.*leave one out"):
        Mixture([(paths[0], 1.0), (str(tmp_path / "f"), 1.0)])
    with pytest.raises(UserError, match="weights of stores must be positive"):
        Mixture([(paths[0], 0.0)])


def test_stores_of_a_config_are_read():
    assert parse_stores("data/x=y", ()) == [("data/x=y", 1.0)]
    assert parse_stores("", ("gs://b/a=2", "c")) == [("gs://b/a", 2.0), ("c", 1.0)]
    for store, stores in (("a", ("b",)), ("", ())):
        with pytest.raises(UserError, match="set data.store to one store, or data.stores"):
            parse_stores(store, stores)
    with pytest.raises(UserError, match="got 'a=0'; .*got 'b=x'"):
        parse_stores("", ("a=0", "b=x"))
