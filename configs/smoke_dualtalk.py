"""DualTalk small enough for two CPU cores, its audio encoders fresh: minutes on synthetic data.

unils train --config smoke_dualtalk --workdir runs/dualtalk --config.data.store=data/synthetic

Expected (`unils data synth --conversations 120 --minutes 0.6`): validation loss 0.33, predicting the training split's
mean gives 0.320: so few steps show that everything runs, not that it learns. Jaw and lips are a small part of this
loss, and what the model answers hardly moves yet (its velocity term is that of a constant, 0.0223).
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("dualtalk")
    config.num_epochs = 0
    config.num_steps = 400
    config.expression_basis = "standin"
    config.audio_encoder = ""
    config.data.update({"batch_size": 4, "num_workers": 0})
    config.model.dualtalk.update({"width": 32, "hidden_dim": 64, "depth": 2, "fusion_rate": 0.1})
    config.model.dualtalk.wav2vec2 = {
        "width": 64, "depth": 2, "num_heads": 4, "hidden_dim": 128, "conv_dims": (32,) * 7, "pos_conv_kernel": 16,
        "pos_conv_groups": 4,
    }  # fmt: skip
    config.model.dualtalk.rates.layer_drop = 0.0
    config.optimizer.update({"rate": 1e-3, "stair_epochs": 0})
    config.log_every = 50
    config.eval_every = 200
    config.eval_batches = 4
    config.checkpoint_every = 200
    return config
