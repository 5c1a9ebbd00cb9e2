"""Weights of every kind that is loaded, and FLAME's files."""

import json
import pickle
from functools import cache
from pathlib import Path

import numpy as np
from hostile.reader import Reader
from pt_writer import write_pt
from safetensors.numpy import save_file
from scipy.sparse import csc_matrix
from tiny_models import CONFIGS
from tiny_runs import transformers_config

from unils_jax.checkpoints.adapters import read_adapter, save_adapter, split_adapter
from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import _check_config_beside, make_meta_cfg
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.torch_keys import to_torch
from unils_jax.face import flame_file
from unils_jax.face.standin import standin_asset
from unils_jax.models.encoder_noise import EncoderRates
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.nn.params import abstract
from unils_jax.outputs.annotations import read_template
from unils_jax.outputs.arkit import ARKIT_NAMES, read_basis
from unils_jax.systems.dualtalk.model import DualTalkConfig
from unils_jax.systems.registry import system_of_config
from unils_jax.systems.unitalker.annotations import load_spaces
from unils_jax.systems.unitalker.model import UniTalkerConfig

ENCODER = {"width": 64, "depth": 1, "num_heads": 1, "hidden_dim": 16, "conv_dims": (4,) * 7, "pos_conv_kernel": 4}
TALKER = UniTalkerConfig(
    ("weights", "parts"),
    (5, 12),
    (0, 4),
    Wav2Vec2Config(**ENCODER, pos_conv_groups=32),
    num_identities=6,
    width=8,
    pca_dim=3,
)
DUALTALK = DualTalkConfig(
    Wav2Vec2Config(128, 1, 2, 16, (4,) * 7, pos_conv_kernel=4, pos_conv_groups=64), width=8, hidden_dim=12, depth=2
)
# FLAME's arrays at a fiftieth of their size: what is read of them is the same.
VERTICES = 100
flame_file._SHAPES = {
    **{name: tuple(VERTICES if n == 5023 else n for n in shape) for name, shape in flame_file._SHAPES.items()},
    "f": (30, 3),
}


@cache
def checkpoint(name: str) -> Checkpoint:
    """A model of random weights: one of CONFIGS, "dualtalk" and "unitalker" as they are published."""
    config = {"dualtalk": DUALTALK, "unitalker": TALKER}.get(name) or CONFIGS[name]
    shapes = abstract(system_of_config(config).builder(config))[1]
    rng = np.random.default_rng(0)
    params = {path: rng.standard_normal(shape.shape).astype(np.float32) for path, shape in shapes.items()}
    return Checkpoint(config, params, "flame", {"checkpoint": "x"})


def torch_state(name: str) -> dict[str, np.ndarray]:
    made = checkpoint(name)
    return {key: np.ascontiguousarray(value) for key, value in to_torch(made.params, made.config.stage).items()}


def make_pts(folder: Path) -> None:
    for name in ("codec", "merged"):
        write_pt(folder / f"{name}.pt", {"model": torch_state(name), "meta_cfg": json_tree(name)})
    for name in ("dualtalk", "unitalker"):
        write_pt(folder / f"{name}.pt", torch_state(name))


def json_tree(name: str) -> dict:
    return json.loads(json.dumps(make_meta_cfg(checkpoint(name))))


def make_safetensors(folder: Path, *names: str) -> None:
    for name in names:
        save_file(torch_state(name), folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(json_tree(name)))


def load_all(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            _check_config_beside(path)
        if path.suffix != ".json":
            load(path)


def make_adapter(folder: Path) -> None:
    made = checkpoint("dialogue")
    save_adapter(folder / "warm.safetensors", made.config, made.params, "flame", "warm")


def read_an_adapter(folder: Path) -> None:
    read_adapter(folder / "warm.safetensors")
    made = checkpoint("dialogue")
    prior = Checkpoint(CONFIGS["prior"], split_adapter(made.params)[0], "flame", {"checkpoint": "x"})
    prior.with_adapter(folder / "warm.safetensors")


def make_encoder(folder: Path) -> None:
    sizes = {"hidden": 64, "layers": 1, "heads": 1, "intermediate": 16, "conv_dim": [4] * 7, "pos_conv": 4}
    config = transformers_config(sizes | {"pos_groups": 32, "layer_norm_eps": 1e-5})
    shapes = abstract(lambda rngs: Wav2Vec2(TALKER.wav2vec2, EncoderRates(), rngs=rngs))[1]
    params = {f"audio_encoder/{path}": np.zeros(shape.shape, np.float32) for path, shape in shapes.items()}
    state = {key: np.ascontiguousarray(value) for key, value in to_torch(params, "audio_encoder").items()}
    keys = sorted(state)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for kind in ("single", "parts", "bin"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "single/model.safetensors")
    for name, some in parts.items():
        save_file({key: state[key] for key in some}, folder / "parts" / name)
    index = {"weight_map": {key: name for name, some in parts.items() for key in some}}
    (folder / "parts/model.safetensors.index.json").write_text(json.dumps(index))
    write_pt(folder / "bin/pytorch_model.bin", state)


def read_encoders(folder: Path) -> None:
    for kind in ("single", "parts", "bin"):
        load_audio_encoder(str(folder / kind))


def make_flame(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in flame_file._SHAPES.items()}
    arrays["f"] = rng.integers(0, VERTICES, (30, 3)).astype(np.uint32)
    arrays["kintree_table"] = np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.int64)
    np.savez_compressed(folder / "flame.npz", **arrays)
    arrays["J_regressor"] = csc_matrix(arrays["J_regressor"])
    for protocol in (0, 2, 4):
        (folder / f"flame{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol))


def read_flame(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        flame_file.load_flame(path)


def make_assets(folder: Path) -> None:
    """The release's lists of vertices and shapes, a template, and a basis of ARKit's shapes."""
    np.save(folder / "04_BIWI_mouth_idx.npy", np.arange(5))
    np.savez(folder / "EmoTalk.npz", meanshape=np.zeros((9, 3)), blendshape=np.zeros((4, 9, 3)))
    np.save(folder / "03_emo_talk_mouth_idx.npy", np.arange(5))
    np.save(folder / "template.npy", np.zeros((4, 3), np.float32))
    shapes = np.zeros((2, len(standin_asset().v_template), 3), np.float16)
    np.savez(folder / "basis.npz", names=np.array(ARKIT_NAMES[:2]), shapes=shapes)


def read_assets(folder: Path) -> None:
    load_spaces(folder, ("BIWI_23370_vertices", "3DETF_blendshape_weight"))
    read_template(folder / "template.npy", "parts", 12)
    read_basis(folder / "basis.npz", standin_asset())


READERS = {
    "weights, .pt": Reader(make_pts, load_all, apart=True),
    "weights, .safetensors": Reader(lambda folder: make_safetensors(folder, "merged"), load_all),
    "weights, .safetensors of other systems": Reader(
        lambda folder: make_safetensors(folder, "dualtalk", "unitalker"), load_all
    ),
    "adapter": Reader(make_adapter, read_an_adapter),
    "audio encoder": Reader(make_encoder, read_encoders),
    "FLAME": Reader(make_flame, read_flame, apart=True),
    "assets of annotations": Reader(make_assets, read_assets),
}
