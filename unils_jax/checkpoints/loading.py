"""Any checkpoint -> a model: a workdir of ours, one step's folder, a release .pt, a .safetensors with its JSON."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unils_jax.checkpoints.adapters import find_adapter
from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.checkpoint import PCA, Checkpoint, _shapes
from unils_jax.checkpoints.torch_files import read_pt, read_safetensors
from unils_jax.checkpoints.torch_keys import check_params, to_paths
from unils_jax.checkpoints.workdir import _load_ours
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import ModelConfig
from unils_jax.motion import BASES
from unils_jax.nn.params import as_float32
from unils_jax.systems.dualtalk.layout import dualtalk_config, is_dualtalk
from unils_jax.systems.unils.layout import model_sizes
from unils_jax.systems.unitalker.layout import is_unitalker, unitalker_config

log = logging.getLogger(__name__)

PRETRAINED = Path(__file__).parent / "pretrained" / "model.safetensors"


def load(
    path: str | os.PathLike,
    *,
    audio_encoder: str | None = None,
    stage: str | tuple[str, ...] | None = None,
    adapter: str | os.PathLike | None = None,
    merge: bool = True,
    raw: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; `audio_encoder` is a transformers folder or a hub name of wav2vec2.

    `adapter` (a .safetensors, or a name in the checkpoint's folder `adapters`) makes a dialogue of a base. LoRA is
    merged unless `merge` is False. A workdir's averaged weights are taken, with `raw` the ones without averaging.
    Raises UserError where the path is none of the known kinds or damaged, where keys or shapes do not fit (all named
    at once), and where the checkpoint is not of `stage` (or of one of them).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; give a workdir, a step's folder, a .pt or a .safetensors")
    if path.is_dir():
        checkpoint = _load_ours(path, "params" if raw else "ema")
    elif raw:
        raise UserError(f"{path} holds one set of weights; those without averaging are in a workdir only")
    else:
        contents = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
        checkpoint = _from_release(path, contents)
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
    if audio_encoder and checkpoint.config.stage == "dialogue" and checkpoint.config.logmel is None:
        encoder, params = load_audio_encoder(audio_encoder)
        config = replace(checkpoint.config, wav2vec2=encoder)
        checkpoint = replace(checkpoint, config=config, params={**checkpoint.params, **params})
    return checkpoint


def pretrained() -> Path:
    """The demo model of this package: trained on synthetic conversations, log-mel front end, stand-in basis.

    Raises UserError where this copy of the package was installed without it.
    """
    if not PRETRAINED.is_file():
        raise UserError(
            f"this copy of unils_jax holds no demo model ({PRETRAINED} is missing); give --checkpoint, or make the "
            "model with `make pretrained`"
        )
    return PRETRAINED


def _from_release(path: Path, contents: dict[str, Any]) -> Checkpoint:
    state, meta_cfg = contents["model"], contents["meta_cfg"]
    basis = meta_cfg.get("EXPRESSION_BASIS", "flame")  # our addition, as is LOGMEL; the releases know FLAME only
    if basis not in BASES:
        raise UserError(f"{path}: meta_cfg.EXPRESSION_BASIS must be one of {', '.join(BASES)}, got {basis!r:.40}")
    if is_dualtalk(state):
        config = ModelConfig(codec=None, dualtalk=dualtalk_config(state, meta_cfg, str(path)))
        return _checked(path, config, state, basis, None)
    if is_unitalker(state):
        config = ModelConfig(codec=None, unitalker=unitalker_config(state, meta_cfg, str(path)))
        return _checked(path, config, state, basis, None)
    sizes = model_sizes(meta_cfg, state)
    prior = logmel = None
    if sizes["prior"] is not None:
        prior = PriorConfig(**sizes["prior"], audio_dim=sizes["audio_width"], audio_condition=sizes["audio_condition"])
    if sizes["stage"] == "dialogue" and "LOGMEL" in meta_cfg["MODEL"]:
        fields = meta_cfg["MODEL"]["LOGMEL"]
        fields = {key.lower(): value for key, value in fields.items()} if isinstance(fields, dict) else {"": fields}
        logmel = from_dict(LogMelConfig, fields, f"{path}: meta_cfg.MODEL.LOGMEL")
    return _checked(path, ModelConfig(CodecConfig(**sizes["codec"]), prior, logmel=logmel), state, basis, meta_cfg)


def _checked(
    path: Path, config: ModelConfig, state: Mapping[str, np.ndarray], basis: str, meta_cfg: dict[str, Any] | None
) -> Checkpoint:
    """The checkpoint of a torch state dict. Raises UserError where that does not fit the config."""
    params = to_paths(state, config.stage)
    expected = {p: shape for p, shape in _shapes(config).items() if p in params or not p.startswith(PCA)}
    check_params(expected, params, str(path))
    source = {"checkpoint": str(path), "stage": config.stage}
    return Checkpoint(config, as_float32(params), basis, source, meta_cfg=meta_cfg)
