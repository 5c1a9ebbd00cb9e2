r"""Dialogue in windows of 0.4 s, small enough for two CPU cores.

Its audio encoder is the ear that `smoke/ear` trains.

    unils train --config live/smoke/dialogue_04s --workdir runs/dialogue --parent runs/prior \
        --config.audio_encoder=runs/ear --config.data.store=data/synthetic
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/dialogue")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.model.prior.update({"context_windows": 10, "past_audio_frames": 90, "lookahead_frames": 3})
    config.data.batch_size = 6
    config.sampling.tau = (2.4, 2.4, 2.0, 1.0, 0.7)  # warmer than windows of 4 s: it blinks less than they do
    return config
