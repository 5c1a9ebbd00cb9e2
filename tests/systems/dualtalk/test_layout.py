"""DualTalk's files: the published bare state dict in without a config, ours out and back, what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from pt_writer import write_pt
from random_records import assert_same
from safetensors.numpy import save_file

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.model_card import model_card
from unils_jax.checkpoints.torch_keys import to_torch
from unils_jax.errors import UserError
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.params import abstract
from unils_jax.systems.dualtalk.model import DualTalkConfig
from unils_jax.systems.dualtalk.system import DUALTALK
from unils_jax.systems.torch_layout import named_tree

# Heads as the published ones: 4, and 64 channels each in the audio encoders.
SIZES = DualTalkConfig(
    Wav2Vec2Config(128, 1, 2, 16, (4,) * 7, pos_conv_kernel=4, pos_conv_groups=64), width=8, hidden_dim=12, depth=2
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = SIZES
    rng = np.random.default_rng(0)
    shapes = abstract(DUALTALK.builder(config))[1]
    params = {path: rng.standard_normal(shape.shape, np.float32) for path, shape in shapes.items()}
    return Checkpoint(config, params, "flame", {"checkpoint": "runs/x", "stage": "dualtalk"})


def published(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return to_torch(checkpoint.params, "dualtalk")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_the_published_file_alone_tells_its_sizes(checkpoint, tmp_path, suffix):
    path, state = tmp_path / f"DualTalk{suffix}", published(checkpoint)
    save_file(state, path) if suffix == ".safetensors" else write_pt(path, state)
    found = load(path, stage="dualtalk")
    assert found.config == checkpoint.config and found.expression_basis == "flame"
    assert_same(found.params, checkpoint.params)


@pytest.mark.parametrize("basis", ["flame", "standin"])
def test_an_exported_file_returns_bit_for_bit_with_its_config(checkpoint, tmp_path, basis):
    sizes = replace(SIZES, num_heads=2, strength=0.2, sigmoid=True, fusion_rate=0.25)
    ours = replace(checkpoint, config=sizes, expression_basis=basis)
    path = tmp_path / "ours.safetensors"
    exported = export(ours, path)
    assert set(exported.state) == set(published(checkpoint)) and bool(exported.warnings) == (basis == "standin")
    found = load(path)
    assert found.config == ours.config and found.expression_basis == basis
    assert_same(found.params, checkpoint.params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.json", "ours.safetensors", "ours.safetensors.md"]


def test_an_exported_pt_is_the_bare_state_dict_with_its_config_beside(checkpoint, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
    path = tmp_path / "ours.pt"
    export(checkpoint, path)
    state = torch.load(path, weights_only=True)
    assert {key: value.numpy().tobytes() for key, value in state.items()} == {
        key: value.tobytes() for key, value in published(checkpoint).items()
    }
    assert_same(load(path).params, checkpoint.params)


def test_the_card_says_what_goes_in_and_how_to_load(checkpoint):
    card = model_card(checkpoint, "ours.pt")
    assert "56 channels at 25 frames/s" in card and 'load("ours.pt")' in card and "bare state dict" in card


def broken(folder: Path, state: dict[str, np.ndarray], tree: dict | None = None) -> str:
    path = folder / "x.safetensors"
    save_file(state, path)
    if tree is not None:
        path.with_suffix(".json").write_text(json.dumps(tree))
    with pytest.raises(UserError) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_that_does_not_fit_is_told_by_name(checkpoint, tmp_path):
    state = published(checkpoint)
    tree = named_tree(SIZES, "DualTalk", "flame")
    assert "does not tell the sizes" in broken(
        tmp_path, {key: value for key, value in state.items() if "audio_projection" not in key}
    )
    lacking = {key: value for key, value in state.items() if "modulation_layer.bias" not in key}
    assert "1 missing: synthesis_module.modulation_layer.bias" in broken(tmp_path, lacking)
    assert "must hold MODEL with NAME 'DualTalk'" in broken(tmp_path, state, {"MODEL": {"NAME": "UniLSCodec"}})
    wider = {"MODEL": {"NAME": "DualTalk", "CONFIG": {**asdict(SIZES), "width": 16}}}
    assert "of another shape" in broken(tmp_path, state, wider)
    tree["MODEL"]["CONFIG"]["widht"] = 3
    assert "has no setting 'widht', did you mean 'width'?" in broken(tmp_path, state, tree)
