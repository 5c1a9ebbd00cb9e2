r"""The prior of windows of 0.4 s, small enough for two CPU cores.

    unils train --config live/smoke/prior_04s --workdir runs/prior --parent runs/codec \
        --config.data.store=data/synthetic

It is conditioned on the 10 windows before, the same 4 s as smoke/prior.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/prior")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.model.prior.context_windows = 10
    config.data.batch_size = 12
    return config
