"""The twin's audio encoder: wav2vec2 of the stable-layer-norm family in PyTorch, with transformers' key names.

Apart from `torch_twin` for its length only. Source: wav2vec2 2.0 / XLS-R as transformers names and computes it; no
attention mask, no spec-augment, no dropout: it is frozen.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from unils_jax.checkpoints.audio_encoders import read_transformers_folder
from unils_jax.checkpoints.torch_keys import to_paths, to_torch
from unils_jax.errors import UserError


class ConvLayer(nn.Module):
    """A strided convolution, LayerNorm over channels, exact GELU; channels first in and out."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel, stride)
        self.layer_norm = nn.LayerNorm(out_dim)  # 1e-5, whatever the config says for the other norms

    def forward(self, x: Float[Tensor, "B I N"]) -> Float[Tensor, "B O n"]:
        return F.gelu(self.layer_norm(self.conv(x).mT).mT)


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, num_heads: int, hidden_dim: int, eps: float):
        super().__init__()
        self.attention = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        self.layer_norm = nn.LayerNorm(width, eps)
        self.feed_forward = nn.ModuleDict(
            {"intermediate_dense": nn.Linear(width, hidden_dim), "output_dense": nn.Linear(hidden_dim, width)}
        )
        self.final_layer_norm = nn.LayerNorm(width, eps)
        self.num_heads = num_heads

    def forward(self, x: Float[Tensor, "B A E"]) -> Float[Tensor, "B A E"]:
        h = self.layer_norm(x)
        projected = (self.attention[f"{name}_proj"](h) for name in "qkv")
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attention["out_proj"](attended)
        h = F.gelu(self.feed_forward["intermediate_dense"](self.final_layer_norm(x)))
        return x + self.feed_forward["output_dense"](h)


class TwinWav2Vec2(nn.Module):
    """Audio [B, N] at 16 kHz, each window normalised by its own statistics, to features [B, A, E]; 4 s give A = 199.

    `config` holds the fields of a transformers config.json, as `read_transformers_folder` returns them.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, eps, taps = config["hidden_size"], config["layer_norm_eps"], config["num_conv_pos_embeddings"]
        dims = config["conv_dim"]
        sizes = zip([1, *dims[:-1]], dims, config["conv_kernel"], config["conv_stride"], strict=True)
        self.masked_spec_embed = nn.Parameter(torch.rand(width))  # of the published file; used in its pre-training only
        self.feature_extractor = nn.Module()
        self.feature_extractor.conv_layers = nn.ModuleList(ConvLayer(*size) for size in sizes)
        self.feature_projection = nn.Module()
        self.feature_projection.layer_norm = nn.LayerNorm(dims[-1], eps)
        self.feature_projection.projection = nn.Linear(dims[-1], width)
        self.encoder = nn.Module()
        groups = config["num_conv_pos_embedding_groups"]
        conv = nn.Conv1d(width, width, taps, padding=taps // 2, groups=groups)
        self.encoder.pos_conv_embed = nn.ModuleDict({"conv": weight_norm(conv, dim=2)})
        self.encoder.layers = nn.ModuleList(
            EncoderLayer(width, config["num_attention_heads"], config["intermediate_size"], eps)
            for _ in range(config["num_hidden_layers"])
        )
        self.encoder.layer_norm = nn.LayerNorm(width, eps)
        self.feature_dim = width
        self.requires_grad_(False)

    def forward(self, audio: Float[Tensor, "B N"]) -> Float[Tensor, "B A E"]:
        x = (audio - audio.mean(-1, keepdim=True)) / (audio.std(-1, keepdim=True) + 1e-6)
        x = x[:, None]
        for layer in self.feature_extractor.conv_layers:
            x = layer(x)
        x = self.feature_projection.projection(self.feature_projection.layer_norm(x.mT))
        # An even kernel gives one frame too many.
        x = x + F.gelu(self.encoder.pos_conv_embed["conv"](x.mT)[..., : x.shape[1]].mT)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.encoder.layer_norm(x)


def load_wav2vec2(folder: str | os.PathLike) -> TwinWav2Vec2:
    """The encoder of a transformers folder (config.json and weights), in either naming of keys.

    Raises UserError for a missing or damaged file, another family, and keys or shapes that do not fit.
    """
    config, state = read_transformers_folder(folder)
    # Through our table and back: prefixes go, the old naming of the weight norm becomes the new one.
    params = to_paths(state, "audio_encoder")
    params.setdefault("audio_encoder/masked_spec_embed", np.zeros(config["hidden_size"], np.float32))
    unknown = [path.removeprefix("unknown/") for path in params if path.startswith("unknown/")]
    if unknown:
        raise UserError(f"{folder} holds keys that no wav2vec2 has: {', '.join(unknown[:10])}; use the published file")
    model = TwinWav2Vec2(config)
    load_strictly(model, to_torch(params, "audio_encoder"), str(folder))
    return model


def load_strictly(model: nn.Module, state: Mapping[str, np.ndarray], source: str) -> None:
    """`load_state_dict(strict=True)` of NumPy arrays, copied; a misfit is a UserError of one line."""
    try:
        model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        text = "".join(c if c.isprintable() else "?" for c in text)[:400]
        raise UserError(f"{source} does not fit the model its config describes: {text}") from None
