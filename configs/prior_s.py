r"""The small prior: 10.7 M trainable parameters.

unils train --config prior_s --workdir runs/prior_s --parent runs/codec_s \
    --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("prior")
    config.model.codec.update({"scales": (1, 25, 50, 100), "width": 384, "depth": 6, "num_heads": 6})
    config.model.prior.update({"width": 384, "depth": 6, "num_heads": 6})
    return config
