"""Published audio encoders: a hub name or a transformers folder in, config and parameters out."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unils_jax.checkpoints.checkpoint import check_sizes
from unils_jax.checkpoints.mimi_files import encoder_tensors, mimi_config
from unils_jax.checkpoints.torch_files import read_json, read_tensors
from unils_jax.checkpoints.torch_keys import check_params, to_paths
from unils_jax.errors import UserError
from unils_jax.models.encoder_noise import EncoderRates
from unils_jax.models.mimi import Mimi, MimiConfig
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.models.wavlm import WavLM, WavLMConfig
from unils_jax.nn.params import Params, abstract, as_float32
from unils_jax.pickles.torch_zip import open_archive, shown, state_dict
from unils_jax.systems.unils.system import DEFAULT_ENCODER

EncoderSizes = Wav2Vec2Config | WavLMConfig | MimiConfig


def load_audio_encoder(name_or_folder: str, family: str = "wav2vec2") -> tuple[EncoderSizes, Params]:
    """Loads sizes and parameters (paths under `audio_encoder/`) of a published audio encoder.

    It is a wav2vec2 of the stable-layer-norm family, with family `wavlm` a WavLM of the base
    family, or with family `mimi` the encoder of a Mimi.
    """
    folder = Path(name_or_folder)
    if not folder.exists():
        folder = _fetch(name_or_folder)
    if family == "mimi":
        return _load_mimi(folder)
    fields, state = read_transformers_folder(folder, family)
    sizes = {
        "width": fields["hidden_size"],
        "depth": fields["num_hidden_layers"],
        "num_heads": fields["num_attention_heads"],
        "hidden_dim": fields["intermediate_size"],
        "conv_dims": tuple(fields["conv_dim"]),
        "conv_kernels": tuple(fields["conv_kernel"]),
        "conv_strides": tuple(fields["conv_stride"]),
        "pos_conv_kernel": fields["num_conv_pos_embeddings"],
        "pos_conv_groups": fields["num_conv_pos_embedding_groups"],
        "norm_eps": float(fields["layer_norm_eps"]),
    }
    if family == "wavlm":
        buckets, distance = fields["num_buckets"], fields["max_bucket_distance"]
        config = WavLMConfig(**sizes, num_buckets=buckets, max_distance=distance)
    else:
        config = Wav2Vec2Config(**sizes)
    check_sizes(config, len(state), str(folder))
    build = WavLM if family == "wavlm" else Wav2Vec2
    _, shapes = abstract(lambda rngs: build(config, EncoderRates(), rngs=rngs))
    params = to_paths(state, "audio_encoder")
    # Used in pre-training only; files saved for inference may lack it.
    params.setdefault("audio_encoder/masked_spec_embed", np.zeros(config.width, np.float32))
    check_params({f"audio_encoder/{path}": tuple(s.shape) for path, s in shapes.items()}, params, str(folder))
    return config, as_float32(params)


def _load_mimi(folder: Path) -> tuple[MimiConfig, Params]:
    _check_folder(folder)
    config = mimi_config(read_json(folder / "config.json", "the config of a mimi model"), folder / "config.json")
    state = encoder_tensors(_folder_weights(folder))
    check_sizes(config, len(state), str(folder))
    _, shapes = abstract(lambda rngs: Mimi(config, rngs=rngs))
    params = to_paths(state, "audio_encoder")
    check_params({f"audio_encoder/{path}": tuple(s.shape) for path, s in shapes.items()}, params, str(folder))
    return config, as_float32(params)


def _fetch(name: str) -> Path:
    """Returns a model's folder in the hub's local cache, fetched where there is a network."""
    # The hub's client imports an HTTP stack that only fetching needs.
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (see above)
    from huggingface_hub.errors import (  # noqa: PLC0415 (see above)
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors*", "pytorch_model.bin"]))
    except HFValidationError:
        raise UserError(f"audio encoder {name!r} is neither a folder nor a hub name like {DEFAULT_ENCODER}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"audio encoder {name!r} is no folder here and could not be fetched ({type(error).__name__}); fetch it "
            f"where there is a network with `hf download {name}`, or give its folder"
        ) from None


# What config.json of both families may leave out but not have otherwise: only this is built.
_COMMON = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
}

# What transformers takes for a field that config.json leaves out.
WAV2VEC2_DEFAULTS: dict[str, Any] = {
    "model_type": None,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
    **_COMMON,
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


# By model type: the defaults, the fields that what is built here requires (wav2vec2 with stable
# layer norm, WavLM's base family), and a model to use.
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
    """Reads (config, state dict) of a wav2vec2 or WavLM folder of transformers' `save_pretrained`.

    The config holds every field of `WAV2VEC2_DEFAULTS`, or `WAVLM_DEFAULTS`, checked. The weights
    come from `model.safetensors`, from the files that `model.safetensors.index.json` lists, or from
    a `pytorch_model.bin` (read like a `.pt`). Keys are as in the file; see `torch_keys.to_paths`.
    Raises UserError naming a missing file, or every field that is not of the family that is built
    here.
    """
    path = Path(path)
    _check_folder(path)
    defaults, required, remedy = _FAMILIES[family]
    config = {**defaults, **read_json(path / "config.json", f"the config of a {family} model")}
    problems = [
        f"{name} must be {json.dumps(value)}, got {shown(json.dumps(config[name]))}"
        for name, value in required.items()
        if json.dumps(config[name]) != json.dumps(value)
    ] + _size_problems(config)
    if problems:
        raise UserError(f"{path / 'config.json'}: {'; '.join(problems)}. Use a {remedy}")
    return config, _folder_weights(path)


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; name one with config.json and model.safetensors as transformers saves"
        )


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


def _count(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _folder_weights(path: Path) -> dict[str, np.ndarray]:
    single, index, pickled = (
        path / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.is_file():
        return read_tensors(single)
    if index.is_file():
        listed = read_json(index, "the list of weight files").get("weight_map")
        names = list(listed.values()) if isinstance(listed, dict) else []
        if not names or not all(type(name) is str and Path(name).name == name for name in names):
            raise UserError(f"{index} must hold weight_map, key -> file in the same folder; get a fresh copy")
        return {key: array for name in sorted(set(names)) for key, array in read_tensors(path / name).items()}
    if pickled.is_file():
        with open_archive(pickled) as archive:
            return state_dict(archive, archive.load())
    raise UserError(
        f"{path} holds no model.safetensors; fetch it with the config, or write both with transformers: "
        "Wav2Vec2Model.from_pretrained(...).save_pretrained(folder)"
    )
