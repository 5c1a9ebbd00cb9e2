"""Conversions and checks on a Ray cluster of two nodes: the same bytes, also where one of them is killed."""

import re
import threading
from pathlib import Path

import pytest
from ending_task import Ends
from foreign_data import release_value, write_lmdb
from ray_nodes import wait_for
from read_back import snapshot
from slow_source import SlowSource
from tiny_runs import run_unils

from data_pipelines.cluster import Actors
from data_pipelines.conversion.convert import convert, make_plan
from data_pipelines.conversion.workers import ray_actors
from data_pipelines.sources.unils_lmdb import ReleaseSource
from unils_jax.errors import UserError

pytestmark = pytest.mark.slow
SHARDS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ReleaseSource:
    values, index = {}, {"train": {}, "val": {}, "test": {}}
    for i in range(24):
        split = ("train", "train", "val", "test")[i % 4]
        for person in "ab":
            values[f"pair{i}_{person}"] = release_value(110 + i, 2 * i + (person == "b"), audio="int16")
        index[split][f"pair{i}"] = [f"pair{i}_a", f"pair{i}_b", 110 + i]
    values["pair5_a"] = values["pair5_a"][:3000]
    return ReleaseSource(*write_lmdb(tmp_path_factory.mktemp("source") / "release", values, index))


@pytest.fixture(scope="module")
def local(source, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "store"
    assert convert(source, out, make_plan(source, num_shards=SHARDS)).finished
    return snapshot(out)


def flags(source: ReleaseSource, out: Path) -> list[str | Path]:
    where = ["--from", "release", "--source", source.lmdb_path, "--index", source.index, "--out", out]
    return ["data", "convert", *where, "--shards", str(SHARDS), "--engine", "ray"]


def test_two_nodes_write_and_check_the_bytes_of_one_machine(nodes, source, local, tmp_path, caplog):
    with caplog.at_level("INFO", "unils_jax"):
        assert run_unils(*flags(source, tmp_path / "store")) == 0
    assert snapshot(tmp_path / "store") == local
    assert any(re.match(r"left out 1 sequence: damaged", line) for line in caplog.messages)
    assert any(re.match(r"converted .* h, 100 %", line) for line in caplog.messages)
    reports = tmp_path / "here.json", tmp_path / "there.json"
    for report, engine in zip(reports, ("local", "ray"), strict=True):
        assert run_unils("data", "verify", tmp_path / "store", "--out", report, "--engine", engine) == 0
    assert reports[0].read_bytes() == reports[1].read_bytes()


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ("signal", UserError, "unit 2 of 2 was lost 3 times"),
        ("refusal", UserError, "^a bad value; mend it$"),
        ("fault", RuntimeError, "^a worker failed at item fault:\nTraceback(.|\n)*ZeroDivisionError"),
    ],
)
def test_an_actors_end_is_told(nodes, item, kind, message):
    done = []
    with pytest.raises(kind, match=message):
        ray_actors(Actors(1))(Ends(), ["x", item], done=done.append)
    assert done == ["x"]


def test_a_path_that_a_node_does_not_see_is_named_before_work_begins(nodes, tmp_path):
    with pytest.raises(UserError, match=r"node \S+ does not see .*nowhere; give paths on storage that all nodes share"):
        ray_actors(Actors(2, shared=(tmp_path / "nowhere",)))(Ends(), ["x"], done=pytest.fail)


def test_a_node_killed_in_the_middle_does_not_show_in_the_bytes(nodes, source, local, tmp_path, caplog):
    out, slow = tmp_path / "store", SlowSource(source.lmdb_path, source.index, delay_s=0.5)

    def kill_when_both_write():
        # A file under way has the number of its process in its name.
        wait_for(lambda: len({re.search(r"\.(\d+)-", path.name)[1] for path in out.rglob(".*.partial*")}) == 2)
        nodes.kill_second()

    killer = threading.Thread(target=kill_when_both_write)
    killer.start()
    try:
        with caplog.at_level("INFO", "unils_jax"):
            assert convert(slow, out, make_plan(slow, num_shards=SHARDS), engine=ray_actors(Actors())).finished
    finally:
        killer.join()
    assert any(re.match(r"lost unit \d+ of 12, which begins again", line) for line in caplog.messages)
    assert snapshot(out) == local
