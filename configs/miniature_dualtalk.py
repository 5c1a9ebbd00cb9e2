"""DualTalk in `unils miniature`: 640 batches of 800 frames, of one person of four dialogues."""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("smoke_dualtalk")
    config.num_steps = 640
    config.eval_every = 640
    config.checkpoint_every = 320
    return config
