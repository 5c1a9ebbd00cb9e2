"""Reads weights that PyTorch programs wrote, without torch or transformers.

The sources are a release `.pt` and a `.safetensors` with its `meta_cfg` as a JSON file of the same
name. No pickled code is run (see `torch_zip`). The results are plain: arrays, and config trees of
dict, list, text, numbers and None.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from unils_jax.checkpoints.torch_keys import without_wrappers
from unils_jax.errors import UserError
from unils_jax.pickles.torch_zip import BFLOAT16, DTYPES, open_archive, shown, state_dict, widen

MAX_JSON_BYTES = 16 << 20
MAX_CONFIG_NODES = 100_000
MAX_CONFIG_DEPTH = 32


def read_pt(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a release checkpoint: {"model": {torch key: array}, "meta_cfg": plain dict}.

    Other entries are left out. The `meta_cfg` of a bare state dict is the JSON file of the same
    name, or empty where there is none. Arrays keep their dtype (bfloat16 becomes float32) and are
    read-only; tied tensors share memory. Nothing that the file names is imported or run. Raises
    UserError for a missing, truncated, damaged, legacy or TorchScript file, a global outside
    `ALLOWED_GLOBALS`, a tensor that leaves its storage, and a layout other than the release's.
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


def _is_bare(top: object) -> bool:
    from unils_jax.systems.registry import SYSTEMS  # noqa: PLC0415 (importing the readers starts no JAX)

    if not isinstance(top, dict):
        return False
    keys = [without_wrappers(key) for key in top if type(key) is str]
    return any(system.layout.bare and system.layout.matches(keys) for system in SYSTEMS.values())


def _config_beside(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    return read_json(beside, f"the config of {path.name}") if beside.exists() else {}


def _plain(value: object, name: str, seen: list[int], depth: int = 0) -> object:
    """Returns a copy of a config tree of dict, list, str, int, float, bool and None.

    Raises UserError for anything else, and for a tree that is too large or nested too deeply.
    """
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


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Reads a small JSON object, called `name` in the UserError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is over {MAX_JSON_BYTES} bytes; a config is far smaller")
        tree = json.loads(path.read_bytes())
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
    """Returns the tensors of a .safetensors file by key, bfloat16 as float32.

    Raises UserError for a broken file.
    """
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
    """Reads what `read_pt` reads from `X.safetensors`, whose `meta_cfg` is the JSON file `X.json`.

    Raises UserError, naming the file, where either is missing or broken.
    """
    path = Path(path)
    model = read_tensors(path)
    if _is_bare(model):
        return {"model": model, "meta_cfg": _config_beside(path)}
    meta_cfg = read_json(path.with_suffix(".json"), f"the meta_cfg of {path.name} (the release's config tree)")
    return {"model": model, "meta_cfg": meta_cfg}
