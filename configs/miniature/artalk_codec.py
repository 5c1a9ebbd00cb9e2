"""ARTalk's codec in `unils miniature`: its scales and vertex terms.

It trains on the motion of the dialogues, 1000 batches.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/artalk_codec")
    config.num_steps = 1000
    config.eval_every = 1000
    config.checkpoint_every = 500
    return config
