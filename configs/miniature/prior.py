"""The audio-free prior of `unils miniature`: half of UniLS' budget there.

It trains on 256 batches of 800 frames.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/prior")
    config.num_steps = 256
    config.eval_every = 256
    config.checkpoint_every = 256
    return config
