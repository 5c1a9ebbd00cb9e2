"""UniLS' release files: the `meta_cfg` that describes a model, read and written."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import UniLSConfig
from unils_jax.motion import AUDIO_CONDITIONS, FPS, MOTION_DIM, SAMPLE_RATE, WINDOW_FRAMES
from unils_jax.systems.base import NoiseRates
from unils_jax.systems.torch_layout import TorchLayout
from unils_jax.systems.unils.rows import ALIASES, ROWS

LOADERS = {"unils_codec.UniLSCodec": "codec", "unils_freegen.UniLSFreeGen": "prior", "unils_gen.UniLSGen": "dialogue"}
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


NAMES = {"codec": "UniLSCodec", "prior": "UniLSFreeGen", "dialogue": "UniLSLoRAGen"}


PIPELINES = {"dialogue": "arlora_trainer.ARLoRATrainer"}


DATASETS = {"dialogue": ("SeamlessInteractionTalk", "sitalk_data.SeamlessInteractionTalkData")}


LOSS_NAMES = {
    "vq": "VQ_WEIGHT",
    "motion": "EXP_WEIGHT",
    "pose": "POSE_WEIGHT",
    "velocity": "HEAD_VEL_WEIGHT",
    "smooth": "HEAD_SMOOTH_WEIGHT",
    "mesh": "MESH_WEIGHT",
    "lips": "LIPS_WEIGHT",
}


UNKNOWN = "..."  # paths of other machines: the release's code sets those that it needs


def config_of(state: Mapping[str, np.ndarray], meta_cfg: Mapping[str, Any], source: str) -> UniLSConfig:
    """Returns the model's config that a release file describes.

    Raises UserError, naming `source`, where the config tree is not one of the release's.
    """
    sizes = model_sizes(meta_cfg, state)
    prior = logmel = None
    if sizes["prior"] is not None:
        prior = PriorConfig(**sizes["prior"], audio_dim=sizes["audio_width"], audio_condition=sizes["audio_condition"])
    if sizes["stage"] == "dialogue" and "LOGMEL" in meta_cfg["MODEL"]:
        fields = meta_cfg["MODEL"]["LOGMEL"]
        fields = {key.lower(): value for key, value in fields.items()} if isinstance(fields, dict) else {"": fields}
        logmel = from_dict(LogMelConfig, fields, f"{source}: meta_cfg.MODEL.LOGMEL")
    return UniLSConfig(CodecConfig(**sizes["codec"]), prior, logmel=logmel)


def json_of(config: UniLSConfig, expression_basis: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """Builds the release's config tree of a model.

    Sizes are the model's; TRAINER and LOSS_KWARGS are the run's, and empty where it is unknown.
    Paths are left out. Three names are ours: EXPRESSION_BASIS, MODEL.LOGMEL where the model has
    that front end, and MODEL.AUDIO_CONDITION where it has one audio cross-attention.
    """
    stage = config.stage
    dataset, loader = DATASETS.get(stage, ("TalkMotionOnly", "motion_data.TalkMotionOnlyData"))
    frames = config.codec.window_frames
    model = _model_tree(config, NoiseRates() if run is None else NoiseRates(**run["noise"]))
    return {
        "PIPELINE": PIPELINES.get(stage, "vae_trainer.VAETrainer"),
        "DATASET": {
            "NAME": dataset,
            "LOADER": loader,
            "CLIP_LENGTH": frames,
            "PREV_LENGTH": frames,
            "STYLE_LENGTH": frames,
            "MOTION_FPS": int(FPS),
            "AUDIO_SAMPLE_RATE": SAMPLE_RATE,
            "DATA_PATH": UNKNOWN,
            "META_PATH": UNKNOWN,
        },
        "MODEL": model,
        "TRAINER": {} if run is None else _trainer_tree(run),
        "LOSS_KWARGS": {} if run is None else _loss_tree(run),
        "EXP_STR": f"{model['NAME']}_{dataset}",
        "TIME_STR": UNKNOWN,
        "DUMP_DIR": UNKNOWN,
        "EXPRESSION_BASIS": expression_basis,
    }


def _model_tree(config: UniLSConfig, noise: NoiseRates) -> dict[str, Any]:
    stage, prior = config.stage, config.prior
    loader = next(loader for loader, of in LOADERS.items() if of == stage)
    tree: dict[str, Any] = {"NAME": NAMES[stage] + ("S" if _is_small(config.codec, prior) else ""), "LOADER": loader}
    codec = {
        "MOTION_DIM": config.codec.motion_dim,
        "V_CODE_DIM": config.codec.code_dim,
        "V_PATCH_NUMS": list(config.codec.scales),
        "T_DEPTH": config.codec.depth,
        "T_NUM_HEADS": config.codec.num_heads,
        "T_HIDDEN_DIM": config.codec.width,
        "STATS_PATH": "talk_motion_stats.json",
    }
    codec_loader = next(loader for loader, of in LOADERS.items() if of == "codec")
    # The release's inference code writes into VAE_CONFIG, so it is there whatever the model.
    vae_config = {"VAE_CONFIG": {"LOADER": codec_loader, **codec, "VAE_PATH": UNKNOWN}}
    if prior is None:
        return tree | codec | vae_config
    if stage == "dialogue":
        tree["AUDIO_ENCODER"] = "wav2vec" if config.logmel is None else "logmel"
    tree |= {
        "T_DEPTH": prior.depth,
        "T_NUM_HEAD": prior.num_heads,
        "T_EMBED_DIM": prior.width,
        "FLIP_QUANT": noise.max_flip_percent / 100,
        "PREV_FREE": noise.prev_drop,
        "STYLE_FREE": noise.style_drop,
    }
    if stage == "dialogue":
        tree |= {"AUDIO_FREE": noise.audio_drop, "PRETRAIN_PATH": None}
        if prior.audio_condition != "pair":
            tree["AUDIO_CONDITION"] = prior.audio_condition
        if config.logmel is not None:
            tree["LOGMEL"] = {key.upper(): value for key, value in vars(config.logmel).items()}
    return tree | vae_config


def _is_small(codec: CodecConfig, prior: PriorConfig | None) -> bool:
    """Returns whether the sizes are the paper's small ones, whose names end in S."""
    small = CodecConfig(scales=(1, 25, 50, 100), width=384, depth=6, num_heads=6)
    return codec == small and (prior is None or (prior.width, prior.depth, prior.num_heads) == (384, 6, 6))


