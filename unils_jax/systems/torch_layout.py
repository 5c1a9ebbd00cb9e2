"""How PyTorch programs name weights: the rows of the key table, and a system's layout.

A row is (torch's prefix, our prefix, kind of module); `{i}` counts, `{name}` is any name.
`checkpoints.torch_keys` reads the rows in both directions. Source: the state dicts of the releases,
transformers' names of wav2vec2, WavLM and Mimi, peft's of adapters, `torch.nn`'s of modules.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from unils_jax.config import from_dict
from unils_jax.errors import UserError

Config = TypeVar("Config")

HEAD_DIM = 64  # channels of a head of the published audio encoders, which no tensor tells

Leaf = tuple[str, str, bool]  # torch's name, our name, whether the axes are reversed
Row = tuple[str, str, tuple[Leaf, ...]]  # torch's prefix, our prefix, the leaves of such a module


@dataclass(frozen=True)
class TorchLayout:
    """The files that a system's PyTorch code reads and writes."""

    rows: Mapping[str, tuple[Row, ...]]  # the key table, by kind of model (`stage` of its config)
    matches: Callable[[Iterable[str]], bool]  # whether a state dict with these keys is of the system
    # (state dict, config tree, file's name) -> the model's config; raises UserError.
    config_of: Callable[[Mapping[str, np.ndarray], Mapping[str, Any], str], Any]
    # (the model's config, expression basis, the run's resolved config or None) -> config tree.
    json_of: Callable[[Any, str, Mapping[str, Any] | None], dict[str, Any]]
    # True: a .pt is the state dict itself, the config tree is a JSON file next to it and may be
    # missing.
    bare: bool = True
    # Other names of the same tensor, read and never written: (pattern, the table's name), by kind
    # of model.
    aliases: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    derived: tuple[str, ...] = ()  # endings of keys that are not read: they follow from sizes or serve nothing
    optional: tuple[str, ...] = ()  # beginnings of paths that a file may leave out
    # Tensors beyond the parameters, written and not read.
    tensors: Callable[[Any], dict[str, np.ndarray]] = field(default=lambda config: {})
    # What users of an exported file should know.
    warnings: Callable[[Any], list[str]] = field(default=lambda config: [])
    # Why the release's code cannot run a model, "" where it can.
    release_refuses: Callable[[Any], str] = field(default=lambda config: "")


def named_tree(config: object, name: str, expression_basis: str) -> dict[str, Any]:
    """Builds the JSON next to exported weights where the release has no config."""
    return {"MODEL": {"NAME": name, "CONFIG": asdict(config)}, "EXPRESSION_BASIS": expression_basis}


def named_config(
    kind: type[Config],
    name: str,
    tree: Mapping[str, Any],
    source: str,
    from_tensors: Callable[[], Config],
) -> Config:
    """Returns the config that `named_tree` wrote, or without one what the tensors say of the sizes.

    Raises UserError, naming `source`, where the JSON is of another model, and where there is none
    and a tensor that would tell a size is missing or of another rank.
    """
    if tree:
        model = tree.get("MODEL")
        fields = model.get("CONFIG") if isinstance(model, Mapping) and model.get("NAME") == name else None
        if not isinstance(fields, Mapping):
            raise UserError(f"{source}: the JSON beside it must hold MODEL with NAME {name!r} and CONFIG; remove it")
        try:
            return from_dict(kind, dict(fields), f"{source}: MODEL.CONFIG")
        except UserError as error:
            # What a config says of sizes that do not fit together names no file.
            text = str(error)
            raise UserError(text if text.startswith(source) else f"{source}: {text}") from None
    try:
        return from_tensors()
    except UserError:
        raise
    except (KeyError, IndexError, ValueError, ZeroDivisionError, StopIteration) as error:
        raise UserError(
            f"{source} does not tell the sizes of a {name} ({error} is missing or of another rank); use the published "
            "state dict, or put the config of the model beside it as .json"
        ) from None


def count_names(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """Counts what the pattern's group matches at the beginnings of a state dict's keys."""
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})


