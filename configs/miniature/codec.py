"""The codec of `unils miniature`, on unpaired motion (or, for the systems without it, on the paired).

Budget: 1000 batches of 800 frames, once for all systems and seeds that stand on it.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("smoke/codec")
    config.num_steps = 1000
    config.eval_every = 1000
    config.checkpoint_every = 500
    return config
