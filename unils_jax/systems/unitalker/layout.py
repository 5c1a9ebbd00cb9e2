"""UniTalker's published layout: a bare state dict, and how its model is found.

The published file has no config and no PCA. Ours has both: the PCA under the release's names, which
its loading ignores or takes as they are, and a JSON next to the weights whose `MODEL.CONFIG` holds
the fields of UniTalkerConfig. Without the JSON sizes are read off the tensors; the audio encoder's
heads are then the published ones, of 64 channels, and for an annotation with a PCA whose numbers a
frame the file does not tell, the published number is taken.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.models.wavlm import WavLMConfig
from unils_jax.systems.torch_layout import (
    AUDIO_ENCODER,
    CONV,
    LEAF,
    LINEAR,
    NORM,
    WAVLM,
    WEIGHT,
    WEIGHT_NORM,
    TorchLayout,
    count_names,
    encoder_rows,
    named_config,
    named_tree,
    postnorm_rows,
    wav2vec2_sizes,
)
from unils_jax.systems.unitalker.annotations import VERTEX_LISTS
from unils_jax.systems.unitalker.model import UniTalkerConfig, periodic_positions

NAME = "UniTalker"
MARK = "decoder.learnable_style_emb"
ENCODER, HEADS = "audio_encoder", "out_head_dict"
MAX_FRAMES = 3000  # of the release's table of positions
DIMS = dict(zip(VERTEX_LISTS, (70_110, 15_069, 18_516), strict=True))  # numbers a frame of the annotations with a PCA


ROWS = (
    *encoder_rows("audio_encoder", "speech_encoder", WEIGHT_NORM, AUDIO_ENCODER + WAVLM),
    ("decoder.learnable_style_emb", "decoder/identity_embed", WEIGHT),
    ("decoder.audio_feature_map", "decoder/audio_proj", LINEAR),
    ("decoder.tcn.first_net.conv_layers.{i}.conv", "decoder/blocks/{i}/conv", CONV),
    ("decoder.tcn.first_net.conv_layers.{i}.norm", "decoder/blocks/{i}/norm", NORM),
    ("decoder.tcn.first_net.conv_layers.{i}.residual_layer.0", "decoder/blocks/{i}/residual", CONV),
    *postnorm_rows("decoder.transformer_decoder.layers.0", "decoder/layer", decoder=True),
    ("out_head_dict.{name}", "heads/{name}", LINEAR),
    ("out_head_dict.{name}.head_layer.{2i}", "heads/{name}/layers/{i}", LINEAR),
    ("pca_layer_dict.{name}.feat_to_data", "pca/{name}/components", LEAF),
    ("pca_layer_dict.{name}.data_bias", "pca/{name}/mean", LEAF),
)


def _matches(keys: Iterable[str]) -> bool:
    return any(key.startswith(MARK) for key in keys)


def _config_of(state: Mapping[str, np.ndarray], tree: Mapping[str, Any], source: str) -> UniTalkerConfig:
    shapes = {key: array.shape for key, array in state.items()}
    return named_config(
        UniTalkerConfig, NAME, tree, source, lambda: UniTalkerConfig(**_encoder(shapes), **_rest(shapes))
    )


def _json_of(config: UniTalkerConfig, expression_basis: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    return named_tree(config, NAME, expression_basis)


def position_table(config: UniTalkerConfig) -> dict[str, np.ndarray]:
    """Computes the table of positions that the transformer's state dict holds."""
    if config.decoder != "transformer":
        return {}
    frames = (MAX_FRAMES // config.period + 1) * config.period
    return {"decoder.PPE.pe": periodic_positions(frames, config.width, config.period)[None]}


def _encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the sizes of `wav2vec2`, or of `wavlm`, which has gates."""
    sizes = wav2vec2_sizes(shapes, ENCODER, (f"{ENCODER}.feature_projection.projection.weight", 0))
    table = f"{ENCODER}.encoder.layers.0.attention.rel_attn_embed.weight"
    if table not in shapes:
        return {"wav2vec2": Wav2Vec2Config(**sizes)}
    buckets, heads = shapes[table]
    return {"wavlm": WavLMConfig(**sizes | {"num_heads": heads}, num_buckets=buckets)}


def _rest(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the sizes of decoder, heads and identities."""
    annotations = tuple(dict.fromkeys(key.split(".")[1] for key in shapes if key.startswith(f"{HEADS}.")))
    deep = count_names(shapes, rf"{HEADS}\.{re.escape(annotations[0])}\.head_layer\.(\d+)\.")
    last = f"head_layer.{2 * (deep - 1)}.weight" if deep else "weight"
    outputs = [shapes[f"{HEADS}.{annotation}.{last}"][0] for annotation in annotations]
    dims, components = [], []
    for annotation, num_outputs in zip(annotations, outputs, strict=True):
        rows, dim = shapes.get(
            f"pca_layer_dict.{annotation}.feat_to_data", (num_outputs, DIMS.get(annotation, num_outputs))
        )
        dims.append(dim)
        components.append(0 if dim == num_outputs else rows)
    return {
        "annotations": annotations,
        "dims": tuple(dims),
        "components": tuple(components),
        "num_identities": shapes[f"{MARK}.weight"][0],
        "decoder": "transformer" if any("transformer_decoder." in key for key in shapes) else "conv",
        "width": shapes["decoder.audio_feature_map.weight"][0],
        "head_layers": deep or 1,
        "pca_dim": max([n for n, rows in zip(outputs, components, strict=True) if rows], default=512),
    }


LAYOUT = TorchLayout(
    rows={"unitalker": ROWS},
    matches=_matches,
    config_of=_config_of,
    json_of=_json_of,
    aliases={
        "unitalker": (
            (r"(\.encoder\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
            (r"(\.encoder\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
        )
    },
    # Tables that follow from the sizes, the PCA's components transposed, its coefficients'
    # statistics.
    derived=(".PPE.pe", ".biased_mask", ".data_to_feat", ".feat_mean", ".feat_std"),
    optional=("pca/",),
    tensors=position_table,
)
