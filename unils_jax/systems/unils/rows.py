"""The key table of UniLS' release, and of adapters as peft names them."""

from unils_jax.systems.torch_layout import CONV, LEAF, LINEAR, LORA, NORM, PROJECTION, WEIGHT


def _codec_half(half: str, inner: str, last: str) -> tuple:
    # Torch keeps attention and MLP of a block as two neighbours of one list.
    return (
        (f"{half}.inp_mapping.0", f"codec/{half}/inp", LINEAR),
        (f"{half}.{last}", f"codec/{half}/out", LINEAR),
        (f"{half}.{inner}.{{2i}}.norm", f"codec/{half}/blocks/{{i}}/self_attn/norm", NORM),
        (f"{half}.{inner}.{{2i}}.to_qkv", f"codec/{half}/blocks/{{i}}/self_attn/to_qkv", PROJECTION),
        (f"{half}.{inner}.{{2i}}.to_out", f"codec/{half}/blocks/{{i}}/self_attn/to_out", LINEAR),
        (f"{half}.{inner}.{{2i+1}}.0", f"codec/{half}/blocks/{{i}}/mlp/up", LINEAR),
        (f"{half}.{inner}.{{2i+1}}.2", f"codec/{half}/blocks/{{i}}/mlp/down", LINEAR),
    )


_CODEC = (
    ("motion_mean", "codec/motion_mean", LEAF),
    ("motion_std", "codec/motion_std", LEAF),
    *_codec_half("encoder", "encoder_transformer", "code_mapping"),
    *_codec_half("decoder", "decoder_transformer", "out_mapping"),
)
_BASE_CODEC = tuple((f"base_codec.{key}", path, kind) for key, path, kind in _CODEC)

_PRIOR = (
    ("sos_embed", "prior/start_token", LEAF),
    ("code_token_embed", "prior/token_embed", LINEAR),
    ("attn_blocks.style_pos", "prior/style_embed", LEAF),
    ("attn_blocks.prev_pos", "prior/prev_embed", LEAF),
    ("attn_blocks.lvl_embed", "prior/scale_embed", WEIGHT),
    ("attn_blocks.attn_blocks.{i}.self_attn.norm", "prior/blocks/{i}/self_attn/norm", NORM),
    ("attn_blocks.attn_blocks.{i}.self_attn.to_qkv", "prior/blocks/{i}/self_attn/to_qkv", PROJECTION),
    ("attn_blocks.attn_blocks.{i}.self_attn.to_out", "prior/blocks/{i}/self_attn/to_out", LINEAR),
    ("attn_blocks.attn_blocks.{i}.ffn.0", "prior/blocks/{i}/mlp/norm", NORM),
    ("attn_blocks.attn_blocks.{i}.ffn.1", "prior/blocks/{i}/mlp/up", LINEAR),
    ("attn_blocks.attn_blocks.{i}.ffn.3", "prior/blocks/{i}/mlp/down", LINEAR),
    ("logits_head.0", "prior/head_norm", NORM),
    ("logits_head.1", "prior/head", LINEAR),
    ("bit_chain", "prior/bit_chain", LEAF),  # ours: the release's bits of a token are independent
)
_ADAPTED = ("token_embed", "to_qkv", "to_out", "up", "down", "head")
_PRIOR_LORA = tuple((key, path, LORA) for key, path, _ in _PRIOR if path.rpartition("/")[2] in _ADAPTED)


def _audio_attention(torch_name: str, name: str) -> tuple:
    key, path = f"attn_blocks.attn_blocks.{{i}}.{torch_name}", f"prior/blocks/{{i}}/{name}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        (f"{key}.self_norm", f"{path}/query_norm", NORM),
        (f"{key}.context_norm", f"{path}/audio_norm", NORM),
        *((f"{key}.{projection}", f"{path}/{projection}", LINEAR) for projection in projections),
    )


_AUDIO_ATTENTION = (
    ("attn_blocks.self_pos", "prior/own_audio_embed", LEAF),
    ("attn_blocks.other_pos", "prior/other_audio_embed", LEAF),
    *_audio_attention("self_audio_attn", "own_audio_attn"),
    *_audio_attention("other_audio_attn", "other_audio_attn"),
    # Generators with one cross-attention have ARTalk's names.
    ("attn_blocks.audio_pos", "prior/audio_embed", LEAF),
    *_audio_attention("audio_attn", "audio_attn"),
)

_EAR = (
    ("ear.channel_mean", "ear/channel_mean", LEAF),
    ("ear.channel_std", "ear/channel_std", LEAF),
    ("ear.context", "ear/context", CONV),
    ("ear.blocks.{i}", "ear/blocks/{i}", CONV),
    ("ear.hidden", "ear/hidden", LINEAR),
    ("ear.out", "ear/out", LINEAR),
)

# By kind of model. The codec's keys are bare in a codec's file and under `base_codec.` in the
# others.
ROWS = {
    "codec": _CODEC,
    "prior": _BASE_CODEC + _PRIOR,
    "dialogue": _BASE_CODEC + _PRIOR + _PRIOR_LORA + _AUDIO_ATTENTION + _EAR,
    "ear": _EAR,
}
ALIASES = {"dialogue": ((r"\.modules_to_save\.default\.", "."),)}