def _trainer_tree(run: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = run["optimizer"]
    return {
        "BATCH_SIZE": run["data"]["batch_size"],
        "TRAIN_ITER": run["num_steps"],
        "CHECK_INTERVAL": run["checkpoint_every"],
        "NAME": "Adam",
        "WARMUP_ITER": optimizer["warmup_steps"],
        "LR_DECAY_RATE": optimizer["final_factor"],
        "LR_DECAY_ITER": optimizer["decay_steps"],
        "LEARNING_RATE": optimizer["learning_rate"],
        "USING_EMA": True,
        "EMA_DECAY": optimizer["ema_decay"],
        "EMA_UPDATE_FREQ": 1,
    }


def _loss_tree(run: Mapping[str, Any]) -> dict[str, float]:
    if run["stage"] != "codec":
        return {"CE_WEIGHT": 1.0}
    return {name: run["loss"][ours] for ours, name in LOSS_NAMES.items()}  # ARTalk's terms have no name there


def _matches(keys: Iterable[str]) -> bool:
    return any(key.startswith(("base_codec.", "encoder.inp_mapping.")) for key in keys)


def _warnings(config: UniLSConfig) -> list[str]:
    warnings = []
    if config.logmel is not None:
        warnings.append(
            "the model hears through our log-mel front end, which the release's code lacks: there the weights load, "
            "but speech means nothing to them"
        )
    if config.prior is not None and config.prior.audio_condition != "pair":
        warnings.append(
            "the model has one audio cross-attention, under ARTalk's names; the release's code knows two: load it with "
            "unils_jax's PyTorch reference"
        )
    return warnings


LAYOUT = TorchLayout(
    rows=ROWS,
    matches=_matches,
    config_of=config_of,
    json_of=json_of,
    bare=False,
    aliases=ALIASES,
    warnings=_warnings,
)
