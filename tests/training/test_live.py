"""A live model from a store to a file: windows of 0.4 s train, resume, decode, evaluate, export and load."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CHECKPOINT_EVERY, NUM_STEPS, run_unils

from unils_jax.checkpoints.loading import load
from unils_jax.inference.conversations import decode
from unils_jax.motion import Window

CONFIG = """
from unils_jax.config import load_config

def get_config():
    config = load_config("live/smoke/{stage}_04s")
    config.head = ""
    config.num_steps = {num_steps}
    config.data.update({{"store": {store!r}, "batch_size": 2}})
    config.model.codec.update({{"code_dim": 8, "width": 16, "depth": 1, "num_heads": 2}})
    config.update({{"log_every": 1, "eval_every": 3, "eval_batches": 1, "checkpoint_every": {checkpoint_every}}})
    if config.stage != "codec":
        config.model.prior.update({{"width": 16, "depth": 1, "num_heads": 2}})
    if config.stage == "dialogue":
        config.model.prior.audio_dim = 6
        config.model.ear = None
        config.model.logmel = {{"num_mels": 6, "context_frames": 0}}
        config.model.lora = {{"rank": 2, "alpha": 4.0, "dropout_rate": 0.1}}
        config.probe_every, config.probe_conversations = 3, 1
    return config
"""
WINDOW = Window(10, 10, 90, 3)


def train(stage: str, folder: Path, store: Path, *flags: str) -> int:
    path = folder / f"{stage}.py"
    path.write_text(
        CONFIG.format(stage=stage, store=str(store), num_steps=NUM_STEPS, checkpoint_every=CHECKPOINT_EVERY)
    )
    parent = {"prior": "codec", "dialogue": "prior"}.get(stage)
    flags = [*flags] if parent is None else [*flags, "--parent", folder / parent]
    return run_unils("train", "--config", path, "--workdir", folder / stage, *flags)


@pytest.mark.slow
def test_a_live_model_goes_from_a_store_to_a_file(tiny_store, tmp_path, unoptimised, capsys):
    for stage in ("codec", "prior"):
        assert train(stage, tmp_path, tiny_store) == 0
    assert train("dialogue", tmp_path, tiny_store, "--config.num_steps=3", "--config.optimizer.decay_steps=6") == 0
    assert train("dialogue", tmp_path, tiny_store, "--config.optimizer.decay_steps=6") == 0
    rows = [json.loads(line) for line in (tmp_path / "dialogue" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, NUM_STEPS + 1))
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    checkpoint = load(tmp_path / "dialogue")
    assert checkpoint.config.window == WINDOW

    audio = np.random.default_rng(0).normal(0, 0.1, (2, 40_000)).astype(np.float32)
    assert run_unils("export", "--checkpoint", tmp_path / "dialogue", "--out", tmp_path / "live.safetensors") == 0
    capsys.readouterr()
    assert run_unils("export", "--checkpoint", tmp_path / "dialogue", "--out", tmp_path / "live.pt") == 2
    assert "this model has windows of 10 frames, 10 of them before it" in capsys.readouterr().err
    assert not (tmp_path / "live.pt").exists()
    again = load(tmp_path / "live.safetensors")
    assert again.config == checkpoint.config
    motions = [decode(loaded.model, *audio) for loaded in (checkpoint, again)]
    np.testing.assert_array_equal(*motions)
    assert motions[0].shape == (2, 63, 108)

    base = ["--checkpoint", tmp_path / "live.safetensors"]
    report = tmp_path / "report.json"
    flags = ["--data", tiny_store, "--split", "train", "--limit", "1", "--protocol", "unils-clean", "--out", report]
    assert run_unils("evaluate", *base, *flags) == 0
    settings = json.loads(report.read_text())["settings"]["protocol"]
    assert (settings["first_scored_frame"], settings["style"]) == (
        100,
        "100 frames of the truth, frames 0-99 of the record",
    )

    adapter = tmp_path / "prior" / "adapters" / "live.safetensors"
    adapter.parent.mkdir()
    assert run_unils("export", "--checkpoint", tmp_path / "dialogue", "--adapter", adapter) == 0
    assert load(tmp_path / "prior", adapter="live").config.window == WINDOW
