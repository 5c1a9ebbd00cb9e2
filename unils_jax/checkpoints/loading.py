"""Loading of any checkpoint as a model.

It is a workdir of ours, one step's folder, a release .pt, or a .safetensors with its JSON.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from unils_jax.checkpoints.adapters import find_adapter
from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.buckets import fetch
from unils_jax.checkpoints.checkpoint import Checkpoint, param_shapes
from unils_jax.checkpoints.torch_files import read_pt, read_safetensors
from unils_jax.checkpoints.torch_keys import check_params, to_paths, unwrapped
from unils_jax.checkpoints.workdir import _load_ours
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.files import is_remote
from unils_jax.inference.sampling import Sampling
from unils_jax.motion import BASES
from unils_jax.nn.params import as_float32
from unils_jax.runtime import expand_home, refuse_url
from unils_jax.systems.registry import system_of_keys

PRETRAINED = Path(__file__).parent / "pretrained"


def load(
    path: str | os.PathLike | None = None,
    *,
    audio_encoder: str | None = None,
    stage: str | tuple[str, ...] | None = None,
    adapter: str | os.PathLike | None = None,
    merge: bool = True,
    raw: bool = False,
) -> Checkpoint:
    """Reads a checkpoint.

    Raises UserError where the path is none of the known kinds or damaged, where keys or shapes do
    not fit (all named at once), and where the checkpoint is not of `stage`.

    Args:
        path: A workdir, the folder of a step, a .pt or a .safetensors, or the URL of one; None is
            the package's demo model.
        audio_encoder: A transformers folder or a hub name, for models whose own files leave it out.
        stage: The kind of model that is needed, or several kinds; None takes any.
        adapter: A .safetensors, or a name in the checkpoint's folder `adapters`, that makes a
            dialogue of a base; None adds nothing.
        merge: False leaves adapters apart from the kernels.
        raw: True takes a workdir's weights of the last step instead of the averaged ones.
    """
    if path is not None and is_remote(path):
        given = {"audio_encoder": audio_encoder, "stage": stage, "adapter": adapter, "merge": merge, "raw": raw}
        checkpoint = load(fetch(os.fspath(path), "params" if raw else "ema"), **given)
        return replace(checkpoint, source={**checkpoint.source, "checkpoint": os.fspath(path)})
    if path is not None:
        refuse_url(path, "checkpoint")
    path = pretrained() if path is None else Path(expand_home(os.fspath(path)))
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; give a workdir, a step's folder, a .pt or a .safetensors")
    if path.is_dir():
        checkpoint = _load_ours(path, "params" if raw else "ema")
    elif raw:
        raise UserError(f"{path} holds one set of weights; those without averaging are in a workdir only")
    else:
        contents = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
        checkpoint = _from_file(path, contents)
    if adapter is not None:
        checkpoint = checkpoint.with_adapter(find_adapter(path, adapter), merge=merge)
    elif merge:
        checkpoint = checkpoint.merged()
    wanted = (stage,) if isinstance(stage, str) else stage
    if wanted and checkpoint.config.stage not in wanted:
        stage = " or ".join(wanted)
        raise UserError(
            f"{path} is a checkpoint of the {checkpoint.config.stage} stage, a {stage} is needed; "
            f"give the {stage} stage's workdir or file"
        )
    published = checkpoint.system.encoder
    if audio_encoder and published is not None and published.needed(checkpoint.config):
        encoder, params = load_audio_encoder(audio_encoder, published.family(checkpoint.config))
        config = published.put(checkpoint.config, encoder)
        checkpoint = replace(checkpoint, config=config, params={**checkpoint.params, **params})
    return checkpoint


def pretrained(name: str = "model") -> Path:
    """Returns the path of one of this package's demo models.

    "model" has windows of 4 s, "live" of 0.4 s; both were trained on synthetic conversations, with
    an ear and the stand-in basis. Raises UserError where this copy of the package was installed
    without it.
    """
    path = PRETRAINED / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"this copy of unils_jax holds no demo model ({path} is missing); give --checkpoint, or make the "
            "model with `make pretrained`"
        )
    return path


def _from_file(path: Path, contents: dict[str, Any]) -> Checkpoint:
    """Reads the checkpoint of a torch state dict and its config tree."""
    state, tree = unwrapped(contents["model"]), contents["meta_cfg"]
    basis = tree.get("EXPRESSION_BASIS", "flame")  # our addition, as is LOGMEL; the releases know FLAME only
    if basis not in BASES:
        raise UserError(f"{path}: meta_cfg.EXPRESSION_BASIS must be one of {', '.join(BASES)}, got {basis!r:.40}")
    system = system_of_keys(state)
    config = system.layout.config_of(state, tree, str(path))
    params = to_paths(state, config.stage)
    optional = system.layout.optional
    shapes = param_shapes(system, config, len(state), str(path))
    expected = {p: shape for p, shape in shapes.items() if p in params or not p.startswith(optional)}
    check_params(expected, params, str(path))
    source = {"checkpoint": str(path), "stage": config.stage}
    meta_cfg = None if system.layout.bare else tree
    sampling = from_dict(Sampling, tree.get("SAMPLING", {}), f"{path}: meta_cfg.SAMPLING")
    return Checkpoint(config, as_float32(params), basis, source, meta_cfg=meta_cfg, sampling=sampling)
