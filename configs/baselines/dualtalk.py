"""DualTalk, the baseline of two people in conversation, at its paper's size.

It has 638.8 M trainable parameters.

    unils train --config baselines/dualtalk --workdir runs/dualtalk --config.data.store=DIR

Data: paired dialogue with motion of both people, about 50 h in the paper, in windows of 8 s. Cost
in the paper: 1000 epochs of batches of 32 on one GPU. Both audio encoders start from the published
wav2vec2, which is fetched where there is a network; otherwise set `config.audio_encoder` to its
folder. Published on its test set: Frechet distance 11.14 expression, 1.90 jaw, 3.83 head.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.system = "dualtalk"
    config.stage = "dualtalk"
    config.num_steps = 1  # num_epochs decides
    config.num_epochs = 1000
    config.audio_encoder = "facebook/wav2vec2-large-960h-lv60-self"
    config.data.batch_size = 32
    config.model = {
        "wav2vec2": {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096},
        "width": 256,
        "num_heads": 4,
        "hidden_dim": 2048,
        "depth": 3,
        "strength": 0.1,
        "sigmoid": False,  # True: the modulation as the paper's text has it
        "dropout_rate": 0.1,
        "fusion_rate": 0.5,
        "rates": {  # of the audio encoders
            "hidden": 0.1, "attention": 0.1, "activation": 0.1, "projection": 0.1, "layer_drop": 0.1,
            "mask_prob": 0.05, "mask_frames": 10, "min_spans": 2,
        },
    }  # fmt: skip
    # Adam without decay, clipping and average; the rate falls by a fifth every fifty epochs.
    config.optimizer.update({
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "final_factor": 1.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "ema_decay": 0.0,
        "lr_decay_every_epochs": 50,
        "stair_factor": 0.8,
    })  # fmt: skip
    return config
