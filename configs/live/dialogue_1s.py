r"""Dialogue in windows of 25 frames, 1 s, at the paper's size.

Motion comes 1 s and 80 ms of look-ahead after the first sound of a window. The
cross-attentions see 3 s of audio before it, too.

    unils train --config live/dialogue_1s --workdir runs/dialogue --parent runs/prior \
        --config.data.store=DIR
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("dialogue")
    config.model.codec.scales = (1, 5, 12, 25)
    config.model.prior.update({"context_windows": 4, "past_audio_frames": 75, "lookahead_frames": 2})
    return config
