"""A folder of a tracker's files through the command line: the table, flags, and the way to a trained codec."""

import json

import numpy as np
import pytest
from documented import commands
from foreign_data import talking, write_wav
from tiny_runs import quick_compiles, run_unils
from tracked import smirk, truth, write_clip

from data_pipelines.store.reader import Store
from unils_jax.motion import JAW


def write_folder(folder, count, seconds=6):
    for i in range(count):
        motion = truth(seconds, 30, i)
        jaw, sound, _ = talking(seconds * 25, i)
        motion[:, JAW] = np.interp(np.arange(len(motion)) / 30, np.arange(len(jaw)) / 25, jaw)[:, None]
        write_clip(folder, f"clip{i:02d}", {**smirk(motion), "fps": np.float64(30)})
        write_wav(folder / f"clip{i:02d}.wav", sound)


def test_what_is_taken_is_printed_before_anything_is_converted(tmp_path, capsys):
    write_folder(tmp_path / "in", 1)
    flags = ["data", "convert", "--from", "tracks", "--source", tmp_path / "in", "--out", tmp_path / "out"]
    assert run_unils(*flags, "--keys", "head=nothing") == 2
    said = capsys.readouterr()
    assert "| layout | smirk |" in said.out and "no file has" in said.err and not (tmp_path / "out").exists()
    assert run_unils(*flags, "--workers", "0") == 0
    out = capsys.readouterr().out
    for line in (
        "| expression | expression_params [180, 50] | 50 coefficients; channels 50 to 99 are marked as missing |",
        "| eyes | missing |",
        "| - | eyelid_params [180, 2] | ignored: the 108 channels have no eyelids |",
        "1 record, 0.00 of 0.00 hours, 0 sequences left out",
    ):
        assert line in out, line
    assert Store(tmp_path / "out").lengths("train").tolist() == [150]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from", "files", "--fps", "30"], "--fps is of --from tracks"),
        (["--from", "files", "--vad", "loudness"], "--vad is of --from tracks"),
        (["--from", "tracks", "--fps", "0"], "--fps must be 1 to 1000"),
        (["--from", "tracks", "--max_gap", "-1"], "--max_gap must be 0 to 10 seconds"),
        (["--from", "tracks", "--keys", "mouth=x"], "--keys must be PART=NAME"),
        (["--from", "tracks", "--keys", "jaw=x[3:3]"], "columns A to B-1"),
        (["--from", "tracks", "--rotations", "head=spin"], "--rotations must be KIND or PART=KIND"),
        (["--from", "tracks"], "holds no motion of a tracker"),
    ],
)
def test_wrong_flags_are_refused_in_a_line(tmp_path, capsys, flags, message):
    (tmp_path / "in").mkdir()
    assert run_unils("data", "convert", *flags, "--source", tmp_path / "in", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_twenty_clips_become_a_trained_codec_in_three_commands(tmp_path, monkeypatch):
    """The commands as docs/data.md has them, the last with fewer steps."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "tracked", 20)
    convert, verify, train = commands("data.md", "Tracked faces")
    assert run_unils(*convert) == 0
    lengths = [len(Store("data/tracked").lengths(split)) for split in ("train", "val", "test")]
    assert lengths == [16, 2, 2]
    assert run_unils(*verify) == 0
    fewer = {"num_steps": 6, "eval_every": 3, "checkpoint_every": 6, "log_every": 3, "eval_batches": 1}
    with quick_compiles():
        assert run_unils(*train, *(f"--config.{name}={value}" for name, value in fewer.items())) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/tracked/metrics.jsonl").read_text().splitlines()]
    assert {"train", "val"} <= {row["split"] for row in rows}
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
