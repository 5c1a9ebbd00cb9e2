"""UniLS with one cross-attention to both tracks mixed, in `unils miniature`.

It is an ablation of the paper.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("miniature/dialogue")
    config.model.prior.audio_condition = "mixed"
    return config
