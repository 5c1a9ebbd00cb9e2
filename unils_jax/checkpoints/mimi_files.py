"""Mimi as transformers saves it: its config to ours, and which of its tensors the encoder reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unils_jax.errors import UserError
from unils_jax.models.mimi import MimiConfig
from unils_jax.pickles.torch_zip import shown

REQUIRED = {
    "model_type": "mimi",
    "sampling_rate": 24_000,
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "use_conv_shortcut": False,
    "attention_bias": False,
    "hidden_act": "gelu",
}
# What transformers takes for a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    **REQUIRED,
    "model_type": None,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "num_filters": 64,
    "kernel_size": 7,
    "residual_kernel_size": 3,
    "last_kernel_size": 3,
    "num_residual_layers": 1,
    "dilation_growth_rate": 2,
    "compress": 2,
    "sliding_window": 250,
    "vector_quantization_hidden_dimension": 256,
    "norm_eps": 1e-5,
}
COUNTS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "hidden_dim",
    "num_filters": "num_filters",
    "kernel_size": "first_kernel",
    "residual_kernel_size": "residual_kernel",
    "last_kernel_size": "last_kernel",
    "num_residual_layers": "residual_blocks",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "sliding_window": "window_frames",
    "vector_quantization_hidden_dimension": "latent_dim",
}
# The decoder, and of the quantisers all but the projections.
UNREAD = ("decoder.", "decoder_transformer.", "upsample.")
MAX_COUNT = 1 << 20


def mimi_config(given: Mapping[str, Any], path: Path) -> MimiConfig:
    """Returns the sizes that a `config.json` describes.

    Raises UserError, naming `path` and every field, where it is of another model or of a Mimi that
    is not built here.
    """
    fields = {**DEFAULTS, **given}
    problems = [
        f"{name} must be {json.dumps(value)}, got {shown(json.dumps(fields[name]))}"
        for name, value in REQUIRED.items()
        if json.dumps(fields[name]) != json.dumps(value)
    ]
    problems += [
        f"{name} must be a positive whole number, got {shown(fields[name])}"
        for name in COUNTS
        if type(fields[name]) is not int or not 0 < fields[name] < MAX_COUNT
    ]
    ratios = fields.get("upsampling_ratios") or [8, 6, 5, 4]
    if type(ratios) is not list or not all(type(ratio) is int and 0 < ratio < MAX_COUNT for ratio in ratios):
        problems.append(f"upsampling_ratios must be positive whole numbers, got {shown(ratios)}")
    eps, rope = fields["norm_eps"], fields.get("rope_parameters") or {}
    theta = rope.get("rope_theta", fields.get("rope_theta", 10_000.0)) if isinstance(rope, Mapping) else None
    if type(eps) is not float or not 0 < eps < 1:
        problems.append(f"norm_eps must be a small positive number, got {shown(eps)}")
    if type(theta) not in (int, float) or not theta >= 1 or rope.get("rope_type", "default") != "default":
        problems.append(f"rope_parameters must be a theta of the default type, got {shown(rope)}")
    problems = problems or _disagreements(fields)
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}. Use a Mimi like kyutai/mimi")
    sizes = {ours: fields[name] for name, ours in COUNTS.items()}
    return MimiConfig(**sizes, ratios=tuple(ratios), rope_theta=float(theta), norm_eps=eps)


def _disagreements(fields: Mapping[str, Any]) -> list[str]:
    width, num_heads = fields["hidden_size"], fields["num_attention_heads"]
    implied = {"num_key_value_heads": num_heads, "head_dim": width // num_heads}
    problems = [
        f"{name} must be {value}, got {shown(fields[name])}"
        for name, value in implied.items()
        if fields.get(name) not in (None, value)
    ]
    if fields["vector_quantization_hidden_dimension"] == width:
        problems.append(f"vector_quantization_hidden_dimension must differ from hidden_size, got {width}")
    return problems


def encoder_tensors(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file that are not the decoder's."""
    return {key: array for key, array in state.items() if not key.startswith(UNREAD)}
