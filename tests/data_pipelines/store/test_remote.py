"""Stores behind a URL, on fsspec's in-memory and local file systems; gs:// and s3:// themselves are not tested."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from random_records import assert_same, dialogue, take

from data_pipelines.loader import make_loader
from data_pipelines.store.reader import Store, write_store
from unils_jax.errors import UserError
from unils_jax.files import cache_folder


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UNILS_CACHE", str(tmp_path / "cache"))
    write_store(tmp_path / "store", [("train", dialogue(f"r{i}", 150 + 40 * i, i)) for i in range(2)])
    return tmp_path / "store"


@pytest.fixture(params=["memory", "file"])
def url(request, local):
    if request.param == "file":
        yield f"file://{local}"
        return
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/bucket/store", recursive=True)
    yield "memory://bucket/store"
    memory.rm("/bucket", recursive=True)


def cached() -> list[Path]:
    return [path for path in cache_folder("stores").rglob("*") if path.is_file()]


def test_a_remote_store_gives_the_batches_of_the_local_one(url, local):
    options = {"view": "pair", "batch_size": 2, "seed": 0}
    remote_batches, local_batches = (take(make_loader(path, "train", **options), 3) for path in (url, local))
    for ours, theirs in zip(remote_batches, local_batches, strict=True):
        assert_same(ours, theirs)
    # Index, motion and audio shard; what nobody reads is not fetched.
    assert len(cached()) == 3
    assert Store(url).expression_basis == "standin" and str(Store(url).path) == url


def test_files_are_fetched_once(url, local):
    first = Store(url).read("train", 0)
    times = {path: path.stat().st_mtime_ns for path in cached()}
    again = Store(url).read("train", 0)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert {path: path.stat().st_mtime_ns for path in cached()} == times


def test_a_file_that_is_not_what_the_manifest_says_is_refused_and_not_kept(url, local):
    name = "train.array_record-00000"
    with fsspec.filesystem(url.partition("://")[0]).open(f"{url}/{name}", "r+b" if "file" in url else "wb") as file:
        file.write(b"something else")
    with pytest.raises(UserError, match=f"{name} is damaged: its checksum is not its manifest's"):
        Store(url).read("train", 0)
    assert len(cached()) == 1  # the index


def test_what_is_not_there_and_what_cannot_be_opened_is_named(url):
    with pytest.raises(UserError, match="is no store: it has no manifest.json"):
        Store(f"{url}/nowhere")
    for scheme, package in (("gs", "gcsfs"), ("s3", "s3fs")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("sys").modules, package, None)
            with pytest.raises(UserError, match=f"cannot open {scheme}://bucket/store.*`pip install {package}`"):
                Store(f"{scheme}://bucket/store")
    with pytest.raises(UserError, match="use gs://, s3:// or a local folder"):
        Store("nonsense://bucket/store")
