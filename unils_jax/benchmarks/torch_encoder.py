"""The audio encoder of the PyTorch reference: transformers' wav2vec2."""

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from unils_jax.checkpoints.torch_keys import to_paths, to_torch
from unils_jax.errors import UserError

# The stable-layer-norm family, frozen: nothing is dropped or masked.
_FIXED = {
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0),
}
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "layer_norm_eps",
)


def build_encoder(fields: Mapping[str, object]) -> nn.Module:
    """Returns transformers' `Wav2Vec2Model` with fresh, frozen weights.

    It maps audio [B, N] at 16 kHz, each window normalised by its own statistics, to features [B, A,
    E]; 4 s give A = 199. `fields` are those of a config.json, as `read_transformers_folder` returns
    them.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model  # noqa: PLC0415 (optional, and takes seconds)

    model = Wav2Vec2Model(Wav2Vec2Config(**{name: fields[name] for name in _SIZES}, **_FIXED))
    model.freeze_feature_encoder()  # else it asks for gradients of the audio in training mode
    model.register_forward_pre_hook(lambda _, args: (_normalised(args[0]),))
    model.register_forward_hook(lambda _, args, output: output.last_hidden_state)
    return model.requires_grad_(False)


def _normalised(audio: Tensor) -> Tensor:
    return (audio - audio.mean(-1, keepdim=True)) / (audio.std(-1, keepdim=True) + 1e-6)


def load_encoder(folder: str | os.PathLike) -> nn.Module:
    """Loads the encoder of a transformers folder, whose weights have either naming of keys.

    Raises UserError for a missing or damaged file, another family, and keys or shapes that do not
    fit.
    """
    from unils_jax.checkpoints.audio_encoders import read_transformers_folder  # noqa: PLC0415 (imports JAX)

    config, state = read_transformers_folder(folder)
    # Through our table and back: prefixes go, the old naming of the weight norm becomes the new
    # one.
    params = to_paths(state, "audio_encoder")
    params.setdefault("audio_encoder/masked_spec_embed", np.zeros(config["hidden_size"], np.float32))
    unknown = [path.removeprefix("unknown/") for path in params if path.startswith("unknown/")]
    if unknown:
        raise UserError(f"{folder} holds keys that no wav2vec2 has: {', '.join(unknown[:10])}; use the published file")
    model = build_encoder(config)
    load_strictly(model, to_torch(params, "audio_encoder"), str(folder))
    return model.eval()


def load_strictly(model: nn.Module, state: Mapping[str, np.ndarray], source: str) -> None:
    """Copies NumPy arrays into `model` by their keys. Raises UserError for any misfit."""
    try:
        model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        text = "".join(c if c.isprintable() else "?" for c in text)[:400]
        raise UserError(f"{source} does not fit the model its config describes: {text}") from None
