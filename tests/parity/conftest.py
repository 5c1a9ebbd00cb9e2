"""Tiny models of the goldens, built and loaded through the package's own code."""

import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_flame_asset
from safetensors.numpy import load_file

from unils_jax.checkpoints.torch_keys import check_params, to_paths
from unils_jax.face.flame import FlameAsset
from unils_jax.models.codec import CodecConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.params import abstract, merge


def codec_config(vae: dict) -> CodecConfig:
    return CodecConfig(
        motion_dim=vae["MOTION_DIM"],
        code_dim=vae["V_CODE_DIM"],
        scales=tuple(vae["V_PATCH_NUMS"]),
        width=vae["T_HIDDEN_DIM"],
        depth=vae["T_DEPTH"],
        num_heads=vae["T_NUM_HEADS"],
    )


def prior_config(model: dict, audio_dim: int | None) -> PriorConfig:
    return PriorConfig(model["T_EMBED_DIM"], model["T_DEPTH"], model["T_NUM_HEAD"], audio_dim)


def wav2vec2_config(w2v: dict) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        width=w2v["hidden"],
        depth=w2v["layers"],
        num_heads=w2v["heads"],
        hidden_dim=w2v["intermediate"],
        conv_dims=tuple(w2v["conv_dim"]),
        pos_conv_kernel=w2v["pos_conv"],
        pos_conv_groups=w2v["pos_groups"],
        norm_eps=w2v["layer_norm_eps"],
    )


def load_model(config: UniLSConfig, params: dict) -> UniLS:
    graphdef, shapes = abstract(lambda rngs: UniLS(config, rngs=rngs))
    check_params({path: shape.shape for path, shape in shapes.items()}, params, "golden")
    return merge(graphdef, {path: jnp.asarray(params[path]) for path in shapes})


@pytest.fixture(scope="session")
def codec_model(golden) -> UniLS:
    case = golden("codec")
    return load_model(UniLSConfig(codec_config(case.config["model"])), to_paths(case.weights, "codec"))


@pytest.fixture(scope="session")
def prior_model(golden) -> UniLS:
    case = golden("freegen")
    model = case.config["model"]
    config = UniLSConfig(codec_config(model["VAE_CONFIG"]), prior_config(model, None))
    return load_model(config, to_paths(case.weights, "prior"))


@pytest.fixture(scope="session")
def dialogue_config(golden) -> UniLSConfig:
    config = golden("loragen").config
    wav2vec2 = wav2vec2_config(config["w2v"])
    return UniLSConfig(
        codec_config(config["model"]["VAE_CONFIG"]), prior_config(config["model"], wav2vec2.width), wav2vec2
    )


@pytest.fixture(scope="session")
def encoder_params(golden) -> dict[str, np.ndarray]:
    return to_paths(load_file(golden("loragen").folder / "audio_encoder.safetensors"), "audio_encoder")


@pytest.fixture(scope="session")
def dialogue_model(golden, dialogue_config, encoder_params) -> UniLS:
    return load_model(dialogue_config, to_paths(golden("loragen").weights, "dialogue") | encoder_params)


@pytest.fixture(scope="session")
def lora_model(golden, dialogue_config, encoder_params) -> UniLS:
    case = golden("loragen_peft")
    settings = case.config["lora"]
    lora = LoRAConfig(settings["r"], float(settings["alpha"]), settings["dropout"])
    config = UniLSConfig(dialogue_config.codec, dialogue_config.prior, dialogue_config.wav2vec2, lora=lora)
    base, adapters = (load_file(case.folder / f"{name}.safetensors") for name in ("base", "lora"))
    # The base holds the cross-attentions as they were before training, the adapters as they are.
    adapters = {key.replace(".modules_to_save.default", ""): value for key, value in adapters.items()}
    codec = {f"base_codec.{key}": value for key, value in golden("codec").weights.items()}
    return load_model(config, to_paths({**codec, **base, **adapters}, "dialogue") | encoder_params)


@pytest.fixture(scope="session")
def codec_head(golden) -> FlameAsset:
    """The goldens' head with the lip vertices that the codec's gradients and updates were computed with."""
    return golden_flame_asset(golden, lips=golden("codec").inputs["syn_lip_indices"])


@pytest.fixture(scope="session")
def solo_batch(golden) -> dict[str, np.ndarray]:
    """The prior's window: motion, previous motion and style, [B, 100, 108]."""
    inputs = golden("freegen").inputs
    return {"motion": inputs["motion_code"], **{n: inputs[f"{n}_motion_code"] for n in ("prev", "style")}}


@pytest.fixture(scope="session")
def pair_batch(golden) -> dict[str, np.ndarray]:
    """The dialogue's windows of two people, motions [B, 2, 100, 108] and audio [B, 2, N]."""
    inputs = golden("loragen").inputs
    motions = {name: inputs[f"{name}_motion_code"] for name in ("prev", "style")}
    return {"motion": inputs["motion_code"], "audio": inputs["audio_i8"].astype(np.float32) / 128, **motions}
