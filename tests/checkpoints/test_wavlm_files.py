"""WavLM out of a transformers folder: both namings, both file kinds, what of it is refused, and training from it."""

import json
from pathlib import Path

import numpy as np
import pytest
from pt_writer import write_pt
from safetensors.numpy import save_file

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.torch_keys import to_paths, to_torch
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.models.wavlm import WavLMConfig
from unils_jax.systems.base import Start
from unils_jax.systems.unitalker.training import published_encoder
from unils_jax.training.config import run_config

SIZES = WavLMConfig(8, 2, 2, 16, conv_dims=(4,) * 7, pos_conv_kernel=4, pos_conv_groups=2, num_buckets=16)
FIELDS = {
    "model_type": "wavlm",
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_buckets": 16,
    "max_bucket_distance": 800,
    "replace_prob": 0.5,
}
LAYER = {
    "attention.q_proj": (8, 8),
    "attention.k_proj": (8, 8),
    "attention.v_proj": (8, 8),
    "attention.out_proj": (8, 8),
    "attention.gru_rel_pos_linear": (8, 4),
    "feed_forward.intermediate_dense": (16, 8),
    "feed_forward.output_dense": (8, 16),
}


def state() -> dict[str, np.ndarray]:
    """The tensors of a tiny WavLM as transformers names them today."""
    shapes = {"masked_spec_embed": (8,), "encoder.layers.0.attention.rel_attn_embed.weight": (16, 2)}
    linear = {"feature_projection.projection": (8, 4)}
    norms = {
        "feature_projection.layer_norm": 4,
        "encoder.layer_norm": 8,
        "feature_extractor.conv_layers.0.layer_norm": 4,
    }
    for i, taps in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] = (4, 4 if i else 1, taps)
    for i in (0, 1):
        linear |= {f"encoder.layers.{i}.{name}": shape for name, shape in LAYER.items()}
        norms |= {f"encoder.layers.{i}.{name}": 8 for name in ("layer_norm", "final_layer_norm")}
        shapes[f"encoder.layers.{i}.attention.gru_rel_pos_const"] = (1, 2, 1, 1)
    position = "encoder.pos_conv_embed.conv"
    shapes |= {f"{position}.parametrizations.weight.original0": (1, 1, 4), f"{position}.bias": (8,)}
    shapes[f"{position}.parametrizations.weight.original1"] = (8, 4, 4)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, dim in norms.items():
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    rng = np.random.default_rng(0)
    return {key: rng.normal(0, 1, shape).astype(np.float32) for key, shape in shapes.items()}


def old_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in names.items():
        tensors = {key.replace(new, old): value for key, value in tensors.items()}
    return tensors


def folder(path: Path, tensors: dict[str, np.ndarray], *, pickled: bool = False, **changes) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(FIELDS | changes))
    write_pt(path / "pytorch_model.bin", tensors) if pickled else save_file(tensors, path / "model.safetensors")
    return str(path)


def test_every_naming_and_file_kind_gives_the_same_encoder(tmp_path):
    tensors = state()
    expected = to_paths(tensors, "audio_encoder")
    assert not [path for path in expected if path.startswith("unknown/")]
    prefixed = {f"wavlm.{key}": value for key, value in tensors.items()} | {"lm_head.weight": np.zeros(3, np.float32)}
    variants = {"new": (tensors, False), "old": (old_names(tensors), True), "prefixed": (prefixed, False)}
    for name, (written, pickled) in variants.items():
        config, params = load_audio_encoder(folder(tmp_path / name, written, pickled=pickled), "wavlm")
        assert config == SIZES and params.keys() == expected.keys()
        for path, value in params.items():
            np.testing.assert_array_equal(value, expected[path])
    np.testing.assert_array_equal(
        expected["audio_encoder/position_table"], tensors["encoder.layers.0.attention.rel_attn_embed.weight"]
    )
    assert to_torch(expected, "audio_encoder").keys() == tensors.keys()


def test_the_folders_tensors_are_those_of_unitalkers_files(golden):
    """Parity of the encoder is shown with these names; here they are the same ones."""
    weights = golden("unitalker/wavlm_conv").weights
    ours = {key: value for key, value in weights.items() if key.startswith("audio_encoder.")}
    bare = to_paths({key.removeprefix("audio_encoder."): value for key, value in ours.items()}, "audio_encoder")
    whole = to_paths(ours, "unitalker")
    assert {path.replace("audio_encoder/", "speech_encoder/") for path in bare} == whole.keys()
    assert not [path for path in whole if path.startswith("unknown/")]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "wav2vec2"}, 'model_type must be "wavlm", got "wav2vec2"'),
        (
            {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
            'feat_extract_norm must be "group", got "layer"',
        ),
        ({"num_buckets": 0}, "num_buckets must be a positive whole number, got 0"),
        ({"num_hidden_layers": 3}, "missing: encoder.layers.2"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load_audio_encoder(folder(tmp_path / "x", state(), **changes), "wavlm")


def test_a_wavlm_is_no_wav2vec2(tmp_path):
    with pytest.raises(UserError, match='model_type must be "wav2vec2", got "wavlm"'):
        load_audio_encoder(folder(tmp_path / "x", state()))


def test_unitalker_starts_from_a_wavlm(tmp_path):
    values = load_config("smoke/unitalker").to_dict()
    values["data"]["store"] = "any"
    encoder = {"width": 8, "depth": 2, "num_heads": 2, "hidden_dim": 16, "conv_dims": (4,) * 7, "num_buckets": 16}
    values["model"] |= {"wav2vec2": None, "wavlm": encoder | {"pos_conv_kernel": 4, "pos_conv_groups": 2}}
    values["audio_encoder"] = folder(tmp_path / "wavlm", state())
    params = published_encoder(run_config(values), Start(load_encoder=load_audio_encoder))
    assert {path.split("/")[0] for path in params} == {"speech_encoder"} and len(params) == len(state())
