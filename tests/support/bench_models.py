"""Models and runs at a size that compiles in seconds, with the published kind of audio encoder."""

from tiny_models import CODEC, CONFIGS

from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.motion import MOTION_KIND
from unils_jax.systems.unitalker.model import UniTalkerConfig
from unils_jax.training.config import DataConfig, RunConfig

ENCODER = Wav2Vec2Config(
    width=16, depth=1, num_heads=2, hidden_dim=32, conv_dims=(8,) * 7, pos_conv_kernel=16, pos_conv_groups=2
)
TALKER = UniTalkerConfig((MOTION_KIND,), (108,), (0,), ENCODER, num_identities=4, width=8)
MODELS = {
    "dualtalk": CONFIGS["dualtalk"],
    "unitalker": TALKER,
    "codec": UniLSConfig(CODEC),
    "prior": UniLSConfig(CODEC, PriorConfig(16, 2, 2)),
    "dialogue": UniLSConfig(CODEC, PriorConfig(16, 2, 2, 16), wav2vec2=ENCODER, lora=LoRAConfig(2, 4.0, 0.1)),
}


def tiny_run(stage: str) -> RunConfig:
    """Two windows or pairs a batch; the data are random."""
    return RunConfig(stage, 100, DataConfig("random", 2), MODELS[stage])
