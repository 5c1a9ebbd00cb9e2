"""ARTalk in `unils miniature`: it uses the own track alone.

It trains from scratch, on 512 batches of 800 frames.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("miniature/scratch")
    config.model.codec.scales = load_config("smoke/artalk_codec").model.codec.scales
    config.model.prior.audio_condition = "own"
    return config
