"""`unils decode` of a folder by actors of a Ray cluster: what one process writes, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_runs import run_unils

from unils_jax.motion import load_motion

pytestmark = pytest.mark.slow
FILES = 200


@pytest.fixture(scope="module")
def nodes():
    from ray_nodes import two_nodes

    with two_nodes() as nodes:
        yield nodes


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
    # A process of its own, as each actor: this one computes with the tests' settings.
    local = [sys.executable, "-m", "unils_jax.cli.main", *flags, "--out", tmp_path / "local"]
    alone = subprocess.run(local, capture_output=True, text=True, check=False, cwd=tmp_path)
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
