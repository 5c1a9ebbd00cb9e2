"""Any checkpoint -> a model: a workdir of ours, one step's folder, a release .pt, a .safetensors with its JSON."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import ModelConfig, UniLS
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.lora import merge_lora
from unils_jax.nn.params import Params, abstract, merge
from unils_jax.torch_files import read_pt, read_safetensors, read_transformers_folder
from unils_jax.torch_keys import check_params, model_sizes, to_paths

log = logging.getLogger(__name__)

DEFAULT_ENCODER = "facebook/wav2vec2-xls-r-300m"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: LoRA merged, averaged weights, everything float32.

    `params` lack the audio encoder's where it is a published one and was not given.
    """

    config: ModelConfig
    params: Params
    expression_basis: str
    source: dict[str, Any]

    @cached_property
    def model(self) -> UniLS:
        """The module. Raises UserError where the audio encoder's weights are needed and were not given."""
        graphdef, shapes = abstract(lambda rngs: UniLS(self.config, rngs=rngs))
        if any(path not in self.params for path in shapes if path.startswith("audio_encoder/")):
            raise UserError(_encoder_needed(self.source["checkpoint"]))
        return merge(graphdef, {path: jnp.asarray(self.params[path]) for path in shapes})


def load(path: str | os.PathLike, *, audio_encoder: str | None = None, stage: str | None = None) -> Checkpoint:
    """Reads a checkpoint; `audio_encoder` is a transformers folder or a hub name of wav2vec2.

    Raises UserError where the path is none of the known kinds or damaged, where keys or shapes do not fit (all named
    at once), and where the checkpoint is not of `stage`.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; give a workdir, a step's folder, a .pt or a .safetensors")
    if path.is_dir():
        checkpoint = _load_ours(path)
    elif path.suffix == ".safetensors":
        checkpoint = _from_release(path, read_safetensors(path), audio_encoder)
    else:
        checkpoint = _from_release(path, read_pt(path), audio_encoder)
    if stage is not None and checkpoint.config.stage != stage:
        raise UserError(
            f"{path} is a checkpoint of the {checkpoint.config.stage} stage, a {stage} is needed; "
            f"give the {stage} stage's workdir or file"
        )
    if path.is_dir() and audio_encoder and checkpoint.config.wav2vec2 is not None:
        encoder, params = load_audio_encoder(audio_encoder)
        config = replace(checkpoint.config, wav2vec2=encoder)
        checkpoint = replace(checkpoint, config=config, params={**checkpoint.params, **params})
    return checkpoint


def load_audio_encoder(name_or_folder: str) -> tuple[Wav2Vec2Config, Params]:
    """Sizes and parameters (paths under `audio_encoder/`) of a wav2vec2 of the stable-layer-norm family."""
    folder = Path(name_or_folder)
    if not folder.exists():
        folder = _fetch(name_or_folder)
    fields, state = read_transformers_folder(folder)
    config = Wav2Vec2Config(
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        hidden_dim=fields["intermediate_size"],
        conv_dims=tuple(fields["conv_dim"]),
        conv_kernels=tuple(fields["conv_kernel"]),
        conv_strides=tuple(fields["conv_stride"]),
        pos_conv_kernel=fields["num_conv_pos_embeddings"],
        pos_conv_groups=fields["num_conv_pos_embedding_groups"],
        norm_eps=float(fields["layer_norm_eps"]),
    )
    model = ModelConfig(prior=PriorConfig(32, 1, 1, config.width), wav2vec2=config)
    expected = {p: s for p, s in _shapes(model).items() if p.startswith("audio_encoder/")}
    params = to_paths(state, "audio_encoder")
    # Used in wav2vec2's pre-training only; files saved for inference may lack it.
    params.setdefault("audio_encoder/masked_spec_embed", np.zeros(config.width, np.float32))
    check_params(expected, params, str(folder))
    return config, _float32(params)


def _fetch(name: str) -> Path:
    """A model's folder in the hub's local cache, fetched where there is a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors*", "pytorch_model.bin"]))
    except HFValidationError:
        raise UserError(f"audio encoder {name!r} is neither a folder nor a hub name like {DEFAULT_ENCODER}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"audio encoder {name!r} is no folder here and could not be fetched ({type(error).__name__}); fetch it "
            f"where there is a network with `hf download {name}`, or give its folder"
        ) from None


def _load_ours(path: Path) -> Checkpoint:
    step_folder = _newest_step(path)
    meta = _read_meta(step_folder)
    run = meta["config"]
    config = from_dict(ModelConfig, run["model"], "model")
    expected = {p: s for p, s in _shapes(config).items() if not p.startswith("audio_encoder/")}
    restored: Params = {}
    with ocp.StandardCheckpointer() as reader:
        for item in ("ema", "frozen"):
            folder = step_folder.absolute() / item
            try:
                saved = reader.metadata(folder).item_metadata.tree
                target = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in saved.items()}
                restored |= reader.restore(folder, target)
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                raise UserError(f"checkpoint {step_folder} is incomplete or damaged at {item!r}: {text}") from None
    check_params(expected, restored, str(step_folder))
    if config.lora is not None:
        restored = merge_lora(restored, config.lora.alpha / config.lora.rank)
        config = replace(config, lora=None)
    source = {"checkpoint": str(path), "step": meta["step"], "stage": config.stage}
    return Checkpoint(config, restored, run["expression_basis"], source)


def _newest_step(path: Path) -> Path:
    if (path / "meta").is_dir():
        return path
    steps = [entry for entry in (path / "checkpoints").glob("*") if entry.name.isdigit() and (entry / "meta").is_dir()]
    if not steps:
        raise UserError(f"{path} holds no checkpoint; give a workdir of `unils train` after its first save")
    return max(steps, key=lambda entry: int(entry.name))


def _read_meta(step_folder: Path) -> Mapping[str, Any]:
    try:
        return json.loads((step_folder / "meta" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {step_folder} is incomplete or damaged at 'meta': {error}") from None


def _from_release(path: Path, contents: dict[str, Any], audio_encoder: str | None) -> Checkpoint:
    state = contents["model"]
    sizes = model_sizes(contents["meta_cfg"], state)
    prior = None
    if sizes["prior"] is not None:
        prior = PriorConfig(**sizes["prior"], audio_dim=sizes["audio_width"])
    config = ModelConfig(CodecConfig(**sizes["codec"]), prior)
    params = to_paths(state, config.stage)
    check_params({p: s for p, s in _shapes(config).items()}, params, str(path))
    params = _float32(params)
    if config.stage == "dialogue":
        if audio_encoder:
            encoder, encoder_params = load_audio_encoder(audio_encoder)
            config, params = replace(config, wav2vec2=encoder), params | encoder_params
        else:
            # The release's encoder; its weights are not in the file, and `model` says so when they are missed.
            config = replace(config, wav2vec2=Wav2Vec2Config(width=prior.audio_dim))
    source = {"checkpoint": str(path), "stage": config.stage}
    return Checkpoint(config, params, "flame", source)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    _, shapes = abstract(lambda rngs: UniLS(config, rngs=rngs))
    return {path: tuple(shape.shape) for path, shape in shapes.items()}


def _float32(params: Mapping[str, np.ndarray]) -> Params:
    return {path: np.asarray(value, np.float32) for path, value in params.items()}


def _encoder_needed(source: str) -> str:
    return (
        f"{source} needs its audio encoder, {DEFAULT_ENCODER}; give --audio_encoder {DEFAULT_ENCODER} where there is "
        f"a network, or the folder that `hf download {DEFAULT_ENCODER} --local-dir DIR` wrote"
    )


