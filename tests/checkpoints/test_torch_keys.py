"""The key table against the manifest's shapes (nothing big is allocated) and the goldens' weights."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from unils_jax.checkpoints.torch_keys import (
    UNKNOWN,
    check_params,
    key_of,
    path_of,
    to_paths,
    to_torch,
    torch_views,
    unwrapped,
)
from unils_jax.errors import UserError
from unils_jax.systems.unils.meta_cfg import model_sizes

MANIFEST = json.loads(gzip.decompress((Path(__file__).parents[1] / "support" / "manifest.json.gz").read_bytes()))
NUM_KEYS = {
    "codec": 154,
    "prior": 252,
    "dialogue": 446,
    "codec_s": 118,
    "prior_s": 194,
    "dialogue_s": 340,
    "audio_encoder": 422,
}


def zeros(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def shapes_of(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


def released(name: str) -> dict[str, np.ndarray]:
    return to_paths(zeros(MANIFEST[name]["state_dict"]), name.removesuffix("_s"))


@pytest.mark.parametrize("name", NUM_KEYS)
def test_every_released_key_maps_to_one_path_and_back(name):
    keys = MANIFEST[name]["state_dict"]
    stage = name.removesuffix("_s")
    params = to_paths(zeros(keys), stage)
    assert len(params) == len(keys) == NUM_KEYS[name]
    assert not [path for path in params if path.startswith(UNKNOWN)]
    assert {key: list(view.shape) for key, view in torch_views(params, stage)} == keys


@pytest.mark.parametrize(
    ("case", "stage"),
    [
        ("codec/weights", "codec"),
        ("freegen/weights", "prior"),
        ("loragen/weights", "dialogue"),
        ("loragen/audio_encoder", "audio_encoder"),
    ],
)
def test_round_trip_is_bit_exact_and_contiguous(golden, case, stage):
    state = load_file(golden(case.partition("/")[0]).folder / f"{case.partition('/')[2]}.safetensors")
    back = to_torch(to_paths(state, stage), stage)
    assert set(back) == set(state)
    for key, array in back.items():
        assert array.flags.c_contiguous
        assert array.dtype == state[key].dtype
        assert array.tobytes() == state[key].tobytes()


def test_paths_and_layouts_are_as_documented():
    params = released("dialogue")
    assert params["codec/encoder/inp/kernel"].shape == (108, 512)
    assert params["codec/decoder/blocks/7/self_attn/to_qkv/kernel"].shape == (512, 1536)
    assert params["codec/decoder/blocks/7/mlp/down/kernel"].shape == (768, 512)
    assert params["prior/start_token"].shape == (1, 1, 512)
    assert params["prior/scale_embed"].shape == (5, 512)
    assert params["prior/own_audio_embed"].shape == (1, 1, 1024)
    assert params["prior/blocks/3/own_audio_attn/k_proj/kernel"].shape == (1024, 512)
    assert params["prior/blocks/3/other_audio_attn/audio_norm/scale"].shape == (1024,)
    assert params["prior/head/kernel"].shape == (512, 64)
    encoder = released("audio_encoder")
    assert encoder["audio_encoder/convs/0/conv/kernel"].shape == (10, 1, 512)
    assert encoder["audio_encoder/pos_conv/weight_g"].shape == (1, 1, 128)
    assert encoder["audio_encoder/pos_conv/weight_v"].shape == (1024, 64, 128)
    assert encoder["audio_encoder/blocks/23/attn/q/kernel"].shape == (1024, 1024)
    assert encoder["audio_encoder/blocks/23/down/kernel"].shape == (4096, 1024)


def test_own_and_other_audio_are_not_confused():
    assert key_of("prior/own_audio_embed", "dialogue") == ("attn_blocks.self_pos", False)
    assert key_of("prior/blocks/0/own_audio_attn/query_norm/bias", "dialogue") == (
        "attn_blocks.attn_blocks.0.self_audio_attn.self_norm.bias",
        False,
    )
    assert path_of("attn_blocks.attn_blocks.0.other_audio_attn.out_proj.weight", "dialogue") == (
        "prior/blocks/0/other_audio_attn/out_proj/kernel",
        True,
    )


def test_attention_and_mlp_of_a_codec_block_are_neighbours_in_torch():
    assert key_of("codec/encoder/blocks/10/self_attn/norm/scale", "codec")[0] == (
        "encoder.encoder_transformer.20.norm.weight"
    )
    assert key_of("codec/encoder/blocks/10/mlp/up/bias", "codec")[0] == "encoder.encoder_transformer.21.0.bias"
    assert path_of("encoder.encoder_transformer.21.norm.weight", "codec") is None
    assert path_of("encoder.encoder_transformer.20.0.weight", "codec") is None
    assert path_of("encoder.encoder_transformer.01.0.weight", "codec") is None


def test_adapters_and_saved_modules_of_peft_map(golden):
    lora = load_file(golden("loragen_peft").folder / "lora.safetensors")
    params = to_paths(lora, "dialogue")
    assert len(params) == len(lora)
    assert not [path for path in params if path.startswith(UNKNOWN)]
    assert params["prior/blocks/0/mlp/up/lora_a"].shape == (32, 32)
    assert params["prior/blocks/0/mlp/up/lora_b"].shape == (32, 128)
    assert params["prior/token_embed/lora_a"].shape == (8, 32)
    assert params["prior/head/lora_b"].shape == (32, 16)
    assert "prior/blocks/1/own_audio_attn/q_proj/kernel" in params
    back = to_torch(params, "dialogue")
    adapters = {key for key in lora if ".lora_" in key}
    assert len(adapters) == 20 and adapters <= set(back)
    assert all(back[key].tobytes() == lora[key].tobytes() for key in adapters)


def test_adapters_belong_to_the_dialogue_stage_only():
    key = "code_token_embed.lora_A.default.weight"
    assert path_of(key, "prior") is None
    assert path_of(key, "dialogue") == ("prior/token_embed/lora_a", True)


def test_wav2vec2_prefix_old_weight_norm_names_and_heads_are_understood(golden):
    state = load_file(golden("loragen").folder / "audio_encoder.safetensors")
    weight_norm = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    old = {}
    for key, array in state.items():
        for new_name, old_name in weight_norm.items():
            key = key.replace(new_name, old_name)
        old[f"wav2vec2.{key}"] = array
    old |= {"lm_head.weight": np.zeros(1), "quantizer.codevectors": np.zeros(1), "project_q.bias": np.zeros(1)}
    params = to_paths(old, "audio_encoder")
    expected = to_paths(state, "audio_encoder")
    assert set(params) == set(expected)
    assert all(np.array_equal(params[path], expected[path]) for path in expected)


def test_two_names_of_one_parameter_are_refused():
    state = zeros(
        {"encoder.pos_conv_embed.conv.weight_g": [1, 1, 4], "wav2vec2.encoder.pos_conv_embed.conv.weight_g": [1]}
    )
    with pytest.raises(UserError, match="name the same parameter audio_encoder/pos_conv/weight_g"):
        to_paths(state, "audio_encoder")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_prefixes_of_wrappers_are_left_away_and_told(golden, caplog, prefix):
    weights = golden("codec").weights
    expected = to_paths(weights, "codec")
    assert not caplog.records
    found = to_paths({prefix + key: value for key, value in weights.items()}, "codec")
    assert found.keys() == expected.keys() and all(np.array_equal(found[path], expected[path]) for path in found)
    assert len(caplog.records) == 1
    assert f"without {prefix}," in caplog.text and f"{len(weights)} of {len(weights)} keys" in caplog.text


@pytest.mark.parametrize("prefix", ["model.", "ema_model.", "generator.net.", "module.model."])
def test_a_prefix_that_all_keys_share_is_left_away_where_the_rest_is_known(golden, caplog, prefix):
    weights = golden("codec").weights
    found = to_paths({prefix + key: value for key, value in weights.items()}, "codec")
    assert found.keys() == to_paths(weights, "codec").keys()
    assert f"all {len(weights)} keys of the file begin with" in caplog.text


def test_a_prefix_of_keys_that_no_table_knows_stays():
    state = {"model.a": 1, "model.b": 2}
    assert unwrapped(state) == state


def test_a_part_may_be_compiled_but_a_part_named_module_stays():
    state = {"a._orig_mod.b": 1, "a.module.c": 2, "interaction_module.d": 3, "_orig_modx.e": 4}
    assert unwrapped(state) == {"a.b": 1, "a.module.c": 2, "interaction_module.d": 3, "_orig_modx.e": 4}
    with pytest.raises(UserError, match="a.b is in the file with and without"):
        unwrapped({"module.a.b": 1, "a.b": 2})


def test_writing_an_unknown_path_is_an_error_of_the_program():
    with pytest.raises(ValueError, match="prior/banana"):
        to_torch({"prior/banana": np.zeros(1)}, "prior")
    with pytest.raises(ValueError, match="stage must be"):
        to_paths({"x": np.zeros(1)}, "stage 2")


def test_check_params_accepts_what_fits():
    params = released("dialogue_s")
    check_params(shapes_of(params), params, "x.pt")


def test_check_params_names_every_problem_by_its_torch_key():
    keys = dict(MANIFEST["prior"]["state_dict"])
    expected = shapes_of(to_paths(zeros(keys), "prior"))
    del keys["logits_head.1.weight"]
    keys["code_token_embed.weight"] = [512, 16]
    keys["surprise.weight\nrm -rf"] = [3]
    with pytest.raises(UserError) as raised:
        check_params(expected, to_paths(zeros(keys), "prior"), "prior.pt")
    message = str(raised.value)
    assert message.startswith("prior.pt does not fit")
    assert "1 missing: logits_head.1.weight" in message
    assert "1 unexpected: surprise.weight?rm -rf" in message
    assert "1 of another shape: code_token_embed.weight is [512, 16], must be [512, 32]" in message
    assert "\n" not in message


def test_check_params_caps_the_lists_and_counts_all():
    params = released("codec")
    with pytest.raises(UserError) as raised:
        check_params(shapes_of(params), {}, "codec.pt")
    assert "154 missing: motion_mean, motion_std, encoder.inp_mapping.0.weight" in str(raised.value)
    assert "and 144 more" in str(raised.value)


def test_check_params_names_the_audio_encoder_beside_the_prior():
    expected = {"prior/head/bias": (4,), "audio_encoder/blocks/0/up/kernel": (4, 8)}
    found = {"prior/head/bias": np.zeros(4), "audio_encoder/blocks/0/up/kernel": np.zeros((4, 9))}
    with pytest.raises(UserError, match=r"intermediate_dense.weight is \[9, 4\], must be \[8, 4\]"):
        check_params(expected, found, "encoder")


def test_model_sizes_reads_all_released_configs():
    full = {"width": 512, "depth": 8, "num_heads": 8}
    small = {"width": 384, "depth": 6, "num_heads": 6}
    for suffix, sizes, scales in (("", full, (1, 5, 25, 50, 100)), ("_s", small, (1, 25, 50, 100))):
        for stage in ("codec", "prior", "dialogue"):
            got = model_sizes({"MODEL": MANIFEST[stage + suffix]["model_cfg"]})
            assert got["stage"] == stage
            assert got["codec"] == {"motion_dim": 108, "code_dim": 32, "scales": scales, **sizes}
            context = {"context_windows": 1, "past_audio_frames": 0, "lookahead_frames": 0}
            assert got["prior"] == (None if stage == "codec" else sizes | context)
            assert got["audio_encoder"] == ("wav2vec" if stage == "dialogue" else None)
            assert got["audio_width"] is None


def test_audio_width_comes_from_the_weights():
    meta_cfg = {"MODEL": MANIFEST["dialogue"]["model_cfg"]}
    state = zeros(MANIFEST["dialogue"]["state_dict"])
    assert model_sizes(meta_cfg, state)["audio_width"] == 1024
    del state["attn_blocks.self_pos"]
    with pytest.raises(UserError, match="attn_blocks.self_pos, which tells the audio width, is missing"):
        model_sizes(meta_cfg, state)


def test_model_sizes_names_all_problems_at_once():
    model = json.loads(json.dumps(MANIFEST["prior"]["model_cfg"]))
    del model["T_DEPTH"]
    model["T_NUM_HEAD"] = 7
    model["VAE_CONFIG"] |= {"V_PATCH_NUMS": [1, 50], "V_CODE_DIM": -3, "MOTION_DIM": 64}
    meta_cfg = {"MODEL": model, "DATASET": {"MOTION_FPS": 30, "AUDIO_SAMPLE_RATE": 16000}}
    with pytest.raises(UserError) as raised:
        model_sizes(meta_cfg)
    for part in (
        "MODEL.T_DEPTH must be a whole number from 1 to 1000, got nothing",
        "MODEL.T_EMBED_DIM must be an even multiple of T_NUM_HEAD 7, got 512",
        "V_PATCH_NUMS must be rising counts that end in 100, got [1, 50]",
        "V_CODE_DIM must be a whole number from 1 to 65536, got -3",
        "MOTION_DIM must be 108, got 64",
        "DATASET.MOTION_FPS must be 25, got 30",
    ):
        assert part in str(raised.value)
    assert "AUDIO_SAMPLE_RATE" not in str(raised.value)


@pytest.mark.parametrize(
    ("meta_cfg", "problem"),
    [
        ({}, "MODEL is missing"),
        ({"MODEL": 3}, "MODEL must be a filled dict"),
        ({"MODEL": {"LOADER": "artalk.Model"}}, "MODEL.LOADER must be one of"),
        ({"MODEL": {"LOADER": "unils_gen.UniLSGen"}}, "MODEL.VAE_CONFIG is missing"),
    ],
)
def test_model_sizes_refuses_other_trees(meta_cfg, problem):
    with pytest.raises(UserError, match=problem):
        model_sizes(meta_cfg)
