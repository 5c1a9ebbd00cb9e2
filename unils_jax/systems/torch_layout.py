"""The table of torch keys and parameter paths, per kind of checkpoint; `torch_keys` reads it in both directions.

A row is (torch's prefix, our prefix, kind of module); `{i}` counts, `{name}` is any name. Source: the state
dicts of the releases, transformers' names of wav2vec2 and WavLM, peft's of adapters, `torch.nn`'s of its own modules.
"""

# Per kind of module: (torch's name, our name, axes reversed).
_LEAF = (("", "", False),)
_NORM = ((".weight", "/scale", False), (".bias", "/bias", False))
_PROJECTION = ((".weight", "/kernel", True),)
_LINEAR = (*_PROJECTION, (".bias", "/bias", False))
_CONV = _LINEAR
_LORA = ((".lora_A.default.weight", "/lora_a", True), (".lora_B.default.weight", "/lora_b", True))
_WEIGHT = ((".weight", "", False),)
_WEIGHT_NORM = (
    (".parametrizations.weight.original0", "/weight_g", False),
    (".parametrizations.weight.original1", "/weight_v", False),
    (".bias", "/bias", False),
)
_OLD_WEIGHT_NORM = (
    (".weight_g", "/weight_g", False),
    (".weight_v", "/weight_v", False),
    (".bias", "/bias", False),
)


def _codec_half(half: str, inner: str, last: str) -> tuple:
    # Torch keeps attention and MLP of a block as two neighbours of one list.
    return (
        (f"{half}.inp_mapping.0", f"codec/{half}/inp", _LINEAR),
        (f"{half}.{last}", f"codec/{half}/out", _LINEAR),
        (f"{half}.{inner}.{{2i}}.norm", f"codec/{half}/blocks/{{i}}/self_attn/norm", _NORM),
        (f"{half}.{inner}.{{2i}}.to_qkv", f"codec/{half}/blocks/{{i}}/self_attn/to_qkv", _PROJECTION),
        (f"{half}.{inner}.{{2i}}.to_out", f"codec/{half}/blocks/{{i}}/self_attn/to_out", _LINEAR),
        (f"{half}.{inner}.{{2i+1}}.0", f"codec/{half}/blocks/{{i}}/mlp/up", _LINEAR),
        (f"{half}.{inner}.{{2i+1}}.2", f"codec/{half}/blocks/{{i}}/mlp/down", _LINEAR),
    )


_CODEC = (
    ("motion_mean", "codec/motion_mean", _LEAF),
    ("motion_std", "codec/motion_std", _LEAF),
    *_codec_half("encoder", "encoder_transformer", "code_mapping"),
    *_codec_half("decoder", "decoder_transformer", "out_mapping"),
)
_BASE_CODEC = tuple((f"base_codec.{key}", path, kind) for key, path, kind in _CODEC)

_PRIOR = (
    ("sos_embed", "prior/start_token", _LEAF),
    ("code_token_embed", "prior/token_embed", _LINEAR),
    ("attn_blocks.style_pos", "prior/style_embed", _LEAF),
    ("attn_blocks.prev_pos", "prior/prev_embed", _LEAF),
    ("attn_blocks.lvl_embed", "prior/scale_embed", _WEIGHT),
    ("attn_blocks.attn_blocks.{i}.self_attn.norm", "prior/blocks/{i}/self_attn/norm", _NORM),
    ("attn_blocks.attn_blocks.{i}.self_attn.to_qkv", "prior/blocks/{i}/self_attn/to_qkv", _PROJECTION),
    ("attn_blocks.attn_blocks.{i}.self_attn.to_out", "prior/blocks/{i}/self_attn/to_out", _LINEAR),
    ("attn_blocks.attn_blocks.{i}.ffn.0", "prior/blocks/{i}/mlp/norm", _NORM),
    ("attn_blocks.attn_blocks.{i}.ffn.1", "prior/blocks/{i}/mlp/up", _LINEAR),
    ("attn_blocks.attn_blocks.{i}.ffn.3", "prior/blocks/{i}/mlp/down", _LINEAR),
    ("logits_head.0", "prior/head_norm", _NORM),
    ("logits_head.1", "prior/head", _LINEAR),
)
_ADAPTED = ("token_embed", "to_qkv", "to_out", "up", "down", "head")
_PRIOR_LORA = tuple((key, path, _LORA) for key, path, _ in _PRIOR if path.rpartition("/")[2] in _ADAPTED)