def wav2vec2_sizes(shapes: Mapping[str, tuple[int, ...]], encoder: str, width_of: tuple[str, int]) -> dict[str, Any]:
    """Reads the fields of a Wav2Vec2Config off the shapes of a state dict.

    `encoder` is the prefix of its keys, `width_of` the key and axis of a tensor that tells its
    width. Raises KeyError, IndexError or ValueError where a tensor is missing or of another rank.
    """
    num_convs = count_names(shapes, rf"{encoder}\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    convs = [shapes[f"{encoder}.feature_extractor.conv_layers.{i}.conv.weight"] for i in range(num_convs)]
    position = f"{encoder}.encoder.pos_conv_embed.conv"
    _, group_width, taps = shapes.get(f"{position}.weight_v") or shapes[f"{position}.parametrizations.weight.original1"]
    key, axis = width_of
    width = shapes[key][axis]
    return {
        "width": width,
        "depth": count_names(shapes, rf"{encoder}\.encoder\.layers\.(\d+)\."),
        "num_heads": max(width // HEAD_DIM, 1),
        "hidden_dim": shapes[f"{encoder}.encoder.layers.0.feed_forward.intermediate_dense.weight"][0],
        "conv_dims": tuple(shape[0] for shape in convs),
        "conv_kernels": tuple(shape[2] for shape in convs),
        "pos_conv_kernel": taps,
        "pos_conv_groups": width // group_width,
    }


# Per kind of module: (torch's name, our name, axes reversed).
LEAF = (("", "", False),)
NORM = ((".weight", "/scale", False), (".bias", "/bias", False))
PROJECTION = ((".weight", "/kernel", True),)
LINEAR = (*PROJECTION, (".bias", "/bias", False))
CONV = LINEAR
LORA = ((".lora_A.default.weight", "/lora_a", True), (".lora_B.default.weight", "/lora_b", True))
WEIGHT = ((".weight", "", False),)
KERNEL = (("", "", True),)
WEIGHT_NORM = (
    (".parametrizations.weight.original0", "/weight_g", False),
    (".parametrizations.weight.original1", "/weight_v", False),
    (".bias", "/bias", False),
)
OLD_WEIGHT_NORM = (
    (".weight_g", "/weight_g", False),
    (".weight_v", "/weight_v", False),
    (".bias", "/bias", False),
)


AUDIO_ENCODER = (
    ("masked_spec_embed", "audio_encoder/masked_spec_embed", LEAF),
    ("feature_extractor.conv_layers.{i}.conv", "audio_encoder/convs/{i}/conv", CONV),
    ("feature_extractor.conv_layers.{i}.layer_norm", "audio_encoder/convs/{i}/norm", NORM),
    ("feature_projection.layer_norm", "audio_encoder/feature_norm", NORM),
    ("feature_projection.projection", "audio_encoder/feature_proj", LINEAR),
    ("encoder.pos_conv_embed.conv", "audio_encoder/pos_conv", WEIGHT_NORM),
    ("encoder.layers.{i}.layer_norm", "audio_encoder/blocks/{i}/attn_norm", NORM),
    ("encoder.layers.{i}.attention.q_proj", "audio_encoder/blocks/{i}/attn/q", LINEAR),
    ("encoder.layers.{i}.attention.k_proj", "audio_encoder/blocks/{i}/attn/k", LINEAR),
    ("encoder.layers.{i}.attention.v_proj", "audio_encoder/blocks/{i}/attn/v", LINEAR),
    ("encoder.layers.{i}.attention.out_proj", "audio_encoder/blocks/{i}/attn/out", LINEAR),
    ("encoder.layers.{i}.final_layer_norm", "audio_encoder/blocks/{i}/mlp_norm", NORM),
    ("encoder.layers.{i}.feed_forward.intermediate_dense", "audio_encoder/blocks/{i}/up", LINEAR),
    ("encoder.layers.{i}.feed_forward.output_dense", "audio_encoder/blocks/{i}/down", LINEAR),
    ("encoder.layer_norm", "audio_encoder/final_norm", NORM),
)
# WavLM alone has these; one table serves all of its layers.
WAVLM = (
    ("encoder.layers.0.attention.rel_attn_embed", "audio_encoder/position_table", WEIGHT),
    ("encoder.layers.{i}.attention.gru_rel_pos_linear", "audio_encoder/blocks/{i}/attn/gate", LINEAR),
    ("encoder.layers.{i}.attention.gru_rel_pos_const", "audio_encoder/blocks/{i}/attn/gate_scale", LEAF),
)
# Mimi's encoder. The rest of its files is the quantisers and the decoder.
MIMI = (
    ("encoder.layers.{i}.conv", "audio_encoder/seanet/{i}", CONV),
    ("encoder.layers.{i}.block.1.conv", "audio_encoder/seanet/{i}/first", CONV),
    ("encoder.layers.{i}.block.3.conv", "audio_encoder/seanet/{i}/second", CONV),
    ("encoder_transformer.layers.{i}.input_layernorm", "audio_encoder/layers/{i}/attn_norm", NORM),
    ("encoder_transformer.layers.{i}.post_attention_layernorm", "audio_encoder/layers/{i}/mlp_norm", NORM),
    ("encoder_transformer.layers.{i}.self_attn.q_proj", "audio_encoder/layers/{i}/q", PROJECTION),
    ("encoder_transformer.layers.{i}.self_attn.k_proj", "audio_encoder/layers/{i}/k", PROJECTION),
    ("encoder_transformer.layers.{i}.self_attn.v_proj", "audio_encoder/layers/{i}/v", PROJECTION),
    ("encoder_transformer.layers.{i}.self_attn.o_proj", "audio_encoder/layers/{i}/out", PROJECTION),
    ("encoder_transformer.layers.{i}.self_attn_layer_scale.scale", "audio_encoder/layers/{i}/attn_scale", LEAF),
    ("encoder_transformer.layers.{i}.mlp_layer_scale.scale", "audio_encoder/layers/{i}/mlp_scale", LEAF),
    ("encoder_transformer.layers.{i}.mlp.fc1", "audio_encoder/layers/{i}/up", PROJECTION),
    ("encoder_transformer.layers.{i}.mlp.fc2", "audio_encoder/layers/{i}/down", PROJECTION),
    ("downsample.conv", "audio_encoder/downsample", PROJECTION),
    *(
        (f"quantizer.{kind}_residual_vector_quantizer.{name}.weight", f"audio_encoder/{kind}/{ours}", KERNEL)
        for kind in ("semantic", "acoustic")
        for name, ours in (("input_proj", "into"), ("output_proj", "back"))
    ),
)


def encoder_rows(key: str, path: str, weight_norm: tuple, rows: tuple = AUDIO_ENCODER) -> tuple:
    """Builds the rows of an audio encoder inside another model.

    `weight_norm` is the kind of its positional convolution.
    """
    return tuple(
        (f"{key}.{k}", path + p.removeprefix("audio_encoder"), weight_norm if kind == WEIGHT_NORM else kind)
        for k, p, kind in rows
    )


def attention_rows(key: str, path: str) -> tuple:
    """Builds the rows of `torch.nn.MultiheadAttention`."""
    return (
        (key, path, ((".in_proj_weight", "/in_proj/kernel", True), (".in_proj_bias", "/in_proj/bias", False))),
        (f"{key}.out_proj", f"{path}/out_proj", LINEAR),
    )


def postnorm_rows(key: str, path: str, *, decoder: bool) -> tuple:
    """Builds the rows of a layer of `torch.nn`'s encoder or decoder."""
    cross = (
        *attention_rows(f"{key}.multihead_attn", f"{path}/cross_attn"),
        (f"{key}.norm2", f"{path}/cross_norm", NORM),
    )
    return (
        *attention_rows(f"{key}.self_attn", f"{path}/self_attn"),
        (f"{key}.norm1", f"{path}/self_norm", NORM),
        *(cross if decoder else ()),
        (f"{key}.linear1", f"{path}/mlp/up", LINEAR),
        (f"{key}.linear2", f"{path}/mlp/down", LINEAR),
        (f"{key}.norm{3 if decoder else 2}", f"{path}/mlp_norm", NORM),
    )


def lstm_rows(key: str, path: str) -> tuple:
    """Builds the rows of a bidirectional `torch.nn.LSTM` of any depth."""
    ends = (("forward", ""), ("backward", "_reverse"))
    names = (("weight_ih", "input/kernel"), ("weight_hh", "state/kernel"))
    names += (("bias_ih", "input/bias"), ("bias_hh", "state/bias"))
    return tuple(
        (f"{key}.{torch_name}_l{{i}}{end}", f"{path}/{direction}/{{i}}/{name}", (("", "", name.endswith("kernel")),))
        for direction, end in ends
        for torch_name, name in names
    )


# An audio encoder alone, as transformers saves it.
ENCODER_ROWS = AUDIO_ENCODER + WAVLM + MIMI
ENCODER_ALIASES = (
    (r"^(wav2vec2|wavlm)\.", ""),
    (r"^(encoder\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
    (r"^(encoder\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
)
