"""Places, room and writers on the disk, and the one line for a machine that is at fault."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import run_unils

from unils_jax import runtime
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load
from unils_jax.cli import main as command_line
from unils_jax.errors import UserError
from unils_jax.files import atomic_output, check_output, clear_partials
from unils_jax.motion import save_motion
from unils_jax.runtime import disk_is_full, local_path, only_writer, outputs_held, prepare, user_cache


@pytest.fixture
def motion_file(tmp_path):
    save_motion(tmp_path / "m.npz", np.zeros((1, 30, 108), np.float32), expression_basis="standin", source={})
    return tmp_path / "m.npz"


@pytest.fixture
def full_disk(monkeypatch):
    """Every file is as long as it is when its disk is found full: what syncs it says so."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_a_path_of_dots_is_made_plain_behind_links(tmp_path, monkeypatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    monkeypatch.chdir(tmp_path / "link")
    assert local_path("../run", "workdir") == tmp_path / "real" / "run"
    assert local_path(tmp_path / "link" / ".." / "x", "store") == tmp_path / "real" / "x"
    assert local_path("run", "workdir") == Path("run")


def test_a_tilde_is_the_home_folder_behind_an_equals_sign_too(tmp_path, monkeypatch, motion_file):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("~/run", "workdir") == tmp_path / "home" / "run"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_unils("convert-motion", motion_file, "--out=~/o.csv") == 0
    assert (tmp_path / "home" / "o.csv").is_file()
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_no_folder_called_tilde_is_made(monkeypatch, home):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    assert user_cache() is None
    with pytest.raises(UserError, match="no home folder is known; set HOME"):
        local_path("~/run", "workdir")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache() == Path("/caches")


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run", "https://host/run"])
def test_an_address_makes_no_folder_of_its_name(tmp_path, monkeypatch, capsys, motion_file, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a URL"):
        local_path(name, "workdir")
    assert run_unils("convert-motion", motion_file, "--out", f"{name}.csv") == 2
    assert "is a URL" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


@pytest.mark.parametrize("name", ["2024-05-01T10:30", "a:b/c", "C:/x", "~nobody-is-called-so/x"])
def test_a_colon_in_a_name_makes_no_address(name):
    assert local_path(name, "workdir") == Path(name)


def test_bytes_that_are_no_text_are_named_where_orbax_cannot_take_them():
    with pytest.raises(UserError, match=r"workdir 'run\\udcff' has bytes that are not UTF-8 in its name; rename it"):
        local_path(os.fsdecode(b"run\xff"), "workdir")


def test_a_name_of_bytes_is_written_and_shown(tmp_path, motion_file):
    """In a process of its own: how the output encodes is what is tested."""
    out = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    command = [sys.executable, "-m", "unils_jax.cli.main", "convert-motion", motion_file, "--out", out]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\udce9.csv: 1 x 30 frames" in done.stdout and os.path.exists(out)


HOSTILE = "a\nb\x1b[31m\udce9"


def test_a_name_ends_no_line_of_the_log_and_holds_no_code_for_the_terminal(capsys, motion_file, tmp_path):
    prepare()
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    for existing in logging.getLogger().handlers:
        assert runtime._in_one_line in existing.filters
    handler.addFilter(runtime._in_one_line)
    log = logging.getLogger("unils_jax.test")
    log.addHandler(handler)
    try:
        log.warning("%s: %d of %s", HOSTILE, 3, Path(HOSTILE))
        log.warning("%s", UserError(HOSTILE))
        log.warning("two lines\nof ours " + HOSTILE[3:])
    finally:
        log.removeHandler(handler)
    spelt = r"a\nb\x1b[31m\udce9"
    assert records == [f"{spelt}: 3 of {spelt}", spelt.replace("\\n", " "), "two lines\nof ours \\x1b[31m\\udce9"]
    out = tmp_path / f"{HOSTILE}.csv"
    assert run_unils("convert-motion", tmp_path / f"{HOSTILE}.npz", "--out", out) == 2
    assert run_unils("convert-motion", motion_file, "--out", out) == 0
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert len(text.splitlines()) == 1 and "\x1b" not in text and r"b\x1b[31m\udce9" in text


def test_a_name_at_the_limit_can_be_written(tmp_path):
    target = tmp_path / ("n" * 251 + ".bin")
    with atomic_output(target) as partial:
        partial.write_bytes(b"x")
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_told_by_number_by_cause_and_by_words(code):
    error = OSError(code, os.strerror(code))
    assert disk_is_full(error)
    assert disk_is_full(RuntimeError(f"RESOURCE_EXHAUSTED: writing: {os.strerror(code)} [/x]"))
    outer = ValueError("a save failed")
    outer.__cause__ = error
    assert disk_is_full(outer)
    assert not disk_is_full(OSError(errno.EACCES, "no")) and not disk_is_full(None)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, capsys, motion_file, full_disk):
    out = tmp_path / "o.csv"
    out.write_text("old")
    assert run_unils("convert-motion", motion_file, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"unils: error: cannot write to {tmp_path}: no room is left")
    assert " MB free); make room" in line and out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz", "o.csv"]


