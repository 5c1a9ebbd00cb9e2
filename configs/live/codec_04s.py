r"""The codec of windows of 10 frames, 0.4 s, at the paper's size.

    unils train --config live/codec_04s --workdir runs/codec --config.data.store=DIR \
        --config.head=generic_model.pkl

Batches hold as many frames as the paper's. docs/live.md says what a short window is for.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.data.batch_size = 640
    return config
