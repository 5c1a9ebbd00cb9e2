"""The three sources of weights that PyTorch programs wrote; neither torch nor transformers is needed.

A release `.pt`, a `.safetensors` with its `meta_cfg` as JSON beside it, and a transformers folder of wav2vec2 or WavLM.
No pickled code is run (see `torch_zip`), and what is returned is plain: arrays, and config trees of dict, list, text,
numbers and None.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from unils_jax.checkpoints.torch_zip import BFLOAT16, DTYPES, open_archive, shown, state_dict, widen
from unils_jax.errors import UserError

MAX_JSON_BYTES = 16 << 20
MAX_CONFIG_NODES = 100_000
MAX_CONFIG_DEPTH = 32
# Files of DualTalk and UniTalker are bare state dicts; so some keys of theirs begin.
DUALTALK_MARK = "joint_encoder."
UNITALKER_MARK = "decoder.learnable_style_emb"


def read_pt(path: str | os.PathLike) -> dict[str, Any]:
    """A release checkpoint: {"model": {torch key: array}, "meta_cfg": plain dict}; other entries are left out. A bare
    state dict of DualTalk or UniTalker has the JSON beside it for `meta_cfg`, an empty one where there is none.

    Arrays keep their dtype (bfloat16 becomes float32) and are read-only; tied tensors share memory. Nothing that the
    file names is imported or run. Raises UserError for a missing, truncated, damaged, legacy or TorchScript file, a
    global outside `ALLOWED_GLOBALS`, a tensor that leaves its storage, and a layout other than the release's.
    """
    path = Path(path)
    with open_archive(path) as archive:
        top = archive.load()
        if _is_bare(top):
            return {"model": state_dict(archive, top), "meta_cfg": _config_beside(path)}
        lacking = [name for name in ("model", "meta_cfg") if not (isinstance(top, dict) and name in top)]
        if lacking:
            raise UserError(
                f"{path} lacks {' and '.join(lacking)}: a release checkpoint holds model (the state dict) and meta_cfg "
                "(the config tree); use the file as the release saves it"
            )
        return {
            "model": state_dict(archive, top["model"]),
            "meta_cfg": _plain(top["meta_cfg"], f"{path}: meta_cfg", [0]),
        }


def _is_bare(top: Any) -> bool:
    return isinstance(top, dict) and any(
        type(key) is str and key.startswith((DUALTALK_MARK, UNITALKER_MARK)) for key in top
    )


def _config_beside(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    return _read_json(beside, f"the config of {path.name}") if beside.exists() else {}


def _plain(value: Any, name: str, seen: list[int], depth: int = 0) -> Any:
    """A copy of a config tree made of dict, list, str, int, float, bool and None; UserError for anything else."""
    seen[0] += 1
    if seen[0] > MAX_CONFIG_NODES or depth > MAX_CONFIG_DEPTH:
        raise UserError(f"{shown(name)} is nested too deeply or too large; use the config as published")
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            raise UserError(f"{shown(name)} has keys that are not text; use the config as published")
        return {key: _plain(item, f"{name}.{key}", seen, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item, f"{name}[{i}]", seen, depth + 1) for i, item in enumerate(value)]
    if value is None or type(value) in (str, float, bool) or (type(value) is int and abs(value) < 1 << 63):
        return value
    raise UserError(f"{shown(name)} is a {type(value).__name__}; a config holds text, numbers, lists and dicts only")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is over {MAX_JSON_BYTES} bytes; a config is far smaller")
        tree = json.loads(path.read_text("utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it must hold {name}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({shown(error)}); it must hold {name}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold {name}, got a {type(tree).__name__}")
    return _plain(tree, str(path), [0])


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a .safetensors file by its key, bfloat16 as float32. Raises UserError for a broken file."""
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file; check the path")
    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({shown(error)}); get a fresh copy") from None
    wrong = [f"{shown(key)} ({array.dtype})" for key, array in tensors.items() if array.dtype.name not in DTYPES]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong[:10])} must be of one of {sorted(DTYPES)}; convert them to float32")
    return {key: widen(array) if array.dtype.name == BFLOAT16 else array for key, array in tensors.items()}


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The same as `read_pt` from `X.safetensors`, whose `meta_cfg` stands as JSON in `X.json` beside it.

    Raises UserError, naming the file, where either is missing or broken.
    """
    path = Path(path)
    model = read_tensors(path)
    if _is_bare(model):
        return {"model": model, "meta_cfg": _config_beside(path)}
    meta_cfg = _read_json(path.with_suffix(".json"), f"the meta_cfg of {path.name} (the release's config tree)")
    return {"model": model, "meta_cfg": meta_cfg}


# What transformers takes for a field that config.json leaves out.
WAV2VEC2_DEFAULTS: dict[str, Any] = {
    "model_type": None,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "layer_norm_eps": 1e-5,
}
WAVLM_DEFAULTS: dict[str, Any] = {**WAV2VEC2_DEFAULTS, "num_buckets": 320, "max_bucket_distance": 800}
_COMMON = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
}
# What is built here of each model type: wav2vec2 with stable layer norm, WavLM's base family; and one to use.
_FAMILIES = {
    "wav2vec2": (
        WAV2VEC2_DEFAULTS,
        {"model_type": "wav2vec2", "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
        | _COMMON,
        "wav2vec2 of the stable-layer-norm family, for example facebook/wav2vec2-xls-r-300m",
    ),
    "wavlm": (
        WAVLM_DEFAULTS,
        {"model_type": "wavlm", "do_stable_layer_norm": False, "feat_extract_norm": "group", "conv_bias": False}
        | _COMMON,
        "WavLM of the base family, for example microsoft/wavlm-base-plus",
    ),
}


def read_transformers_folder(
    path: str | os.PathLike, family: str = "wav2vec2"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, state dict) of a wav2vec2 or WavLM folder as transformers' `save_pretrained` writes it.

    The config holds every field of `WAV2VEC2_DEFAULTS`, or `WAVLM_DEFAULTS`, checked. The weights come from
    `model.safetensors`, from the files that `model.safetensors.index.json` lists, or from a `pytorch_model.bin` (read
    like a `.pt`). Keys are as in the file; see `torch_keys.to_paths`. Raises UserError naming a missing file, or every
    field that is not of the family that is built here.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; name one with config.json and model.safetensors as transformers saves"
        )
    defaults, required, remedy = _FAMILIES[family]
    config = {**defaults, **_read_json(path / "config.json", f"the config of a {family} model")}
    problems = [
        f"{name} must be {json.dumps(value)}, got {shown(json.dumps(config[name]))}"
        for name, value in required.items()
        if json.dumps(config[name]) != json.dumps(value)
    ] + _size_problems(config)
    if problems:
        raise UserError(f"{path / 'config.json'}: {'; '.join(problems)}. Use a {remedy}")
    return config, _folder_weights(path)


def _size_problems(config: Mapping[str, Any]) -> list[str]:
    counts = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    counts += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
    counts += tuple(name for name in ("num_buckets", "max_bucket_distance") if name in config)
    problems = [
        f"{name} must be a positive whole number, got {shown(config[name])}"
        for name in counts
        if not _count(config[name])
    ]
    convs = [config[name] for name in ("conv_dim", "conv_kernel", "conv_stride")]
    if not all(type(conv) is list and conv and all(map(_count, conv)) for conv in convs):
        problems.append("conv_dim, conv_kernel and conv_stride must be lists of positive whole numbers")
    elif len({len(conv) for conv in convs}) != 1:
        problems.append(f"conv_dim, conv_kernel and conv_stride must be of one length, got {[len(c) for c in convs]}")
    eps = config["layer_norm_eps"]
    if type(eps) is not float or not 0 < eps < 1:
        problems.append(f"layer_norm_eps must be a small positive number, got {shown(eps)}")
    if not problems:
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if config["hidden_size"] % config[name]:
                problems.append(f"hidden_size {config['hidden_size']} must be a multiple of {name} {config[name]}")
    return problems


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _folder_weights(path: Path) -> dict[str, np.ndarray]:
    single, index, pickled = (
        path / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.is_file():
        return read_tensors(single)
    if index.is_file():
        listed = _read_json(index, "the list of weight files").get("weight_map")
        names = sorted(set(listed.values())) if isinstance(listed, dict) else []
        if not names or not all(type(name) is str and Path(name).name == name for name in names):
            raise UserError(f"{index} must hold weight_map, key -> file in the same folder; get a fresh copy")
        return {key: array for name in names for key, array in read_tensors(path / name).items()}
    if pickled.is_file():
        with open_archive(pickled) as archive:
            return state_dict(archive, archive.load())
    raise UserError(
        f"{path} holds no model.safetensors; fetch it with the config, or write both with transformers: "
        "Wav2Vec2Model.from_pretrained(...).save_pretrained(folder)"
    )
