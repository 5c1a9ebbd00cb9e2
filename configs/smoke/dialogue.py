r"""Dialogue small enough for two CPU cores: minutes on synthetic data.

It has two parents: the prior, and the ear, which takes the place of wav2vec2 and stays frozen.

    unils train --config smoke/dialogue --workdir runs/dialogue --parent runs/prior \
        --config.audio_encoder=runs/ear --config.data.store=data/synthetic

Expected: 0.39 nats a bit on held-out conversations of the bank's voices (`make pretrained`).
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/prior")
    config.stage = "dialogue"
    config.num_steps = 900
    config.optimizer.learning_rate = 4e-3
    config.data.batch_size = 4
    config.model.ear = load_config("smoke/ear").model.ear
    config.model.prior.update({"audio_dim": 60, "audio_condition": "pair"})
    config.model.prior.update({"past_audio_frames": 0, "lookahead_frames": 0})
    config.noise.level_db = (-30.0, 10.0)
    # One value for each scale, chosen by measured figures, docs/liveliness.md: blinks and spread
    # are drawn at the coarse ones, lips at the fine ones.
    config.sampling = {"tau": (2.2, 2.2, 1.8, 1.0, 0.7), "cfg": (2.0, 2.0, 3.0, 4.0, 5.0), "top_p": 1.0}
    config.model.lora = {"rank": 16, "alpha": 16.0, "dropout_rate": 0.0}
    return config
