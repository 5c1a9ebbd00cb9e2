"""UniLS without the audio-free stage, an ablation of the paper, in `unils miniature`.

The same generator on the same codec is trained on dialogues from scratch for the whole budget, 512
batches of 800 frames, at the prior's rate.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("miniature/dialogue")
    config.system = "artalk"
    config.stage = "artalk"
    config.num_steps = 512
    config.optimizer.learning_rate = 3e-3
    config.model.lora = None
    return config
