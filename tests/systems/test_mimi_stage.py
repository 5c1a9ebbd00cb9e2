"""A dialogue with Mimi as its audio encoder: trained, resumed, decoded, exported and read again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from run_files import ARRAYS, assert_same, item
from safetensors.numpy import load_file
from tiny_runs import quick_compiles, run_unils

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.loading import load
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.models.mimi import MimiConfig
from unils_jax.systems.unils.system import ENCODER
from unils_jax.training.config import run_config

MIMI = Path(__file__).parents[1] / "golden" / "mimi"


def test_the_config_is_a_dialogue_with_the_published_mimi():
    values = load_config("dialogue_mimi").to_dict()
    values["data"]["store"] = "any"
    config = run_config(values).model
    assert config.audio_encoder == config.mimi == MimiConfig() and config.wav2vec2 is None
    assert ENCODER.needed(config) and ENCODER.family(config) == "mimi" and ENCODER.put(config, None) == config
    acoustic = replace(config, mimi=replace(config.mimi, features="acoustic"))
    assert ENCODER.put(acoustic, config.mimi) == acoustic  # the choice is in no published file


@pytest.mark.slow
def test_a_dialogue_trains_resumes_decodes_and_comes_back_from_its_export(tiny_runs, tmp_path):
    sizes, _ = load_audio_encoder(str(MIMI), "mimi")
    config = tmp_path / "mimi.py"
    lines = tiny_runs.configs["dialogue"].read_text().splitlines()
    changes = ["config.model.logmel = None", f"config.model.mimi = {vars(sizes)!r}"]
    changes += [f"config.model.prior.audio_dim = {sizes.width}", f"config.audio_encoder = {str(MIMI)!r}"]
    config.write_text("\n".join([*lines[:-1], *(f"    {line}" for line in changes), lines[-1]]) + "\n")
    assert lines[-1].strip() == "return config"

    def train(workdir: Path, *flags: str) -> int:
        parent = tiny_runs.workdirs["prior"]
        with quick_compiles():
            return run_unils("train", "--config", config, "--workdir", workdir, "--parent", parent, *flags)

    assert train(tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    assert train(tmp_path / "resumed") == 0
    for name in ARRAYS:
        assert_same(item(tmp_path / "whole", 6, name), item(tmp_path / "resumed", 6, name))
    assert not [path for path in item(tmp_path / "whole", 6, "frozen") if path.startswith("audio_encoder/")]

    rng = np.random.default_rng(0)
    sounds = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in sounds:
        soundfile.write(path, rng.normal(0, 0.1, 64_000).astype(np.float32), 16_000)

    def decode(checkpoint: Path, out: str, *flags: str | Path) -> np.ndarray:
        tracks = ("--audio", sounds[0], "--audio2", sounds[1], "--tau", "0")
        assert run_unils("decode", "--checkpoint", checkpoint, *tracks, "--out", tmp_path / out, *flags) == 0
        return np.load(tmp_path / out)["motion"]

    encoder = ("--audio_encoder", MIMI)
    ours = decode(tmp_path / "whole", "ours.npz", *encoder)
    assert ours.shape[-2:] == (100, 108) and np.isfinite(ours).all()
    with pytest.raises(UserError, match="needs its audio encoder, kyutai/mimi"):
        _ = load(tmp_path / "whole").model

    file = tmp_path / "dialogue.safetensors"
    assert run_unils("export", "--checkpoint", tmp_path / "whole", "--out", file) == 0
    tree = json.loads(file.with_suffix(".json").read_text())["MODEL"]
    assert tree["AUDIO_ENCODER"] == "mimi" and tree["MIMI"]["WIDTH"] == 12
    assert not [key for key in load_file(file) if key.startswith("audio_encoder")]
    assert "kyutai/mimi" in file.with_name("dialogue.safetensors.md").read_text()
    np.testing.assert_array_equal(decode(file, "back.npz", *encoder), ours)