def _audio_attention(torch_name: str, name: str) -> tuple:
    key, path = f"attn_blocks.attn_blocks.{{i}}.{torch_name}", f"prior/blocks/{{i}}/{name}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        (f"{key}.self_norm", f"{path}/query_norm", _NORM),
        (f"{key}.context_norm", f"{path}/audio_norm", _NORM),
        *((f"{key}.{projection}", f"{path}/{projection}", _LINEAR) for projection in projections),
    )


_AUDIO_ATTENTION = (
    ("attn_blocks.self_pos", "prior/own_audio_embed", _LEAF),
    ("attn_blocks.other_pos", "prior/other_audio_embed", _LEAF),
    *_audio_attention("self_audio_attn", "own_audio_attn"),
    *_audio_attention("other_audio_attn", "other_audio_attn"),
    # Of generators with one cross-attention: ARTalk's names.
    ("attn_blocks.audio_pos", "prior/audio_embed", _LEAF),
    *_audio_attention("audio_attn", "audio_attn"),
)

_AUDIO_ENCODER = (
    ("masked_spec_embed", "audio_encoder/masked_spec_embed", _LEAF),
    ("feature_extractor.conv_layers.{i}.conv", "audio_encoder/convs/{i}/conv", _CONV),
    ("feature_extractor.conv_layers.{i}.layer_norm", "audio_encoder/convs/{i}/norm", _NORM),
    ("feature_projection.layer_norm", "audio_encoder/feature_norm", _NORM),
    ("feature_projection.projection", "audio_encoder/feature_proj", _LINEAR),
    ("encoder.pos_conv_embed.conv", "audio_encoder/pos_conv", _WEIGHT_NORM),
    ("encoder.layers.{i}.layer_norm", "audio_encoder/blocks/{i}/attn_norm", _NORM),
    ("encoder.layers.{i}.attention.q_proj", "audio_encoder/blocks/{i}/attn/q", _LINEAR),
    ("encoder.layers.{i}.attention.k_proj", "audio_encoder/blocks/{i}/attn/k", _LINEAR),
    ("encoder.layers.{i}.attention.v_proj", "audio_encoder/blocks/{i}/attn/v", _LINEAR),
    ("encoder.layers.{i}.attention.out_proj", "audio_encoder/blocks/{i}/attn/out", _LINEAR),
    ("encoder.layers.{i}.final_layer_norm", "audio_encoder/blocks/{i}/mlp_norm", _NORM),
    ("encoder.layers.{i}.feed_forward.intermediate_dense", "audio_encoder/blocks/{i}/up", _LINEAR),
    ("encoder.layers.{i}.feed_forward.output_dense", "audio_encoder/blocks/{i}/down", _LINEAR),
    ("encoder.layer_norm", "audio_encoder/final_norm", _NORM),
)
# Of WavLM alone; one table serves all of its layers.
_WAVLM = (
    ("encoder.layers.0.attention.rel_attn_embed", "audio_encoder/position_table", _WEIGHT),
    ("encoder.layers.{i}.attention.gru_rel_pos_linear", "audio_encoder/blocks/{i}/attn/gate", _LINEAR),
    ("encoder.layers.{i}.attention.gru_rel_pos_const", "audio_encoder/blocks/{i}/attn/gate_scale", _LEAF),
)


def _encoder(key: str, path: str, weight_norm: tuple, rows: tuple = _AUDIO_ENCODER) -> tuple:
    """An encoder inside another model; `weight_norm` is the kind of its positional convolution."""
    return tuple(
        (f"{key}.{k}", path + p.removeprefix("audio_encoder"), weight_norm if kind == _WEIGHT_NORM else kind)
        for k, p, kind in rows
    )


def _attention(key: str, path: str) -> tuple:
    return (
        (key, path, ((".in_proj_weight", "/in_proj/kernel", True), (".in_proj_bias", "/in_proj/bias", False))),
        (f"{key}.out_proj", f"{path}/out_proj", _LINEAR),
    )


def _postnorm_layer(key: str, path: str, *, decoder: bool) -> tuple:
    """A layer of `torch.nn`'s encoder or decoder."""
    cross = (*_attention(f"{key}.multihead_attn", f"{path}/cross_attn"), (f"{key}.norm2", f"{path}/cross_norm", _NORM))
    return (
        *_attention(f"{key}.self_attn", f"{path}/self_attn"),
        (f"{key}.norm1", f"{path}/self_norm", _NORM),
        *(cross if decoder else ()),
        (f"{key}.linear1", f"{path}/mlp/up", _LINEAR),
        (f"{key}.linear2", f"{path}/mlp/down", _LINEAR),
        (f"{key}.norm{3 if decoder else 2}", f"{path}/mlp_norm", _NORM),
    )


