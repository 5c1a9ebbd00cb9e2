"""Weights in .safetensors and in transformers folders: what is read, what is refused and how it is named."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from pt_writer import call, write_pt
from safetensors.numpy import load_file, save_file

from unils_jax.checkpoints.audio_encoders import read_transformers_folder
from unils_jax.checkpoints.torch_files import read_safetensors
from unils_jax.checkpoints.torch_keys import to_paths
from unils_jax.errors import UserError

META_CFG = {"MODEL": {"LOADER": "unils_codec.UniLSCodec", "V_PATCH_NUMS": [1, 100], "RATE": 0.3, "X": None, "Y": True}}
FLAT = np.arange(12, dtype=np.float32)


def test_safetensors_with_its_config_reads_like_a_pt(tmp_path, golden):
    weights = golden("codec").weights
    save_file(weights, tmp_path / "codec.safetensors")
    (tmp_path / "codec.json").write_text(json.dumps(META_CFG))
    read = read_safetensors(tmp_path / "codec.safetensors")
    assert read["meta_cfg"] == META_CFG
    assert {key: array.tobytes() for key, array in read["model"].items()} == {
        k: w.tobytes() for k, w in weights.items()
    }


def raw_safetensors(path, dtype: str, data: bytes) -> None:
    width = {"BF16": 2, "F8_E4M3": 1}[dtype]
    header = {"w": {"dtype": dtype, "shape": [len(data) // width], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_safetensors_in_bfloat16_becomes_float32_and_float8_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    (tmp_path / "x.json").write_text("{}")
    values = np.array([1.5, -2.0], np.float32)
    raw_safetensors(path, "BF16", (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    array = read_safetensors(path)["model"]["w"]
    assert array.dtype == np.float32 and np.array_equal(array, values)
    raw_safetensors(path, "F8_E4M3", b"\x01\x02")
    with pytest.raises(UserError, match="x.safetensors"):
        read_safetensors(path)


def test_broken_safetensors_and_configs_are_named(tmp_path):
    path, config = tmp_path / "x.safetensors", tmp_path / "x.json"
    with pytest.raises(UserError, match="no such file"):
        read_safetensors(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="not a readable .safetensors"):
        read_safetensors(path)
    save_file({"w": FLAT}, path)
    with pytest.raises(UserError, match="x.json: No such file.*meta_cfg of x.safetensors"):
        read_safetensors(path)
    for text, match in (
        ("{", "not JSON"),
        ("[1]", "got a list"),
        ("[" * 9999, "not JSON"),
        ('{"a": 1' + "0" * 30 + "}", "a is"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=match):
            read_safetensors(path)
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(UserError, match="not a readable .safetensors"):
        read_safetensors(path)


TINY_WAV2VEC2 = {
    "model_type": "wav2vec2",
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def wav2vec2_folder(folder, golden, **changes):
    weights = load_file(golden("loragen").folder / "audio_encoder.safetensors")
    (folder / "config.json").write_text(json.dumps({**TINY_WAV2VEC2, **changes}))
    save_file(weights, folder / "model.safetensors")
    return weights


def test_transformers_folder_is_read_with_defaults_filled_in(tmp_path, golden):
    weights = wav2vec2_folder(tmp_path, golden)
    config, state = read_transformers_folder(tmp_path)
    assert config["hidden_size"] == 32
    assert config["conv_kernel"] == [10, 3, 3, 3, 3, 2, 2]
    assert config["layer_norm_eps"] == 1e-5
    assert {key: array.tobytes() for key, array in state.items()} == {k: w.tobytes() for k, w in weights.items()}


def test_sharded_and_pickled_folders_are_read(tmp_path, golden):
    weights = wav2vec2_folder(tmp_path, golden)
    (tmp_path / "model.safetensors").unlink()
    halves = {"a.safetensors": list(weights)[:30], "b.safetensors": list(weights)[30:]}
    for name, keys in halves.items():
        save_file({key: weights[key] for key in keys}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in halves.items() for key in keys}}))
    assert set(read_transformers_folder(tmp_path)[1]) == set(weights)
    index.write_text(json.dumps({"weight_map": {"w": "../a.safetensors"}}))
    with pytest.raises(UserError, match="in the same folder"):
        read_transformers_folder(tmp_path)
    index.unlink()
    write_pt(tmp_path / "pytorch_model.bin", weights)
    state = read_transformers_folder(tmp_path)[1]
    assert set(to_paths(state, "audio_encoder")) == set(to_paths(weights, "audio_encoder"))
    write_pt(tmp_path / "pytorch_model.bin", weights | {"x": call("os", "system", f"touch {tmp_path / 'marker'}")})
    with pytest.raises(UserError, match="forbidden global"):
        read_transformers_folder(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_other_families_of_wav2vec2_are_refused_naming_every_field(tmp_path, golden):
    wav2vec2_folder(
        tmp_path, golden, model_type="hubert", do_stable_layer_norm=False, feat_extract_norm="group", conv_bias=False
    )
    with pytest.raises(UserError) as raised:
        read_transformers_folder(tmp_path)
    for part in (
        'model_type must be "wav2vec2", got "hubert"',
        "do_stable_layer_norm must be true, got false",
        'feat_extract_norm must be "layer", got "group"',
        "conv_bias must be true, got false",
        "facebook/wav2vec2-xls-r-300m",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "relu"}, 'hidden_act must be "gelu", got "relu"'),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation"),
        ({"add_adapter": True}, "add_adapter must be false"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim must be null"),
        ({"do_stable_layer_norm": 1}, "do_stable_layer_norm must be true, got 1"),
        ({"hidden_size": "32"}, "hidden_size must be a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_attention_heads": 5}, "hidden_size 32 must be a multiple of num_attention_heads 5"),
        ({"conv_dim": [16, 16]}, "of one length"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "lists of positive"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps"),
    ],
)
def test_odd_fields_of_a_wav2vec2_config_are_named(tmp_path, golden, changes, match):
    wav2vec2_folder(tmp_path, golden, **changes)
    with pytest.raises(UserError, match=match):
        read_transformers_folder(tmp_path)


def test_incomplete_folders_are_named(tmp_path, golden):
    with pytest.raises(UserError, match="is not a folder"):
        read_transformers_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="config.json: No such file"):
        read_transformers_folder(tmp_path)
    wav2vec2_folder(tmp_path, golden)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors.*save_pretrained"):
        read_transformers_folder(tmp_path)


def test_the_readers_import_neither_torch_nor_transformers():
    program = "import sys, unils_jax.checkpoints.torch_files, unils_jax.checkpoints.torch_keys; "
    program += "sys.exit(bool({'torch', 'transformers', 'jax'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
