r"""The prior of windows of 1 s, small enough for two CPU cores.

    unils train --config live/smoke/prior_1s --workdir runs/prior --parent runs/codec \
        --config.data.store=data/synthetic

It is conditioned on the 4 windows before, the same 4 s as smoke/prior.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/prior")
    config.model.codec.scales = (1, 5, 12, 25)
    config.model.prior.context_windows = 4
    config.data.batch_size = 12
    return config
