"""DualTalk in `unils miniature`: 512 batches of 800 frames, of one person of four dialogues."""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/dualtalk")
    config.num_steps = 512
    config.eval_every = 512
    config.checkpoint_every = 256
    return config
