"""DualTalk's published layout: a bare state dict, and how its sizes are found.

The published file has no config. Ours is a JSON next to the weights, whose `MODEL.CONFIG` holds the
fields of DualTalkConfig. Without it sizes are read off the tensors, and heads are the published
ones: 4, of 64 channels in the audio encoders.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.systems.dualtalk.model import DualTalkConfig
from unils_jax.systems.torch_layout import (
    LINEAR,
    OLD_WEIGHT_NORM,
    TorchLayout,
    attention_rows,
    count_names,
    encoder_rows,
    lstm_rows,
    named_config,
    named_tree,
    postnorm_rows,
    wav2vec2_sizes,
)

NAME = "DualTalk"
ENCODER = "joint_encoder.audio_encoder1"


ROWS = (
    *encoder_rows("joint_encoder.audio_encoder1", "own_encoder", OLD_WEIGHT_NORM),
    *encoder_rows("joint_encoder.audio_encoder2", "partner_encoder", OLD_WEIGHT_NORM),
    ("joint_encoder.audio_projection", "audio_proj", LINEAR),
    ("joint_encoder.blendshape_encoder.0", "motion_encoder/up", LINEAR),
    ("joint_encoder.blendshape_encoder.2", "motion_encoder/out", LINEAR),
    *attention_rows("temporal_enhancer.cross_attention", "partner_attn"),
    *lstm_rows("temporal_enhancer.temporal_lstm", "partner_lstm"),
    *postnorm_rows("interaction_module.interaction_encoder.layers.{i}", "interaction/{i}", decoder=False),
    *attention_rows("interaction_module.self_attention", "fusion_attn"),
    *postnorm_rows("synthesis_module.synthesis_decoder.layers.{i}", "synthesis/{i}", decoder=True),
    ("synthesis_module.modulation_layer", "modulation", LINEAR),
    ("synthesis_module.blendshape_predictor", "head", LINEAR),
)


def _matches(keys: Iterable[str]) -> bool:
    return any(key.startswith("joint_encoder.") for key in keys)


def _config_of(state: Mapping[str, np.ndarray], tree: Mapping[str, Any], source: str) -> DualTalkConfig:
    shapes = {key: array.shape for key, array in state.items()}
    return named_config(DualTalkConfig, NAME, tree, source, lambda: _from_shapes(shapes))


def _json_of(config: DualTalkConfig, expression_basis: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    return named_tree(config, NAME, expression_basis)


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> DualTalkConfig:
    sizes = wav2vec2_sizes(shapes, ENCODER, ("joint_encoder.audio_projection.weight", 1))
    width, _ = shapes["joint_encoder.audio_projection.weight"]
    layer = "interaction_module.interaction_encoder.layers"
    return DualTalkConfig(
        Wav2Vec2Config(**sizes),
        width=width,
        hidden_dim=shapes[f"{layer}.0.linear1.weight"][0],
        depth=count_names(shapes, rf"{re.escape(layer)}\.(\d+)\."),
        decoder_depth=count_names(shapes, r"synthesis_module\.synthesis_decoder\.layers\.(\d+)\."),
    )


LAYOUT = TorchLayout(
    rows={"dualtalk": ROWS},
    matches=_matches,
    config_of=_config_of,
    json_of=_json_of,
    aliases={
        "dualtalk": (
            (r"(\.encoder\.pos_conv_embed\.conv)\.parametrizations\.weight\.original0$", r"\1.weight_g"),
            (r"(\.encoder\.pos_conv_embed\.conv)\.parametrizations\.weight\.original1$", r"\1.weight_v"),
        )
    },
)
