"""`unils decode` and `unils evaluate` by actors of a Ray cluster: what one process writes, bit for bit."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ray_nodes import wait_for
from tiny_runs import run_unils

from unils_jax.motion import load_motion

pytestmark = pytest.mark.slow
FILES = 200


def run_alone(*argv: str | Path) -> subprocess.CompletedProcess:
    """Runs `unils ...` in a process of its own, as each actor: this one computes with the tests' settings."""
    command = [sys.executable, "-m", "unils_jax.cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Single tracks of one to three windows, ten pairs among them, and a broken file."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    names = [f"{i:03d}" for i in range(FILES - 20)]
    names += [f"pair{i}_speaker{person}" for i in range(10) for person in (1, 2)]
    for name in names:
        noise = rng.normal(0, 0.1, int(rng.integers(20, 240)) * 640).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", noise, 16_000, subtype="FLOAT")
    (folder / "broken.mp3").write_bytes(b"no sound")
    return folder


def test_two_actors_write_the_motion_of_one_process(nodes, tiny_runs, recordings, tmp_path, capfd):
    flags = ["decode", "--checkpoint", tiny_runs.workdirs["dialogue"], "--audio", recordings, "--seed", "3"]
    alone = run_alone(*flags, "--out", tmp_path / "local")
    on_ray = [*flags, "--out", tmp_path / "ray", "--engine", "ray", "--actors", "2"]
    capfd.readouterr()
    assert (alone.returncode, run_unils(*on_ray)) == (2, 2)
    out, err = capfd.readouterr()
    assert "190 conversations, " in out
    failed = "unils: error: 1 of 191 conversations failed: broken: "
    assert err.splitlines()[-1].startswith(failed)
    assert err.splitlines()[-1] == alone.stderr.splitlines()[-1]
    written = sorted(os.listdir(tmp_path / "ray"))
    assert written == sorted(os.listdir(tmp_path / "local")) and len(written) == 190
    for name in written:
        here, there = (load_motion(tmp_path / folder / name) for folder in ("local", "ray"))
        np.testing.assert_array_equal(here.motion, there.motion)
        assert (here.source, here.finished, here.expression_basis) == (
            there.source,
            there.finished,
            there.expression_basis,
        )


def test_what_is_there_already_is_not_decoded_again(nodes, tiny_runs, recordings, tmp_path, capfd):
    some = tmp_path / "some.txt"
    some.write_text("\n".join(str(recordings / f"{i:03d}.wav") for i in range(3)))
    flags = ["--checkpoint", tiny_runs.workdirs["dialogue"], "--audio", some, "--out", tmp_path / "out", "--cfg", "1"]
    assert run_unils("decode", *flags) == 0
    (tmp_path / "out" / "001.npz").unlink()
    capfd.readouterr()
    assert run_unils("decode", *flags, "--engine", "ray") == 0
    assert "1 conversation, " in (out := capfd.readouterr().out) and "2 already there" in out


def test_a_node_killed_in_the_middle_does_not_show_in_the_report(nodes, tiny_runs, tmp_path, caplog):
    store, reports = tmp_path / "store", {}
    synth = ["data", "synth", "--out", store, "--conversations", "60", "--minutes", "0.2", "--voices", "builtin"]
    assert run_unils(*synth) == 0
    flags = ["evaluate", "--data", store, "--split", "train", "--seeds", "2", "--limit", "40"]
    flags += ["--checkpoint", tiny_runs.workdirs["dialogue"], "--out"]
    assert run_alone(*flags, tmp_path / "local.json").returncode == 0

    def kill_when_some_are_scored():
        wait_for(lambda: any(line.startswith("scored 10 of 40") for line in caplog.messages), 240)
        nodes.kill_second()

    killer = threading.Thread(target=kill_when_some_are_scored)
    killer.start()
    try:
        with caplog.at_level("INFO", "unils_jax"):
            assert run_unils(*flags, tmp_path / "ray.json", "--engine", "ray") == 0
    finally:
        killer.join()
    assert any(re.match(r"lost unit \d+ of 40, which begins again", line) for line in caplog.messages)
    for engine in ("local", "ray"):
        reports[engine] = json.loads((tmp_path / f"{engine}.json").read_text())
        assert reports[engine].pop("time")["seconds"] > 0 and reports[engine].pop("host")["engine"] == engine
    assert reports["ray"] == reports["local"]
