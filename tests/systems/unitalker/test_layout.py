"""UniTalker's files: the published bare state dict in without a config, ours out and back, a PCA given, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pt_writer import write_pt
from random_records import assert_same
from safetensors.numpy import load_file, save_file

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.torch_keys import to_torch
from unils_jax.errors import UserError
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.models.wavlm import WavLMConfig
from unils_jax.nn.params import abstract
from unils_jax.systems.unitalker.heads import with_pca
from unils_jax.systems.unitalker.model import UniTalkerConfig
from unils_jax.systems.unitalker.system import UNITALKER

ENCODER = {"width": 64, "depth": 1, "num_heads": 1, "hidden_dim": 16, "conv_dims": (4,) * 7, "pos_conv_kernel": 4}
ENCODER |= {"pos_conv_groups": 32}
SIZES = UniTalkerConfig(
    ("weights", "parts"), (5, 12), (0, 4), Wav2Vec2Config(**ENCODER), num_identities=6, width=8, pca_dim=3
)
VARIANTS = {
    "conv": SIZES,
    "transformer": replace(SIZES, decoder="transformer"),
    "wavlm": replace(SIZES, wav2vec2=None, wavlm=WavLMConfig(**ENCODER, num_buckets=16)),
    "deep": replace(SIZES, head_layers=3),
}


def make(sizes: UniTalkerConfig) -> Checkpoint:
    config = sizes
    rng = np.random.default_rng(0)
    shapes = abstract(UNITALKER.builder(config))[1]
    params = {path: rng.standard_normal(shape.shape, np.float32) for path, shape in shapes.items()}
    return Checkpoint(config, params, "flame", {"checkpoint": "runs/x", "stage": "unitalker"})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_alone_tells_its_sizes(tmp_path, variant, suffix):
    checkpoint, path = make(VARIANTS[variant]), tmp_path / f"model{suffix}"
    state = to_torch(checkpoint.params, "unitalker")
    save_file(state, path) if suffix == ".safetensors" else write_pt(path, state)
    found = load(path, stage="unitalker")
    assert replace(found.config, annotations=(), dims=(), components=()) == replace(
        checkpoint.config, annotations=(), dims=(), components=()
    )
    rows = (found.config.annotations, found.config.dims, found.config.components)
    assert set(zip(*rows, strict=True)) == {("weights", 5, 0), ("parts", 12, 4)}
    assert_same(found.params, checkpoint.params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_file_returns_bit_for_bit_with_its_config(tmp_path, variant):
    checkpoint, path = make(VARIANTS[variant]), tmp_path / "model.safetensors"
    export(checkpoint, path)
    found = load(path, stage="unitalker")
    assert found.config == checkpoint.config
    assert_same(found.params, checkpoint.params)
    table = load_file(path).get("decoder.PPE.pe")
    assert (table is not None) == (variant == "transformer")
    assert table is None or table.shape == (1, 3030, 8)
    card = (tmp_path / "model.safetensors.md").read_text()
    assert "`weights` (5 numbers a frame), `parts` (12 numbers a frame); 6 identities" in card


def test_a_file_without_its_pca_takes_one(tmp_path):
    """The published files leave the PCA out; without it there is no model."""
    checkpoint, path = make(SIZES), tmp_path / "model.safetensors"
    state = to_torch(checkpoint.params, "unitalker")
    save_file({key: value for key, value in state.items() if not key.startswith("pca_layer_dict")}, path)
    assert load(path).config.components == (0, 0)  # `parts` are no kind of the release: three numbers
    path.with_suffix(".json").write_text(
        json.dumps({"MODEL": {"NAME": "UniTalker", "CONFIG": as_config(SIZES)}, "EXPRESSION_BASIS": "flame"})
    )
    found = load(path)
    with pytest.raises(UserError, match="lacks the PCA of its annotations"):
        _ = found.model
    components, mean = (checkpoint.params[f"pca/parts/{name}"] for name in ("components", "mean"))
    config, params = with_pca(found.config, found.params, {"parts": (components, mean)})
    whole = replace(found, config=config, params=params)
    assert_same(whole.params, checkpoint.params)
    assert whole.model.pca["parts"].num_used == 3
    with pytest.raises(UserError, match="parts predicts 3 coefficients"):
        with_pca(found.config, found.params, {"parts": (components[:2], mean)})


def as_config(sizes: UniTalkerConfig) -> dict:
    return {
        "annotations": sizes.annotations,
        "dims": sizes.dims,
        "components": sizes.components,
        "num_identities": 6,
    } | {
        "wav2vec2": ENCODER,
        "width": 8,
        "pca_dim": 3,
    }


def test_the_published_kinds_with_a_pca_are_known_by_their_heads(tmp_path):
    sizes = replace(SIZES, annotations=("BIWI_23370_vertices",), dims=(70_110,), components=(3,))
    checkpoint, path = make(sizes), tmp_path / "model.safetensors"
    state = to_torch(checkpoint.params, "unitalker")
    save_file({key: value for key, value in state.items() if not key.startswith("pca_layer_dict")}, path)
    assert load(path).config == sizes


@pytest.mark.parametrize(
    ("lacks", "problem"),
    [
        ("decoder.audio_feature_map.weight", "does not tell the sizes of a UniTalker"),
        ("decoder.audio_feature_map.bias", "1 missing: decoder.audio_feature_map.bias"),
    ],
)
def test_an_incomplete_state_dict_is_refused(tmp_path, lacks, problem):
    path, state = tmp_path / "model.safetensors", to_torch(make(SIZES).params, "unitalker")
    del state[lacks]
    save_file(state, path)
    with pytest.raises(UserError, match=problem):
        load(path)


def test_a_json_of_another_model_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(to_torch(make(SIZES).params, "unitalker"), path)
    path.with_suffix(".json").write_text('{"MODEL": {"NAME": "DualTalk", "CONFIG": {}}}')
    with pytest.raises(UserError, match="must hold MODEL with NAME 'UniTalker'"):
        load(path)
