"""The codec of `unils miniature`, on unpaired motion.

Systems without unpaired motion train theirs on the paired. Budget: 1000 batches of 800 frames, once
for all systems and seeds that share it.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/codec")
    config.num_steps = 1000
    config.eval_every = 1000
    config.checkpoint_every = 500
    return config
