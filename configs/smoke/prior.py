r"""The prior small enough for two CPU cores: minutes on synthetic data.

    unils train --config smoke/prior --workdir runs/prior --parent runs/codec \
        --config.data.store=data/synthetic

Expected: 0.594 nats a bit on held-out motion, the marginals give 0.681 (`unils demo --times 1`).
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/codec")
    config.stage = "prior"
    config.num_steps = 600
    config.head = ""
    config.optimizer.learning_rate = 3e-3
    config.model.prior = {"width": 96, "depth": 3, "num_heads": 2, "context_windows": 1, "bit_chain": True}
    # A rare bit, as of a blink, is less likely than a flip at the paper's 15 % on average: finer
    # scales would learn to undo it.
    config.noise.max_flip_percent = 3
    return config
