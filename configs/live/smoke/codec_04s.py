r"""The codec of windows of 0.4 s, small enough for two CPU cores.

    unils train --config live/smoke/codec_04s --workdir runs/codec \
        --config.data.store=data/synthetic

Batches hold as many frames as those of smoke/codec.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/codec")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.loss.coarse = 0.0  # not measured for short windows
    config.data.batch_size = 80
    return config
