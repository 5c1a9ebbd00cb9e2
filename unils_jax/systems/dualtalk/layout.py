"""DualTalk's published layout: a bare state dict, and what its tensors and the JSON beside it say of the sizes.

The published file has no config. Ours stands as JSON beside the weights, `MODEL.CONFIG` the fields of DualTalkConfig;
without it sizes are read off the tensors, and heads are the published ones: 4, of 64 channels in the audio encoders.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.systems.dualtalk.model import DualTalkConfig
from unils_jax.systems.torch_layout import DUALTALK_MARK

NAME = "DualTalk"
ENCODER = "joint_encoder.audio_encoder1"
ENCODER_HEAD_DIM = 64


def is_dualtalk(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict has DualTalk's keys."""
    return any(key.startswith(DUALTALK_MARK) for key in state)


def config_tree(config: DualTalkConfig, expression_basis: str) -> dict[str, Any]:
    """The JSON beside exported weights."""
    return {"MODEL": {"NAME": NAME, "CONFIG": asdict(config)}, "EXPRESSION_BASIS": expression_basis}


def dualtalk_config(state: Mapping[str, np.ndarray], tree: Mapping[str, Any], source: str) -> DualTalkConfig:
    """The sizes of a file's model. Raises UserError, naming `source`, where its JSON is of another model, and where
    there is none and a tensor that would tell a size is missing or of another rank."""
    if tree:
        model = tree.get("MODEL")
        fields = model.get("CONFIG") if isinstance(model, Mapping) and model.get("NAME") == NAME else None
        if not isinstance(fields, Mapping):
            raise UserError(f"{source}: the JSON beside it must hold MODEL with NAME {NAME!r} and CONFIG; remove it")
        return from_dict(DualTalkConfig, dict(fields), f"{source}: MODEL.CONFIG")
    try:
        return _from_shapes({key: array.shape for key, array in state.items()})
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{source} does not tell the sizes of a {NAME} ({error} is missing or of another rank); use the published "
            "state dict, or put the config of the model beside it as .json"
        ) from None


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> DualTalkConfig:
    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    num_convs = count(rf"{ENCODER}\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    convs = [shapes[f"{ENCODER}.feature_extractor.conv_layers.{i}.conv.weight"] for i in range(num_convs)]
    position = f"{ENCODER}.encoder.pos_conv_embed.conv"
    _, group_width, taps = shapes.get(f"{position}.weight_v") or shapes[f"{position}.parametrizations.weight.original1"]
    width, encoder_width = shapes["joint_encoder.audio_projection.weight"]
    layer = "interaction_module.interaction_encoder.layers"
    return DualTalkConfig(
        Wav2Vec2Config(
            width=encoder_width,
            depth=count(rf"{ENCODER}\.encoder\.layers\.(\d+)\."),
            num_heads=max(encoder_width // ENCODER_HEAD_DIM, 1),
            hidden_dim=shapes[f"{ENCODER}.encoder.layers.0.feed_forward.intermediate_dense.weight"][0],
            conv_dims=tuple(shape[0] for shape in convs),
            conv_kernels=tuple(shape[2] for shape in convs),
            pos_conv_kernel=taps,
            pos_conv_groups=encoder_width // group_width,
        ),
        width=width,
        hidden_dim=shapes[f"{layer}.0.linear1.weight"][0],
        depth=count(rf"{re.escape(layer)}\.(\d+)\."),
        decoder_depth=count(r"synthesis_module\.synthesis_decoder\.layers\.(\d+)\."),
    )
