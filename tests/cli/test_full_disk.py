"""A disk that is full while a file is written: one line, status 2, nothing half-written, and a rerun goes on.

RLIMIT_FSIZE stands for the disk: the kernel refuses what grows beyond it in every library, and in worker processes.
`data synth` is in `test_runtime`: the programs that speak for it do not survive that limit.
"""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from foreign_data import talking, write_motion, write_wav
from tiny_runs import quick_compiles, run_unils

from data_pipelines.store.reader import Store
from unils_jax.cli import motion as motion_command
from unils_jax.motion import load_motion
from unils_jax.outputs import page


@contextmanager
def largest_file(num_bytes: int):
    """Files may grow to so many bytes; none of compiled programs is cut, because none is written."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before, kept_from = resource.getrlimit(resource.RLIMIT_FSIZE), jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update(name, 1e9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update(name, kept_from)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(capsys, *argv) -> None:
    """The command ends with status 2, and its last line says that there is no room."""
    assert run_unils(*argv) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("unils: error: cannot write") and "no room is left on its disk" in last
    assert "Traceback" not in captured.err and not captured.out


@pytest.fixture
def motion_file(tmp_path) -> Path:
    write_motion(tmp_path / "in" / "m.npz", 1, 40, 1, "standin")
    return tmp_path / "in" / "m.npz"


@pytest.mark.parametrize("workers", [0, 2])
def test_convert(tmp_path, capsys, workers):
    for i in range(3):
        write_motion(tmp_path / "in" / f"r{i}.npz", 2, 150, i, "standin")
        write_wav(tmp_path / "in" / f"r{i}.wav", np.stack([talking(150, i)[1], talking(150, i + 1)[1]], axis=1))
    flags = ["--from", "files", "--source", tmp_path / "in", "--out", tmp_path / "s", "--workers", workers]
    with largest_file(30_000):
        refused(capsys, "data", "convert", *flags)
    assert not [name for name in tree(tmp_path / "s") if "partial" in name or "array_record" in name]
    assert run_unils("data", "convert", *flags) == 0
    assert sum(len(Store(tmp_path / "s").lengths(split)) for split in ("train", "val", "test")) == 3


def test_train_saves_no_half_checkpoint_and_goes_on(tiny_runs, tmp_path, capsys):
    with largest_file(20_000):
        assert tiny_runs.train("codec", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "no room is left on its disk" in error.splitlines()[-1]
    assert not [name for name in tree(tmp_path / "run") if "partial" in name or name.startswith("checkpoints/")]
    assert tiny_runs.train("codec", tmp_path / "run") == 0
    assert {"3", "6"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tiny_runs, tmp_path, capsys):
    workdir = tiny_runs.copy("codec", tmp_path / "run")
    before = tree(workdir / "checkpoints")
    more = ["--config.num_steps=9", "--allow_changes"]
    with largest_file(20_000):
        assert tiny_runs.train("codec", workdir, *more) == 2
    assert "no room is left on its disk" in capsys.readouterr().err.splitlines()[-1]
    assert tree(workdir / "checkpoints") == before
    assert tiny_runs.train("codec", workdir, *more) == 0
    assert "trained 9 steps" in capsys.readouterr().out


def test_export(tiny_runs, tmp_path, capsys):
    (tmp_path / "a.safetensors").write_text("old")
    flags = ["export", "--checkpoint", tiny_runs.workdirs["codec"], "--out", tmp_path / "a.safetensors"]
    with largest_file(5_000):
        refused(capsys, *flags)
    assert tree(tmp_path) == ["a.safetensors"] and (tmp_path / "a.safetensors").read_text() == "old"
    assert run_unils(*flags) == 0


def test_decode_of_a_folder_keeps_what_is_done(tiny_runs, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, frames in (("a", 10), ("b", 90)):
        noise = np.random.default_rng(1).normal(0, 0.1, frames * 640)
        soundfile.write(tmp_path / "in" / f"{name}.wav", noise, 16_000)
    flags = ["decode", "--checkpoint", tiny_runs.workdirs["dialogue"], "--cfg=1", "--audio", tmp_path / "in"]
    flags += ["--out", tmp_path / "out", "--batch=2"]
    with quick_compiles():
        assert run_unils(*flags) == 0  # its programs are compiled and kept now
        capsys.readouterr()
        (tmp_path / "out" / "b.npz").write_bytes(b"old")
        size = (tmp_path / "out" / "a.npz").stat().st_size
        with largest_file(size + 1000):
            refused(capsys, *flags)
        assert tree(tmp_path / "out") == ["a.npz", "b.npz"] and (tmp_path / "out" / "b.npz").read_bytes() == b"old"
        assert run_unils(*flags) == 0
    assert "1 conversation, 90 frames" in capsys.readouterr().out
    assert load_motion(tmp_path / "out" / "b.npz").motion.shape == (1, 90, 108)


@pytest.mark.parametrize("name", ["o.csv", "o.glb", "o.npz"])
def test_motion_of_another_layout(motion_file, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("old")
    with largest_file(5_000):
        refused(capsys, "convert-motion", motion_file, "--out", tmp_path / "out" / name)
    assert tree(tmp_path / "out") == [name] and (tmp_path / "out" / name).read_text() == "old"
    assert run_unils("convert-motion", motion_file, "--out", tmp_path / "out" / name) == 0


def test_page(motion_file, tmp_path, capsys, monkeypatch):
    for user in (page, motion_command):
        monkeypatch.setattr(user, "page_script", lambda: ("console.log(1)", "The MIT License -- three.js"))
    flags = ["view", motion_file, "--out", tmp_path / "out" / "p.html"]
    with largest_file(5_000):
        refused(capsys, *flags)
    assert tree(tmp_path / "out") == []
    assert run_unils(*flags) == 0


def test_video(motion_file, tmp_path, capsys):
    flags = ["render", motion_file, "--video", tmp_path / "out" / "v.mp4", "--size", "64"]
    with largest_file(1_500):
        refused(capsys, *flags)
    assert tree(tmp_path / "out") == []
    assert run_unils(*flags) == 0


def test_what_killed_processes_left_goes_with_the_next_run(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    gone, alive = tmp_path / f".s.{ended.pid}.partial", tmp_path / f".s.{os.getppid()}.partial"
    others = tmp_path / f".other.{ended.pid}.partial"
    for folder in (gone, alive, others):
        folder.mkdir()
        (folder / "train.array_record-00000").touch()
    assert run_unils("data", "synth", "--out", tmp_path / "s", "--conversations", "3", "--minutes", "0.1") == 0
    assert not gone.exists() and alive.exists() and others.exists()
    left = tmp_path / "c" / f".train.{ended.pid}-abcdef.partial.array_record-00000"
    left.parent.mkdir()
    left.touch()
    write_motion(tmp_path / "in" / "a.npz", 1, 150, 1, "standin")
    flags = ["--from", "files", "--source", tmp_path / "in", "--out", tmp_path / "c", "--workers", "0"]
    assert run_unils("data", "convert", *flags) == 2  # a file that no conversion claims
    assert "is not empty" in capsys.readouterr().err
    left.unlink()
    assert run_unils("data", "convert", *flags, "--shard", "2/2") == 0
    left.touch()
    assert run_unils("data", "convert", *flags) == 0
    assert not left.exists()
