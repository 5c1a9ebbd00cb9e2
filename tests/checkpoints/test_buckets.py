"""Checkpoints behind a URL, on fsspec's in-memory file system."""

import os
import shutil

import fsspec
import pytest
from random_records import assert_same

from unils_jax import files
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("UNILS_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/notes.txt", b"no checkpoint")
    yield memory
    memory.rm("/bucket", recursive=True)


def cached() -> list[str]:
    folder = files.cache_folder("checkpoints")
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


def test_a_workdir_gives_the_local_weights_without_its_optimiser_or_older_steps(bucket, tiny_runs):
    local = tiny_runs.workdirs["codec"]
    bucket.put(str(local), "/bucket/codec", recursive=True)
    checkpoint = load("memory://bucket/codec", stage="codec")
    assert_same(checkpoint.params, load(local).params)
    assert checkpoint.source["checkpoint"] == "memory://bucket/codec" and checkpoint.source["step"] == 6
    fetched = cached()
    assert all("/checkpoints/6/" in name and "/optimizer/" not in name for name in fetched)
    load("memory://bucket/codec/checkpoints/6")
    before = cached()
    load("memory://bucket/codec")
    assert cached() == before


def test_a_newer_step_is_fetched(bucket, tiny_runs, tmp_path):
    local = shutil.copytree(tiny_runs.workdirs["codec"], tmp_path / "codec")
    shutil.move(local / "checkpoints" / "6", tmp_path / "6")
    bucket.put(str(local), "/bucket/codec", recursive=True)
    assert load("memory://bucket/codec").source["step"] == 3
    bucket.put(str(tmp_path / "6"), "/bucket/codec/checkpoints/6", recursive=True)
    assert load("memory://bucket/codec").source["step"] == 6


def test_what_is_no_checkpoint_is_named(bucket):
    for url in ("memory://bucket/nowhere", "memory://bucket"):
        with pytest.raises(UserError, match=f"{url} holds no checkpoint"):
            load(url)
    with pytest.raises(UserError, match="cannot open nonsense://bucket/x .*use gs://, s3:// or a local folder"):
        load("nonsense://bucket/x")
    assert not cached()
