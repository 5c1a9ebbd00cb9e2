"""Mimi out of a transformers folder: what of it is read, and what is refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.mimi_files import mimi_config
from unils_jax.checkpoints.torch_keys import to_paths, to_torch
from unils_jax.errors import UserError
from unils_jax.models.mimi import MimiConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "mimi"


def folder(path: Path, tensors: dict[str, np.ndarray] | None = None, **changes) -> str:
    shutil.copytree(GOLDEN, path)
    fields = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(fields))
    if tensors:
        save_file(load_file(path / "model.safetensors") | tensors, path / "model.safetensors")
    return str(path)


def test_decoder_and_codebooks_are_left_and_names_come_back(tmp_path):
    other = {
        "decoder.layers.0.conv.weight": np.zeros((2, 2, 2), np.float32),
        "upsample.conv.weight": np.zeros(2, np.float32),
        "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum": np.zeros((2, 2), np.float32),
    }
    config, params = load_audio_encoder(folder(tmp_path / "whole", other), "mimi")
    assert config == load_audio_encoder(str(GOLDEN), "mimi")[0]
    assert (config.width, config.window_frames, config.residual_blocks) == (12, 5, 2)
    state = load_file(GOLDEN / "model.safetensors")
    back = to_torch(params, "audio_encoder")
    assert back.keys() == state.keys() and all(np.array_equal(back[key], state[key]) for key in state)
    assert to_paths(state, "audio_encoder").keys() == params.keys()


def test_the_published_config_gives_the_published_sizes(tmp_path):
    """kyutai/mimi's config.json names the base of the rotary angles outside `rope_parameters`."""

    published = {"model_type": "mimi", "rope_theta": 10000.0, "frame_rate": 12.5, "head_dim": 64}
    assert mimi_config(published, tmp_path) == MimiConfig()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "encodec"}, 'model_type must be "mimi", got "encodec"'),
        ({"use_causal_conv": False, "pad_mode": "reflect"}, "use_causal_conv must be true, got false; pad_mode must"),
        ({"hidden_size": 0}, "hidden_size must be a positive whole number, got 0"),
        ({"upsampling_ratios": [8, 0]}, "upsampling_ratios must be positive whole numbers"),
        ({"num_key_value_heads": 1}, "num_key_value_heads must be 2, got 1"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters must be a theta of the default type"),
        ({"vector_quantization_hidden_dimension": 12}, "must differ from hidden_size, got 12"),
        ({"num_hidden_layers": 3}, "missing: encoder_transformer.layers.2"),
        ({"num_filters": 3}, "num_filters 3 must be a multiple of compress 2"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load_audio_encoder(folder(tmp_path / "x", **changes), "mimi")


def test_a_mimi_is_no_wav2vec2():
    with pytest.raises(UserError, match='model_type must be "wav2vec2", got "mimi"'):
        load_audio_encoder(str(GOLDEN))