def _lstm(key: str, path: str) -> tuple:
    ends = (("forward", ""), ("backward", "_reverse"))
    names = (("weight_ih", "input/kernel"), ("weight_hh", "state/kernel"))
    names += (("bias_ih", "input/bias"), ("bias_hh", "state/bias"))
    return tuple(
        (f"{key}.{torch_name}_l{{i}}{end}", f"{path}/{direction}/{{i}}/{name}", (("", "", name.endswith("kernel")),))
        for direction, end in ends
        for torch_name, name in names
    )


_DUALTALK = (
    *_encoder("joint_encoder.audio_encoder1", "own_encoder", _OLD_WEIGHT_NORM),
    *_encoder("joint_encoder.audio_encoder2", "partner_encoder", _OLD_WEIGHT_NORM),
    ("joint_encoder.audio_projection", "audio_proj", _LINEAR),
    ("joint_encoder.blendshape_encoder.0", "motion_encoder/up", _LINEAR),
    ("joint_encoder.blendshape_encoder.2", "motion_encoder/out", _LINEAR),
    *_attention("temporal_enhancer.cross_attention", "partner_attn"),
    *_lstm("temporal_enhancer.temporal_lstm", "partner_lstm"),
    *_postnorm_layer("interaction_module.interaction_encoder.layers.{i}", "interaction/{i}", decoder=False),
    *_attention("interaction_module.self_attention", "fusion_attn"),
    *_postnorm_layer("synthesis_module.synthesis_decoder.layers.{i}", "synthesis/{i}", decoder=True),
    ("synthesis_module.modulation_layer", "modulation", _LINEAR),
    ("synthesis_module.blendshape_predictor", "head", _LINEAR),
)

_UNITALKER = (
    *_encoder("audio_encoder", "speech_encoder", _WEIGHT_NORM, _AUDIO_ENCODER + _WAVLM),
    ("decoder.learnable_style_emb", "decoder/identity_embed", _WEIGHT),
    ("decoder.audio_feature_map", "decoder/audio_proj", _LINEAR),
    ("decoder.tcn.first_net.conv_layers.{i}.conv", "decoder/blocks/{i}/conv", _CONV),
    ("decoder.tcn.first_net.conv_layers.{i}.norm", "decoder/blocks/{i}/norm", _NORM),
    ("decoder.tcn.first_net.conv_layers.{i}.residual_layer.0", "decoder/blocks/{i}/residual", _CONV),
    *_postnorm_layer("decoder.transformer_decoder.layers.0", "decoder/layer", decoder=True),
    ("out_head_dict.{name}", "heads/{name}", _LINEAR),
    ("out_head_dict.{name}.head_layer.{2i}", "heads/{name}/layers/{i}", _LINEAR),
    ("pca_layer_dict.{name}.feat_to_data", "pca/{name}/components", _LEAF),
    ("pca_layer_dict.{name}.data_bias", "pca/{name}/mean", _LEAF),
)

TABLES = {
    "codec": _CODEC,
    "prior": _BASE_CODEC + _PRIOR,
    "dialogue": _BASE_CODEC + _PRIOR + _PRIOR_LORA + _AUDIO_ATTENTION,
    "audio_encoder": _AUDIO_ENCODER + _WAVLM,
    "dualtalk": _DUALTALK,
    "unitalker": _UNITALKER,
}
# Other names of the same tensor, read and never written: (pattern, the table's name).
ALIASES = {
    "dialogue": ((r"\.modules_to_save\.default\.", "."),),
    "audio_encoder": (
        (r"^(wav2vec2|wavlm)\.", ""),
        (r"^(encoder\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"^(encoder\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
    ),
    "dualtalk": (
        (r"(\.encoder\.pos_conv_embed\.conv)\.parametrizations\.weight\.original0$", r"\1.weight_g"),
        (r"(\.encoder\.pos_conv_embed\.conv)\.parametrizations\.weight\.original1$", r"\1.weight_v"),
    ),
    "unitalker": (
        (r"(\.encoder\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(\.encoder\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
    ),
}


# Files of DualTalk and UniTalker are bare state dicts; so some keys of theirs begin.
DUALTALK_MARK = "joint_encoder."


UNITALKER_MARK = "decoder.learnable_style_emb"
