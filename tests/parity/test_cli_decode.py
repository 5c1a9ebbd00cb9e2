"""`unils decode` from a user's files against the goldens: release .pt, transformers folder and wavs in, motion out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import run_unils

from parity.compare import MODEL, assert_close
from unils_jax.motion import load_motion


def flags(release, audio: Path, audio2: Path, out: Path) -> list[str]:
    words = {"checkpoint": release.dialogue, "audio_encoder": release.encoder, "audio": audio, "audio2": audio2}
    words |= {"tau": 0, "out": out}
    return ["decode", "--raw", *(str(word) for name, value in words.items() for word in (f"--{name}", value))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="module")
def both(release, folder):
    """The motion file of the greedy decode of both people."""
    assert run_unils(*flags(release, release.audio, release.audio2, folder / "both.npz")) == 0
    return load_motion(folder / "both.npz")


def test_first_person_is_the_golden_decode(golden, both):
    assert_close(both.motion[:1], golden("loragen_decode").outputs["nostyle_motion"], MODEL)


def test_second_person_is_the_decode_with_the_tracks_swapped(release, folder, both):
    assert run_unils(*flags(release, release.audio2, release.audio, folder / "swapped.npz")) == 0
    swapped = load_motion(folder / "swapped.npz").motion
    assert_close(both.motion[1:], swapped[:1], MODEL)
    assert_close(swapped[1:], both.motion[:1], MODEL)
    assert np.abs(both.motion[0] - both.motion[1]).max() > 1e-3


def test_motion_file_says_where_it_comes_from(release, both):
    assert both.expression_basis == "flame" and both.fps == 25.0
    assert both.source["checkpoint"] == str(release.dialogue)
    assert both.source["audio"] == [str(release.audio), str(release.audio2)]
    assert (both.source["tau"], both.source["cfg"], both.source["seed"]) == (0.0, 1.5, 0)


def test_console_script_decodes_the_same_in_a_process_of_its_own(golden, release, tmp_path):
    script = Path(sys.executable).with_name("unils")
    command = [script, *flags(release, release.audio, release.audio2, tmp_path / "m.npz")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and "2 x 237 frames" in done.stdout
    motion = load_motion(tmp_path / "m.npz").motion
    assert_close(motion[:1], golden("loragen_decode").outputs["nostyle_motion"], MODEL)