def test_an_export_on_a_full_disk_leaves_nothing(tmp_path, full_disk):
    with pytest.raises(UserError, match="no room is left"):
        export(load(), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_synthetic_store_on_a_full_disk_leaves_nothing_and_the_next_try_is_whole(tmp_path, capsys, full_disk):
    flags = [
        "data",
        "synth",
        "--out",
        tmp_path / "store",
        "--conversations",
        "3",
        "--minutes",
        "0.1",
        "--voices",
        "builtin",
    ]
    assert run_unils(*flags) == 2
    assert "no room is left" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_no_room_outside_of_an_output_is_one_line_too(monkeypatch, capsys, motion_file):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/deep/file")

    monkeypatch.setattr("unils_jax.cli.motion.load_motion", full)
    assert run_unils("convert-motion", motion_file, "--out", motion_file.with_suffix(".csv")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unils: error: cannot write /somewhere/deep/file: no room is left")


def test_other_errors_of_the_program_stay_tracebacks():
    assert command_line.outside(OSError(errno.EIO, "x")) == "" == command_line.outside(RuntimeError("x"))


HOLD = """
import sys
from unils_jax.runtime import only_writer
with only_writer(sys.argv[1], "the folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_by_name_and_a_killed_one_leaves_no_lock(tmp_path):
    lock = tmp_path / "new" / "run.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            named = rf"in use by process {process.pid} on {os.uname().nodename}, since {time.strftime('%Y')}-"
            with pytest.raises(UserError, match=named), only_writer(lock, "the folder"):
                pytest.fail("two writers")
            assert lock.exists()
        finally:
            process.send_signal(signal.SIGKILL)
    assert lock.exists()
    with only_writer(lock, "the folder"):
        assert f'"pid": {os.getpid()}' in lock.read_text()
    assert not lock.exists()


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    lock, flock, tries = tmp_path / "lock", runtime.fcntl.flock, []

    def slow(file, how):
        flock(file, how)
        tries.append(file)
        if len(tries) == 1:  # the one before ends between our open and our lock
            lock.unlink()

    monkeypatch.setattr(runtime.fcntl, "flock", slow)
    with only_writer(lock, "it"):
        assert len(tries) == 2 and lock.exists()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runtime.fcntl, "flock", none)
    with only_writer(tmp_path / "lock", "it"):
        assert "knows no locks" in caplog.text


def test_two_stores_at_once_and_two_decodes_at_once_are_refused(tmp_path, capsys):
    with only_writer(tmp_path / ".store.lock", "x"):
        flags = ["--conversations", "3", "--minutes", "0.1", "--voices", "builtin"]
        assert run_unils("data", "synth", "--out", tmp_path / "store", *flags) == 2
    assert f"store is in use by process {os.getpid()}" in capsys.readouterr().err
    recordings = tmp_path / "in"
    recordings.mkdir()
    (recordings / "a.wav").write_bytes(b"")
    with only_writer(tmp_path / "out" / ".decode.lock", "x"):
        assert run_unils("decode", "--audio", recordings, "--out", tmp_path / "out") == 2
    assert f"out is in use by process {os.getpid()}" in capsys.readouterr().err


HOLD_OUTPUTS = """
import sys
from unils_jax.files import check_output
from unils_jax.runtime import outputs_held
with outputs_held():
    for name in sys.argv[1:]:
        check_output(name)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_has_one_writer_from_the_start_of_a_command(motion_file, tmp_path, capsys):
    name = "x" * 240 + ".npz"
    commands = {
        "a.csv": ["convert-motion", motion_file, "--out"],
        name: ["convert-motion", motion_file, "--out"],
        "b.mp4": ["render", motion_file, "--video"],
        "c.npz": ["decode", "--audio", "none.wav", "--out"],
        "d.mp4": ["decode", "--audio", "none.wav", "--video"],
        "e.pt": ["export", "--checkpoint", "none", "--out"],
        "f.safetensors": ["export", "--checkpoint", "none", "--adapter"],
        "g.json": ["evaluate", "--checkpoint", "none", "--data", "none", "--out"],
        "h.json": ["data", "verify", "none", "--out"],
        "i.json": ["bench", "data", "--json"],
    }
    (tmp_path / "link").symlink_to(tmp_path)
    outputs = [tmp_path / output for output in commands]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_OUTPUTS, *outputs], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            (tmp_path / ".a.1-abc.partial.csv").touch()
            (tmp_path / ".z.1-abc.partial.csv").touch()
            clear_partials(tmp_path)
            assert (tmp_path / ".a.1-abc.partial.csv").exists() and not (tmp_path / ".z.1-abc.partial.csv").exists()
            with outputs_held():
                check_output(outputs[0], hold=False)
                with pytest.raises(UserError, match="in use by process"):
                    check_output(outputs[0])
            for output, command in commands.items():
                assert run_unils(*command, tmp_path / "link" / output) == 2
                (line,) = capsys.readouterr().err.splitlines()
                assert f"{output} is in use by process {process.pid} on {os.uname().nodename}, since" in line
        finally:
            process.send_signal(signal.SIGKILL)
    assert not any(path.exists() for path in outputs)
    clear_partials(tmp_path)
    assert not list(tmp_path.glob(".*.partial*"))
    for output in ("a.csv", name):
        assert run_unils("convert-motion", motion_file, "--out", tmp_path / output) == 0
    assert not (tmp_path / ".a.csv.lock").exists()
