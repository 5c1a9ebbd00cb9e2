"""UniLS' release files: the `meta_cfg` that describes a model, read and written."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from unils_jax.config import from_dict
from unils_jax.models.codec import CodecConfig
from unils_jax.models.ear import EarConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.mimi import MimiConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import UniLSConfig
from unils_jax.motion import FPS, SAMPLE_RATE, Window
from unils_jax.systems.base import NoiseRates
from unils_jax.systems.torch_layout import TorchLayout
from unils_jax.systems.unils.meta_cfg import EAR_LOADER, LOADERS, WINDOW_NAMES, model_sizes
from unils_jax.systems.unils.rows import ALIASES, ROWS

Part = TypeVar("Part", LogMelConfig, EarConfig, MimiConfig)

NAMES = {"ear": "UniLSEar", "codec": "UniLSCodec", "prior": "UniLSFreeGen", "dialogue": "UniLSLoRAGen"}


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
    tree = meta_cfg.get("MODEL")
    if isinstance(tree, Mapping) and tree.get("LOADER") == EAR_LOADER:
        return UniLSConfig(ear=_part(EarConfig, tree, "EAR", source))
    sizes = model_sizes(meta_cfg, state)
    prior = logmel = ear = mimi = None
    if sizes["prior"] is not None:
        audio = {"audio_dim": sizes["audio_width"], "audio_condition": sizes["audio_condition"]}
        prior = PriorConfig(**sizes["prior"], **audio, bit_chain="bit_chain" in state)
    if sizes["stage"] == "dialogue":
        logmel, ear = _part(LogMelConfig, tree, "LOGMEL", source), _part(EarConfig, tree, "EAR", source)
        if sizes["audio_encoder"] == "mimi":
            mimi = _part(MimiConfig, tree, "MIMI", source) or MimiConfig()
    return UniLSConfig(CodecConfig(**sizes["codec"]), prior, logmel=logmel, ear=ear, mimi=mimi)


def _part(kind: type[Part], tree: Mapping[str, Any], name: str, source: str) -> Part | None:
    """Reads the config of a front end, our addition to the tree; None where it has none."""
    if name not in tree:
        return None
    fields = tree[name]
    fields = {key.lower(): value for key, value in fields.items()} if isinstance(fields, dict) else {"": fields}
    return from_dict(kind, fields, f"{source}: meta_cfg.MODEL.{name}")


def json_of(config: UniLSConfig, expression_basis: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """Builds the release's config tree of a model.

    Sizes are the model's; TRAINER and LOSS_KWARGS are the run's, and empty where it is unknown.
    Paths are left out. These names are ours: EXPRESSION_BASIS, MODEL.LOGMEL or MODEL.EAR where the
    model has that front end, MODEL.MIMI where its Mimi is not as the release has it,
    MODEL.AUDIO_CONDITION where it has one audio cross-attention, and
    `WINDOW_NAMES` where it has another context or other audio than the release.
    """
    stage = config.stage
    dataset, loader = DATASETS.get(stage, ("TalkMotionOnly", "motion_data.TalkMotionOnlyData"))
    window = config.window
    model = _model_tree(config, NoiseRates() if run is None else from_dict(NoiseRates, run["noise"], "noise"))
    return {
        "PIPELINE": PIPELINES.get(stage, "vae_trainer.VAETrainer"),
        "DATASET": {
            "NAME": dataset,
            "LOADER": loader,
            "CLIP_LENGTH": window.frames,
            "PREV_LENGTH": window.context_frames,
            "STYLE_LENGTH": window.context_frames,
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
    if stage == "ear":
        return {"NAME": NAMES[stage], "LOADER": EAR_LOADER, "EAR": _fields(config.ear)}
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
        named = {"logmel": config.logmel, "ear": config.ear, "mimi": config.mimi}
        tree["AUDIO_ENCODER"] = next((name for name, part in named.items() if part is not None), "wav2vec")
    tree |= {
        "T_DEPTH": prior.depth,
        "T_NUM_HEAD": prior.num_heads,
        "T_EMBED_DIM": prior.width,
        "FLIP_QUANT": noise.max_flip_percent / 100,
        "PREV_FREE": noise.prev_drop,
        "STYLE_FREE": noise.style_drop,
    }
    ours = {name: (getattr(prior, field), default) for name, (field, default, _) in WINDOW_NAMES.items()}
    tree |= {name: value for name, (value, default) in ours.items() if value != default}
    if stage == "dialogue":
        tree |= {"AUDIO_FREE": noise.audio_drop, "PRETRAIN_PATH": None}
        if prior.audio_condition != "pair":
            tree["AUDIO_CONDITION"] = prior.audio_condition
        if config.logmel is not None:
            tree["LOGMEL"] = _fields(config.logmel)
        if config.ear is not None:
            tree["EAR"] = _fields(config.ear)
        if config.mimi not in (None, MimiConfig()):
            tree["MIMI"] = _fields(config.mimi)
    return tree | vae_config


def _fields(part: LogMelConfig | EarConfig | MimiConfig) -> dict[str, Any]:
    return {key.upper(): value for key, value in vars(part).items()}


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
    if run["stage"] == "ear":
        return {}
    if run["stage"] != "codec":
        return {"CE_WEIGHT": 1.0}
    return {name: run["loss"][ours] for ours, name in LOSS_NAMES.items()}  # ARTalk's terms have no name there


def _matches(keys: Iterable[str]) -> bool:
    return any(key.startswith(("base_codec.", "encoder.inp_mapping.", "ear.")) for key in keys)


def _warnings(config: UniLSConfig) -> list[str]:
    warnings = []
    if config.logmel is not None:
        warnings.append(
            "the model hears through our log-mel front end, which the release's code lacks: there the weights load, "
            "but speech means nothing to them"
        )
    if config.ear is not None:
        warnings.append(
            "the model hears through our ear, which the release's code lacks: leave the keys `ear.*` out there, and "
            "speech means nothing to the weights"
        )
    if config.mimi not in (None, MimiConfig()):
        warnings.append("the model hears a Mimi of other sizes or features than the release's code loads")
    if config.prior is not None and config.prior.audio_condition != "pair":
        warnings.append(
            "the model has one audio cross-attention, under ARTalk's names; the release's code knows two: load it with "
            "unils_jax's PyTorch reference"
        )
    if config.prior is not None and config.prior.bit_chain:
        warnings.append(
            "the bits of a token depend on each other (model.prior.bit_chain), which the release's code does not know: "
            "load it with unils_jax"
        )
    return warnings


def _release_refuses(config: UniLSConfig) -> str:
    """Says why the release's code cannot run a model; "" where it can."""
    window = config.window
    if window == Window():
        return ""
    return (
        f"the release's code decodes windows of {Window().frames} frames after one window of previous motion, from the "
        f"audio of the window alone; this model has windows of {window.frames} frames, {window.context_windows} of "
        f"them before it, and audio from {window.past_audio_frames} frames before the window to "
        f"{window.lookahead_frames} after it"
    )


LAYOUT = TorchLayout(
    rows=ROWS,
    matches=_matches,
    config_of=config_of,
    json_of=json_of,
    bare=False,
    optional=("audio_encoder/",),
    aliases=ALIASES,
    warnings=_warnings,
    release_refuses=_release_refuses,
)
