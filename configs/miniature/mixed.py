"""UniLS with one cross-attention to both tracks mixed, an ablation of the paper, in `unils miniature`."""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("miniature/dialogue")
    config.model.prior.audio_condition = "mixed"
    return config
