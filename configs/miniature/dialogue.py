"""UniLS' dialogue in `unils miniature`: the other half of its budget.

It trains on 256 batches of both people of 4 pairs. All systems have the same log-mel features.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/dialogue")
    config.model.ear = None
    config.model.logmel = {"num_mels": 40, "context_frames": 2, "normalize_level": True}
    config.model.prior.audio_dim = 200
    config.sampling = {"tau": 1.0, "cfg": 1.5, "top_p": 0.97}  # as the comparison's protocol draws
    config.num_steps = 256
    config.eval_every = 256
    config.checkpoint_every = 256
    return config
