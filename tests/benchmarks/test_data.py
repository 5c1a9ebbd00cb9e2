"""The data bench: three readers that cut the same windows, and a table that says what was measured."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.store.reader import write_store
from unils_jax.benchmarks import data as bench_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    records = bench_data.make_records(4 / 60)
    write_store(place / "store", [("train", record) for record in records])
    for view in bench_data.VIEWS:
        bench_data.write_lmdb(place / f"lmdb_{view}", records, view)
    return place, records


@pytest.mark.parametrize("view", list(bench_data.VIEWS))
def test_the_three_readers_cut_the_same_windows(made, view):
    place, records = made
    windows = {}
    for name in bench_data.READERS:
        reader = bench_data.open_reader(name, view, place, records)
        windows[name] = [reader.window(1, i, np.random.default_rng(i)) for i in (0, 450, 2850)]
        reader.close()
    for ours, *others in zip(*(windows[name] for name in bench_data.READERS), strict=True):
        people = () if view == "solo" else (2,)
        assert ours["motion"].shape == (*(people or (1,)), 100, 108)
        assert ("audio" in ours) == (view == "pair")
        for theirs in others:
            assert set(theirs) == set(ours)
            for key, array in ours.items():
                np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def test_members_are_seen_in_place():
    buffer = io.BytesIO()
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([True, False]), "c": np.arange(3.0)}
    np.savez(buffer, **arrays)
    value = buffer.getvalue()
    seen = bench_data.members_in_place(value)
    assert set(seen) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(seen[name], array)
        assert seen[name].dtype == array.dtype and seen[name].base is not None


@pytest.mark.slow
def test_dialogue_windows_come_much_faster_than_the_release_reads_them():
    # In a process of its own: the tests' type checks would be most of what is measured.
    code = "import json; from unils_jax.benchmarks import data; print(json.dumps(data.run(hours=0.5, rounds=3)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert len(result["rows"]) == 12 and all(row["windows_per_s"] > 0 for row in result["rows"])
    assert result["ratios"]["pair_warm"] > 4
    assert result["ratios"]["pair_cold"] > 2  # a dozen windows a round, beside another test; 6 where nothing else runs
    lines = bench_data.table(result).splitlines()
    assert len(lines) == 8 and lines[4].startswith("| dialogue | warm |")
