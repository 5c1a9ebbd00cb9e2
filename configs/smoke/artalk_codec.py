"""ARTalk's codec small enough for two CPU cores.

unils train --config smoke/artalk_codec --workdir runs/codec --config.data.store=data/synthetic
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/codec")
    config.model.codec.scales = (1, 10, 20, 50, 100)
    config.loss.mesh_velocity = 1e7
    config.loss.mesh_smooth = 1e5
    return config
