r"""Dialogue small enough for two CPU cores: minutes on synthetic data.

It uses log-mel features instead of wav2vec2.

    unils train --config smoke/dialogue --workdir runs/dialogue --parent runs/prior \
        --config.data.store=data/synthetic

Expected: 0.542 nats a bit with the right audio, 0.619 with another conversation's (`unils demo
--times 1`).
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/prior")
    config.stage = "dialogue"
    config.num_steps = 600
    config.optimizer.learning_rate = 4e-3
    config.data.batch_size = 4
    config.model.prior.update({"audio_dim": 200, "audio_condition": "pair"})
    config.model.prior.update({"past_audio_frames": 0, "lookahead_frames": 0})
    config.model.logmel = {"num_mels": 40, "context_frames": 2}
    config.model.lora = {"rank": 16, "alpha": 16.0, "dropout_rate": 0.0}
    return config
