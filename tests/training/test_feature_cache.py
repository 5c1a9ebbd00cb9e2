"""Training on kept audio features: what it skips, what it costs, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import quick_compiles, run_unils

from data_pipelines.loader import make_loader
from data_pipelines.store.features import FeatureStore
from data_pipelines.store.reader import Store
from unils_jax.config import load_config
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.training.config import RunConfig, run_config
from unils_jax.training.feature_cache import encode_store, encoder_digest, facts_of


def last_val(workdir: Path) -> float:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "val"][-1]


def tiny_config(tiny_runs, **changes) -> RunConfig:
    values = load_config(str(tiny_runs.configs["dialogue"])).to_dict()
    return run_config(values | changes)


def test_window_features_are_those_of_the_windows_audio_and_record_features_follow_them(tiny_runs, tmp_path):
    """Log-mel hears 25 ms alone: its frames are the same whether a window or a record is encoded."""
    config, store = tiny_config(tiny_runs), Store(tiny_runs.store)
    kept = {}
    with quick_compiles():
        for mode in ("window", "record"):
            encode_store(config, {}, tmp_path / mode, mode=mode, dtype="float32")
            kept[mode] = FeatureStore(tmp_path / mode)
    facts = facts_of(config, {}, "window")
    assert kept["window"].facts == facts and (facts.frames_per_window, facts.dim, facts.hop_samples) == (199, 6, 320)
    assert kept["window"].frames("train", 0, 0, 199).std() > 0.1
    for start in (0, 50, 100):
        window = kept["window"].frames("train", 0, start // 50 * 199, 199)
        record = kept["record"].frames("train", 0, 2 * start, 199)
        np.testing.assert_allclose(window, record, atol=1e-4)
    options = {"view": "pair", "batch_size": 2, "seed": 0, "features": str(tmp_path / "window")}
    batch = next(iter(make_loader(str(store.path), "train", **options)))
    assert batch["audio_features"].shape == (2, 2, 199, 6) and "audio" not in batch


@pytest.mark.slow
def test_a_run_on_features_learns_the_same_and_says_what_does_not_act(tiny_runs, tmp_path, caplog):
    assert run_unils(
        "data", "encode", "--store", tiny_runs.store, "--config", tiny_runs.configs["dialogue"], "--mode", "record",
        "--dtype", "bf16", "--out", tmp_path / "f",
    ) == 0  # fmt: skip
    flag = f"--config.audio_features={tmp_path / 'f'}"
    assert tiny_runs.train("dialogue", tmp_path / "run", flag) == 0
    assert "frames know audio beyond their window's ends; noise.level_db does not act" in caplog.text
    assert abs(last_val(tmp_path / "run") / last_val(tiny_runs.workdirs["dialogue"]) - 1) < 0.01


def test_features_of_another_encoder_store_or_stage_are_refused_in_a_line(tiny_runs, tmp_path, capsys):
    config = tiny_config(tiny_runs)
    with quick_compiles():
        encode_store(config, {}, tmp_path / "f", mode="window", dtype="int8")
    manifest = json.loads((tmp_path / "f" / "features.json").read_text())
    manifest["facts"]["encoder"] = "other"
    (tmp_path / "f" / "features.json").write_text(json.dumps(manifest))
    flag = f"--config.audio_features={tmp_path / 'f'}"
    assert tiny_runs.train("dialogue", tmp_path / "run", flag) == 2
    assert "are of another audio encoder; encode the store again" in capsys.readouterr().err
    assert tiny_runs.train("prior", tmp_path / "run", flag) == 2
    assert "audio_features are of one data.store, and of a dialogue" in capsys.readouterr().err
    codec = ("data", "encode", "--store", tiny_runs.store, "--config", tiny_runs.configs["codec"])
    assert run_unils(*codec, "--out", tmp_path / "g") == 2
    assert "is a codec, features are a UniLS dialogue's" in capsys.readouterr().err


def test_the_digest_follows_sizes_and_weights():
    prior, sizes = PriorConfig(16, 2, 2, audio_dim=8), {"pos_conv_kernel": 4, "pos_conv_groups": 2}
    first, second = (UniLSConfig(prior=prior, wav2vec2=Wav2Vec2Config(8, depth, 2, 16, **sizes)) for depth in (1, 2))
    params = {"audio_encoder/a": np.ones(3), "audio_encoder/b": np.zeros(2)}
    digests = [
        encoder_digest(first, params),
        encoder_digest(second, params),
        encoder_digest(first, params | {"audio_encoder/b": np.full(2, 1e-3)}),
    ]
    assert len(set(digests)) == 3 and digests[0] == encoder_digest(first, dict(reversed(params.items())))
