r"""ARTalk small enough for two CPU cores, on log-mel features.

unils train --config smoke/artalk_prior --workdir runs/artalk --parent runs/codec \
    --config.data.store=data/synthetic
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/artalk_partner")
    config.model.prior.audio_condition = "own"
    return config
