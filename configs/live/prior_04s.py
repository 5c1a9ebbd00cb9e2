r"""The prior of windows of 10 frames, 0.4 s, at the paper's size.

It is conditioned on the 10 windows before, the same 4 s as the paper's.

    unils train --config live/prior_04s --workdir runs/prior --parent runs/codec \
        --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("prior")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.model.prior.context_windows = 10
    return config
