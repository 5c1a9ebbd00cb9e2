"""The small codec: 12.5 M parameters.

unils train --config codec_s --workdir runs/codec_s --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.model.codec.update({"scales": (1, 25, 50, 100), "width": 384, "depth": 6, "num_heads": 6})
    return config
