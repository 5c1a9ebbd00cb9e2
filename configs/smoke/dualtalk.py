"""DualTalk small enough for two CPU cores: minutes on synthetic data.

It uses log-mel features and the paper's alignment.

    unils train --config smoke/dualtalk --workdir runs/dualtalk --config.data.store=data/synthetic

Expected (`unils data synth --voices builtin --conversations 120 --minutes 0.6`): validation loss
0.299, predicting the training split's mean gives 0.320; of them the jaw 0.00043 and 0.00093. Most
of the loss is the identity of a person, which audio does not tell.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("baselines/dualtalk")
    config.num_epochs = 0
    config.num_steps = 400
    config.expression_basis = "standin"
    config.audio_encoder = ""
    config.data.update({"batch_size": 4, "num_workers": 0})
    config.model.update({"width": 32, "hidden_dim": 64, "depth": 2, "fusion_rate": 0.1, "dropout_rate": 0.0})
    config.model.logmel = {"num_mels": 40, "context_frames": 2, "normalize_level": True}
    # The published form starts as the mean of all frames, and hundreds of steps do not lead away
    # from it.
    config.model.alignment = True
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 100, "final_factor": 0.1})
    config.optimizer.update({"max_grad_norm": 1.0, "lr_decay_every_epochs": 0})
    config.log_every = 50
    config.eval_every = 200
    config.eval_batches = 4
    config.checkpoint_every = 200
    return config
