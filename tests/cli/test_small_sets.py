"""One recording is enough to convert, verify and train; what an empty split leaves out is said where it arises."""

import json

import numpy as np
import pytest
from foreign_data import talking, write_motion, write_wav
from tiny_runs import quick_compiles, run_unils, write_tiny_config

pytestmark = pytest.mark.usefixtures("compile_cache")


def record_one(folder, name="a", seed=1):
    write_motion(folder / f"{name}.npz", 2, 150, seed, "standin")
    write_wav(folder / f"{name}.wav", np.stack([talking(150, seed)[1], talking(150, seed + 1)[1]], axis=1))


def test_one_recording_converts_verifies_and_trains(tmp_path, capsys, caplog):
    record_one(tmp_path / "in")
    store = tmp_path / "store"
    assert run_unils("data", "convert", "--from", "files", "--source", tmp_path / "in", "--out", store) == 0
    assert "no record in val (training has no validation loss), test (`unils evaluate` needs --split)" in caplog.text
    assert "- no record in val" in (store / "CONVERSION.md").read_text()
    assert run_unils("data", "verify", store) == 0
    config = write_tiny_config(tmp_path / "config.py", "codec", store)
    with quick_compiles():
        assert run_unils("train", "--config", config, "--workdir", tmp_path / "run") == 0
    assert "the val split is empty, so this run writes no validation loss" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "speed"}
    assert "trained 6 steps" in capsys.readouterr().out


def test_a_split_without_records_is_named_with_what_the_store_holds(tmp_path, capsys, caplog):
    for number in range(2):
        record_one(tmp_path / "in", f"r{number}", number)
    flags = ["--from", "files", "--source", tmp_path / "in", "--out", tmp_path / "store"]
    assert run_unils("data", "convert", *flags, "--splits", "0,0.5,0.5") == 0
    assert "no record in train (nothing can be trained)" in caplog.text
    config = write_tiny_config(tmp_path / "config.py", "codec", tmp_path / "store")
    assert run_unils("train", "--config", config, "--workdir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "has no record in its train split (0 in train, 1 in val, 1 in test)" in error and "--splits" in error


def test_splits_go_with_folders_alone(tmp_path, capsys):
    record_one(tmp_path / "in")
    flags = ["--source", tmp_path / "in", "--out", tmp_path / "store"]
    assert run_unils("data", "convert", "--from", "release", *flags, "--splits", "0.8,0.1,0.1") == 2
    assert "--splits is of folders of files" in capsys.readouterr().err
    assert run_unils("data", "convert", "--from", "files", *flags, "--splits", "0.8,0.1") == 2
    assert "three shares" in capsys.readouterr().err
