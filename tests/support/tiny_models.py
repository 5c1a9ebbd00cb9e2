"""Models small enough to compile in a second, with random weights, and the jit that tests run them through."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unils_jax.models.codec import CodecConfig
from unils_jax.models.ear import EarConfig
from unils_jax.models.encoder_noise import EncoderRates
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.params import Params, abstract, merge, split
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkConfig
from unils_jax.systems.registry import system_of_config

SCALES = (1, 4, 100)
CODE_DIM = 8
CODEC = CodecConfig(code_dim=CODE_DIM, scales=SCALES, width=16, depth=1, num_heads=2)
LOGMEL = LogMelConfig(num_mels=6, context_frames=0)
EAR = EarConfig(num_mels=8, context_frames=2, width=8, blocks=1, coarse_bands=2, feature_context=0)
CONFIGS = {
    "codec": UniLSConfig(CODEC),
    "prior": UniLSConfig(CODEC, PriorConfig(16, 2, 2)),
    "dialogue": UniLSConfig(
        CODEC, PriorConfig(16, 2, 2, LOGMEL.feature_dim), logmel=LOGMEL, lora=LoRAConfig(2, 4.0, 0.5)
    ),
}

CONFIGS["ear"] = UniLSConfig(ear=EAR)
CONFIGS["hearing"] = replace(  # a dialogue with an ear
    CONFIGS["dialogue"], prior=PriorConfig(16, 2, 2, EAR.feature_dim), logmel=None, ear=EAR
)

CONFIGS["dualtalk"] = DualTalkConfig(
    Wav2Vec2Config(8, 1, 2, 16, conv_dims=(4,) * 7, pos_conv_kernel=4, pos_conv_groups=2),
    width=8,
    num_heads=2,
    hidden_dim=16,
    depth=1,
    rates=EncoderRates(attention=0.0, activation=0.0, projection=0.0),  # draws take long to compile
)
CONFIGS["chained"] = replace(CONFIGS["prior"], prior=replace(CONFIGS["prior"].prior, bit_chain=True))
CONFIGS["merged"] = replace(CONFIGS["dialogue"], lora=None)  # a dialogue as `load` gives it
for audio_condition in ("own", "mixed"):
    one_audio = replace(CONFIGS["dialogue"].prior, audio_condition=audio_condition)
    CONFIGS[audio_condition] = replace(CONFIGS["dialogue"], prior=one_audio)
CONFIGS["artalk"] = replace(CONFIGS["own"], lora=None)


@cache
def tiny_model(stage: str, seed: int = 0) -> UniLS | DualTalk:
    """The stage's model; see `random_model`."""
    return random_model(CONFIGS[stage], seed)


def random_model(config: UniLSConfig | DualTalkConfig, seed: int) -> UniLS | DualTalk:
    """A model with values drawn by NumPy (quick): no adapter is zero, no statistic trivial."""
    graphdef, shapes = abstract_model(config)
    rng = np.random.default_rng(seed)
    params = {path: rng.normal(0, (shape.shape[-2:] or (1,))[0] ** -0.5, shape.shape) for path, shape in shapes.items()}
    for path in params:
        if path.endswith(("/scale", "_std")):
            params[path] = rng.uniform(0.5, 1.5, params[path].shape)
        if path.startswith("prior/") and path.endswith("/kernel"):
            params[path] *= 3  # what a token sees should outweigh what it is, or all of them choose alike
    return merge(graphdef, {path: jnp.asarray(value, jnp.float32) for path, value in params.items()})


@cache
def abstract_model(config: UniLSConfig | DualTalkConfig) -> tuple[nnx.GraphDef, Params]:
    """Structure and shapes."""
    return abstract(system_of_config(config).builder(config))


def random_motion(*shape: int, seed: int = 0) -> jax.Array:
    """Smooth enough motion [*shape, 108] that its windows differ in their bits."""
    steps = np.random.default_rng(seed).normal(0, 0.3, (*shape, 108))
    return jnp.asarray(steps.cumsum(-2), jnp.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Sound of one person."""
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def sample_keys(seed: int, batch: int) -> jax.Array:
    """One key a sample, as layers take them in training."""
    return jax.random.split(jax.random.key(seed), batch)


def jitted(model: nnx.Module, function: Callable, *arguments: Any) -> Any:
    """`function(model, *arguments)`, compiled: quicker than its operations one by one, and what a run computes."""
    graphdef, params = split(model)
    return jax.jit(lambda params, *arguments: function(merge(graphdef, params), *arguments))(params, *arguments)


LIVE_SCALES = {10: (1, 5, 10), 25: (1, 5, 25), 100: SCALES}


def live_config(
    frames: int, context_windows: int = 1, past: int = 0, ahead: int = 0, audio: str = "pair"
) -> UniLSConfig:
    """A dialogue whose window has so many frames, after so many windows, with audio before and after it."""
    codec = replace(CODEC, scales=LIVE_SCALES[frames])
    prior = PriorConfig(16, 1, 2, LOGMEL.feature_dim, audio, context_windows, past, ahead)
    return UniLSConfig(codec, prior, logmel=LOGMEL)
