"""A small disk, a real one, under each command that writes: one line, status 2, nothing half-written, and a rerun.

The disk is a tmpfs of a few pages, which only root may mount.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from foreign_data import talking, write_motion, write_wav
from tiny_runs import quick_compiles, run_unils

from unils_jax.cli import motion as motion_command
from unils_jax.outputs import page

pytestmark = pytest.mark.slow

OLD = "earlier.npz"


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 16 KB with a whole file on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.decode().strip()}")
    (folder / OLD).write_bytes(b"whole")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def flags_of(writer: str, disk: Path, inputs: Path, tiny_runs) -> list[object]:
    """Returns a command whose output takes more than 16 KB of the disk."""
    motion = inputs / "m.npz"
    write_motion(motion, 2, 150, 1, "standin")
    write_wav(inputs / "m.wav", np.stack([talking(150, i)[1] for i in range(2)], axis=1))
    soundfile.write(inputs / "a.wav", np.random.default_rng(1).normal(0, 0.1, 90 * 640), 16_000)
    commands: dict[str, list[object]] = {
        "synth": ["data", "synth", "--voices=builtin", "--conversations=3", "--minutes=0.1", "--out", disk / "s"],
        "convert": ["data", "convert", "--from", "files", "--source", inputs, "--workers", 0, "--out", disk / "c"],
        "train": ["train", "--config", tiny_runs.configs["codec"], "--workdir", disk / "run"],
        "export": ["export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--out", disk / "e.safetensors"],
        "adapter": ["export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--adapter", disk / "a.safetensors"],
        "decode": ["decode", "--checkpoint", tiny_runs.workdirs["dialogue"], "--audio", inputs / "a.wav", "--out"],
        "page": ["view", motion, "--out", disk / "p.html"],
        "video": ["render", motion, "--size=128", "--video", disk / "v.mp4"],
        "table": ["convert-motion", motion, "--out", disk / "t.csv"],
        "gltf": ["convert-motion", motion, "--out", disk / "g.glb"],
    }
    return commands[writer] + ([disk / "d.npz"] if writer == "decode" else [])


@pytest.mark.parametrize(
    "writer", ["synth", "convert", "train", "export", "adapter", "decode", "page", "video", "table", "gltf"]
)
def test_a_small_disk_costs_one_line_and_nothing_else(disk, tmp_path, tiny_runs, capsys, monkeypatch, writer):
    for user in (page, motion_command):
        monkeypatch.setattr(user, "page_script", lambda: ("console.log(1)", "The MIT License -- three.js"))
    inputs = tmp_path / "in"
    inputs.mkdir()
    flags = flags_of(writer, disk, inputs, tiny_runs)
    if writer == "adapter":
        resize(disk, "8k")
    capsys.readouterr()
    with quick_compiles():
        assert run_unils(*flags) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("unils: error: cannot write") and not told.out
    assert "no room is left on its disk" in told.err.splitlines()[-1] and "Traceback" not in told.err
    left = {path.relative_to(disk) for path in disk.rglob("*") if path.is_file()}
    assert not [path for path in left if "partial" in path.name or "orbax-checkpoint-tmp" in str(path)]
    # What is whole of a run or a conversion stays for the rerun: settings, rows, the claim on the folder.
    kept = {"config.json", "metrics.jsonl", "conversion.lock"}
    assert {
        path.name
        for path in left
        if path.name not in kept and path.parent.name != "conversion" and not path.name.startswith("events.out")
    } == {OLD}
    assert (disk / OLD).read_bytes() == b"whole"
    resize(disk, "64m")
    with quick_compiles():
        assert run_unils(*flags) == 0
    assert (disk / OLD).read_bytes() == b"whole"
