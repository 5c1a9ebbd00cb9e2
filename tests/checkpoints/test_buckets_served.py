"""Stores, checkpoints and the compile cache in buckets: S3 and Google's, spoken by servers on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from random_records import assert_same, take
from tiny_runs import run_unils

from data_pipelines.loader import make_loader
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError

pytestmark = pytest.mark.slow
REASON = "needs servers and clients: pip install 'moto[server]' s3fs gcp-storage-emulator gcsfs"
SCRIPTS = Path(sys.executable).parent


@contextlib.contextmanager
def server(command: list[str], path: str, port: int) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} did not start"
                    time.sleep(0.1)
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request) -> Iterator[str]:
    """The address of an empty bucket."""
    for name in {"s3": ("moto", "s3fs"), "gs": ("gcp_storage_emulator", "gcsfs")}[request.param]:
        pytest.importorskip(name, reason=REASON)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    variables = {
        "s3": {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        | {"AWS_DEFAULT_REGION": "us-east-1"},
        # Else gcsfs asks for the bucket's kind by gRPC, which the emulator does not speak.
        "gs": {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
    }[request.param]
    command, path = {
        "s3": ([SCRIPTS / "moto_server", "-H", "127.0.0.1", "-p", str(port)], "/moto-api/"),
        "gs": (
            [SCRIPTS / "gcp-storage-emulator", "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"],
            "/_health",
        ),
    }[request.param]
    with pytest.MonkeyPatch.context() as patch, server([str(word) for word in command], path, port):
        for name, value in variables.items():
            patch.setenv(name, value)
        files = fsspec.filesystem(request.param)
        files.mkdir("bucket")
        yield f"{request.param}://bucket"
        files.clear_instance_cache()


@pytest.fixture
def put(bucket, tmp_path, monkeypatch):
    """Copies a folder of this machine into the bucket."""
    monkeypatch.setenv("UNILS_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem(bucket.partition(":")[0])

    def put(folder: Path, name: str) -> str:
        files.put(str(folder), f"bucket/{name}", recursive=True)
        files.invalidate_cache()
        return f"{bucket}/{name}"

    return put


def test_a_store_gives_the_batches_of_the_local_one(put, tiny_runs):
    options = {"view": "pair", "batch_size": 2, "seed": 0}
    paths = (put(tiny_runs.store, "store"), tiny_runs.store)
    theirs, ours = (take(make_loader(str(path), "train", **options), 2) for path in paths)
    for there, here in zip(theirs, ours, strict=True):
        assert_same(there, here)


def test_a_checkpoint_gives_the_local_weights(put, tiny_runs):
    there = load(put(tiny_runs.workdirs["codec"], "codec"), stage="codec").params
    here = load(tiny_runs.workdirs["codec"]).params
    assert there.keys() == here.keys()
    for name, values in here.items():
        np.testing.assert_array_equal(there[name], values)


def test_what_is_missing_is_named(bucket):
    for url in (f"{bucket}/nowhere", f"{bucket}-of-nobody/x"):
        with pytest.raises(UserError, match=f"{url} holds no checkpoint|cannot read {url}"):
            load(url)
        with pytest.raises(UserError, match=f"{url} is no store|cannot read {url}"):
            make_loader(url, "train", view="pair", batch_size=2, seed=0)


def test_a_run_trains_from_a_bucket_and_keeps_its_programs_there(put, bucket, tiny_runs, tmp_path):
    store, parent = put(tiny_runs.store, "data"), put(tiny_runs.workdirs["codec"], "parent")
    flags = ["--config", tiny_runs.configs["prior"], "--workdir", tmp_path / "prior", "--parent", parent]
    flags += [f"--config.data.store={store}", "--config.num_steps=1", "--compile_cache", f"{bucket}/programs"]
    program = [sys.executable, "-m", "unils_jax.cli.main", "train", *flags]
    slow_ones = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(program, env=os.environ | slow_ones, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = fsspec.filesystem(bucket.partition(":")[0])
    files.invalidate_cache()
    assert any(name.endswith("-cache") for name in files.find("bucket/programs"))


def test_what_is_written_step_by_step_is_refused_before_anything_is_written(bucket, tiny_runs, tmp_path, capsys):
    store = ["--source", tmp_path, "--from", "files"]
    for argv in (
        ["train", "--config", tiny_runs.configs["codec"], "--workdir", f"{bucket}/new"],
        ["data", "convert", *store, "--out", f"{bucket}/new"],
        ["data", "synth", "--out", f"{bucket}/new", "--voices", "builtin"],
        ["decode", "--audio", "a.wav", "--out", f"{bucket}/new.npz"],
    ):
        capsys.readouterr()
        assert run_unils(*argv) == 2
        assert "mount the bucket, or write here and copy" in capsys.readouterr().err
    files = fsspec.filesystem(bucket.partition(":")[0])
    files.invalidate_cache()
    assert not [name for name in files.find("bucket") if "/new" in name]
