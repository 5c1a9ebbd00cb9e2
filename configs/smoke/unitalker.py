r"""UniTalker small enough for two CPU cores: minutes on people of a synthetic store.

Its encoder starts fresh.

    unils train --config smoke/unitalker --workdir runs/unitalker \
        --config.data.store=data/synthetic

Expected (`unils data synth --voices builtin --conversations 120 --minutes 0.6`): validation loss
0.129, LVE 1.04e-4 m^2, LVD 9.1 mm; predicting the training split's mean gives 0.132, 1.18e-4 and
10.0, the neutral face 0.178, 1.60e-4 and 11.1.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("baselines/unitalker")
    config.num_epochs = 0
    config.num_steps = 300
    config.expression_basis = "standin"
    config.head = "standin"
    config.audio_encoder = ""
    config.data.update({"batch_size": 4, "num_workers": 0})
    config.model.width = 32
    config.model.wav2vec2 = {
        "width": 64, "depth": 2, "num_heads": 4, "hidden_dim": 128, "conv_dims": (32,) * 7, "pos_conv_kernel": 16,
        "pos_conv_groups": 4,
    }  # fmt: skip
    config.model.rates.layer_drop = 0.0
    config.optimizer.learning_rate = 1e-3
    config.log_every = 50
    config.eval_every = 150
    config.eval_batches = 4
    config.checkpoint_every = 150
    return config
