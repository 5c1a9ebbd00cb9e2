r"""Dialogue in windows of 10 frames, 0.4 s, at the paper's size.

Motion comes 0.4 s and 120 ms of look-ahead after the first sound of a window. The
cross-attentions see 3.6 s of audio before it, too.

    unils train --config live/dialogue_04s --workdir runs/dialogue --parent runs/prior \
        --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("dialogue")
    config.model.codec.scales = (1, 2, 4, 7, 10)
    config.model.prior.update({"context_windows": 10, "past_audio_frames": 90, "lookahead_frames": 3})
    return config
