r"""The prior of windows of 25 frames, 1 s, at the paper's size.

It is conditioned on the 4 windows before, the same 4 s as the paper's.

    unils train --config live/prior_1s --workdir runs/prior --parent runs/codec \
        --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("prior")
    config.model.codec.scales = (1, 5, 12, 25)
    config.model.prior.context_windows = 4
    return config
