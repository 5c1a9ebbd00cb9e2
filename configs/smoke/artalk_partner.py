r"""ARTalk with the partner's audio small enough for two CPU cores, on log-mel features.

unils train --config smoke/artalk_partner --workdir runs/partner --parent runs/codec \
    --config.data.store=data/synthetic
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/dialogue")
    config.system = "artalk"
    config.stage = "artalk"
    config.model.codec.scales = (1, 10, 20, 50, 100)
    config.model.lora = None
    config.model.ear = None
    config.model.logmel = {"num_mels": 40, "context_frames": 2, "normalize_level": True}
    config.model.prior.audio_dim = 200
    return config
