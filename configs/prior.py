"""Stage 2, the audio-free prior over the codec's bits, at the paper's size.

It has 25.3 M trainable parameters.

    unils train --config prior --workdir runs/prior --parent runs/codec --config.data.store=DIR

Data: unpaired motion (546 h in the paper). Cost in the paper: 200k steps of 128 windows; the
release's config says 600k.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.stage = "prior"
    config.num_steps = 600_000
    config.data.batch_size = 128
    config.model.prior = {
        "width": 512,
        "depth": 8,
        "num_heads": 8,
        "context_windows": 1,  # windows of previous motion, and of style; live/ has more of shorter ones
        "bit_chain": False,  # True: the bits of a token depend on each other, see PriorConfig
    }
    return config
