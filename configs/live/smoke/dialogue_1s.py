r"""Dialogue in windows of 1 s, small enough for two CPU cores.

Its audio encoder is the ear that `smoke/ear` trains.

    unils train --config live/smoke/dialogue_1s --workdir runs/dialogue --parent runs/prior \
        --config.audio_encoder=runs/ear --config.data.store=data/synthetic
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/dialogue")
    config.model.codec.scales = (1, 5, 12, 25)
    config.model.prior.update({"context_windows": 4, "past_audio_frames": 75, "lookahead_frames": 2})
    config.data.batch_size = 6
    config.sampling = {"tau": 1.3, "cfg": 2.0, "top_p": 1.0}
    return config
