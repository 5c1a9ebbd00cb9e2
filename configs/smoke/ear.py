r"""The ear small enough for two CPU cores: minutes on synthetic data.

It learns the jaw and the lips' press, pucker and stretch from the own track, and then stays frozen
in front of the dialogue.

    unils train --config smoke/ear --workdir runs/ear --config.data.store=data/synthetic

Expected with phone-timed voices: 0.66 of the channels' variance is left on held-out people after
2000 steps on 6 hours of conversations (`make pretrained`), of the jaw's alone 0.26. More than 1500
steps on 1.2 hours learn its speakers by heart.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("smoke/codec")
    config.stage = "ear"
    config.num_steps = 1200
    config.head = ""
    config.data.batch_size = 8
    config.model = {
        "ear": {
            "num_mels": 40, "context_frames": 2, "width": 192, "blocks": 3, "channels": (103, 14, 2, 3),
            "coarse_bands": 8, "feature_context": 2, "normalize_level": True,
        },
    }  # fmt: skip
    config.noise.level_db = (-30.0, 10.0)
    config.noise.vocal_tract = 0.12
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 50, "ema_decay": 0.99})
    config.eval_every = 400
    config.checkpoint_every = 400
    return config
