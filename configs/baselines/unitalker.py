r"""UniTalker at its paper's size: 317 M parameters with the large encoder.

It has one head for each annotation of the data.

    unils train --config baselines/unitalker --workdir runs/unitalker \
        --config.data.sets="('D0_BIWI=0.2*10', 'D1_vocaset=1*5')"

Data: sets in UniTalker's layout, each `PATH=SCALE*REPEATS`, and, as the annotation `motion_108`,
stores of ours (`--config.data.store`). With `model.wavlm = {}` in place of `wav2vec2`,
`audio_encoder` is `microsoft/wavlm-base-plus`. Cost in the paper: 100 epochs, a clip a step.
Published LVE of BIWI, trained alone and jointly: 4.28 and 3.86 (e-4).
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.system = "unitalker"
    config.stage = "unitalker"
    config.seed = 42
    config.num_steps = 1  # num_epochs decides
    config.num_epochs = 100
    config.audio_encoder = "facebook/wav2vec2-large-xlsr-53"
    config.data.batch_size = 1
    config.data.sets = ()
    config.data.clip_step_s = 1.0  # 0 as the release: every length of a clip is then compiled
    config.model = {
        "wav2vec2": {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096},  # or wavlm
        "decoder": "conv",  # or transformer
        "width": 256,
        "period": 30,
        "head_layers": 1,
        "pca_dim": 512,
        "resample_at": "encoder",
        "dropout": 0.1,
        "rates": {  # of the audio encoder
            "hidden": 0.1, "attention": 0.1, "activation": 0.0, "projection": 0.1, "layer_drop": 0.1,
            "mask_prob": 0.075, "mask_frames": 10, "min_spans": 2,
        },
    }  # fmt: skip
    config.settings = {
        "resources": "",  # the release's resources/binary_resources; empty: no lip errors, losses of the numbers
        "pivot_rate": 0.1,
        "frozen_epochs": 1,
        "use_pca": True,
        "as_pivot": False,
    }
    # heads/NAME/.* trains the head of a new annotation alone, with --parent.
    config.trainable = ""
    # Adam without decay, schedule, clipping and average, a count for every tensor.
    config.optimizer.update({
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "final_factor": 1.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "ema_decay": 0.0,
        "per_tensor": True,
    })  # fmt: skip
    return config
