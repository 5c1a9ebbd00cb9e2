"""The release's `meta_cfg` read: which model it describes. No JAX, for the PyTorch reference."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unils_jax.errors import UserError
from unils_jax.motion import AUDIO_CONDITIONS, FPS, MOTION_DIM, SAMPLE_RATE, WINDOW_FRAMES

LOADERS = {"unils_codec.UniLSCodec": "codec", "unils_freegen.UniLSFreeGen": "prior", "unils_gen.UniLSGen": "dialogue"}
EAR_LOADER = "unils_ear.UniLSEar"  # ours alone: the release has no ear


AUDIO_VECTORS = ("attn_blocks.self_pos", "attn_blocks.audio_pos")  # of two cross-attentions, of one


MAX_DEPTH = 1000


MAX_SIZE = 1 << 16


def model_sizes(meta_cfg: Mapping[str, Any], state: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Reads what a release `meta_cfg` says about the model's sizes.

    The audio width of a dialogue model is in no config: it is read off `state`, its torch state
    dict (None without one). Whether it has one cross-attention alone is read off `state`, too; that
    one is to the own track unless our addition MODEL.AUDIO_CONDITION says otherwise. Raises one
    UserError that names every missing or impossible value.

    Returns:
        {"stage": "codec" | "prior" | "dialogue",
        "codec": {"motion_dim", "code_dim", "scales" (a tuple), "width", "depth", "num_heads"},
        "prior": {"width", "depth", "num_heads"} or None for a codec,
        "audio_encoder": the config's name of it or None, "audio_width": int or None,
        "audio_condition": one of `motion.AUDIO_CONDITIONS`}.
    """
    problems: list[str] = []
    model = _branch(meta_cfg, "MODEL", "MODEL", problems)
    stage = LOADERS.get(str(model.get("LOADER")))
    if model and stage is None:
        problems.append(f"MODEL.LOADER must be one of {sorted(LOADERS)}, got {model.get('LOADER')!r:.80}")
    sizes: dict[str, Any] = {"stage": stage, "codec": None, "prior": None, "audio_encoder": None, "audio_width": None}
    sizes["audio_condition"] = "pair"
    if stage == "codec":
        sizes["codec"] = _codec_sizes(model, "MODEL", problems)
    elif stage:
        vae = _branch(model, "VAE_CONFIG", "MODEL.VAE_CONFIG", problems)
        if vae:
            sizes["codec"] = _codec_sizes(vae, "MODEL.VAE_CONFIG", problems)
        sizes["prior"] = _transformer_sizes(model, "MODEL", ("T_EMBED_DIM", "T_DEPTH", "T_NUM_HEAD"), problems)
    if stage == "dialogue":
        sizes["audio_encoder"] = model.get("AUDIO_ENCODER")
        sizes["audio_condition"] = _audio_condition(model, state, problems)
        sizes["audio_width"] = _audio_width(state, AUDIO_VECTORS[sizes["audio_condition"] != "pair"], problems)
    dataset = meta_cfg.get("DATASET")
    for name, value in (("MOTION_FPS", FPS), ("AUDIO_SAMPLE_RATE", SAMPLE_RATE)):
        if isinstance(dataset, Mapping) and dataset.get(name, value) != value:
            problems.append(f"DATASET.{name} must be {value:g}, got {dataset[name]!r:.40}")
    if problems:
        raise UserError(f"meta_cfg does not describe a model of the release: {'; '.join(problems)}. Use the file's own")
    return sizes


def _branch(tree: Mapping[str, Any], name: str, full_name: str, problems: list[str]) -> Mapping[str, Any]:
    branch = tree.get(name)
    if isinstance(branch, Mapping) and branch:
        return branch
    problems.append(f"{full_name} is missing" if branch is None else f"{full_name} must be a filled dict")
    return {}


def _size(tree: Mapping[str, Any], where: str, name: str, limit: int, problems: list[str]) -> int:
    value = tree.get(name)
    if type(value) is int and 1 <= value <= limit:
        return value
    got = "nothing" if value is None else f"{value!r:.40}"
    problems.append(f"{where}.{name} must be a whole number from 1 to {limit}, got {got}")
    return 0


def _transformer_sizes(
    tree: Mapping[str, Any], where: str, names: tuple[str, str, str], problems: list[str]
) -> dict[str, int]:
    width_name, depth_name, heads_name = names
    width = _size(tree, where, width_name, MAX_SIZE, problems)
    depth = _size(tree, where, depth_name, MAX_DEPTH, problems)
    num_heads = _size(tree, where, heads_name, MAX_SIZE, problems)
    if width and num_heads and width % (2 * num_heads):
        problems.append(f"{where}.{width_name} must be an even multiple of {heads_name} {num_heads}, got {width}")
    return {"width": width, "depth": depth, "num_heads": num_heads}


def _codec_sizes(tree: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    if LOADERS.get(str(tree.get("LOADER", "unils_codec.UniLSCodec"))) != "codec":
        problems.append(f"{where}.LOADER must be unils_codec.UniLSCodec, got {tree['LOADER']!r:.80}")
    motion_dim = _size(tree, where, "MOTION_DIM", MAX_SIZE, problems)
    if motion_dim and motion_dim != MOTION_DIM:
        problems.append(f"{where}.MOTION_DIM must be {MOTION_DIM}, got {motion_dim}")
    scales = tree.get("V_PATCH_NUMS")
    whole = isinstance(scales, list | tuple) and bool(scales) and all(type(n) is int and n > 0 for n in scales)
    if not whole or list(scales) != sorted(set(scales)) or scales[-1] != WINDOW_FRAMES:
        problems.append(f"{where}.V_PATCH_NUMS must be rising counts that end in {WINDOW_FRAMES}, got {scales!r:.80}")
    return {
        "motion_dim": motion_dim,
        "code_dim": _size(tree, where, "V_CODE_DIM", MAX_SIZE, problems),
        "scales": tuple(scales) if whole else (),
        **_transformer_sizes(tree, where, ("T_HIDDEN_DIM", "T_DEPTH", "T_NUM_HEADS"), problems),
    }


def _audio_condition(model: Mapping[str, Any], state: Mapping[str, np.ndarray] | None, problems: list[str]) -> str:
    one_audio = state is not None and AUDIO_VECTORS[1] in state
    audio_condition = model.get("AUDIO_CONDITION", "own" if one_audio else "pair")
    if audio_condition in AUDIO_CONDITIONS:
        return audio_condition
    problems.append(f"MODEL.AUDIO_CONDITION must be one of {', '.join(AUDIO_CONDITIONS)}, got {audio_condition!r:.80}")
    return "pair"


def _audio_width(state: Mapping[str, np.ndarray] | None, name: str, problems: list[str]) -> int | None:
    if state is None:
        return None
    vector = state.get(name)
    if vector is None or vector.ndim != 3 or not 1 <= vector.shape[-1] <= MAX_SIZE:
        found = "missing" if vector is None else f"of shape {list(vector.shape)}"
        problems.append(f"the weight {name}, which tells the audio width, is {found}")
        return None
    return vector.shape[-1]
