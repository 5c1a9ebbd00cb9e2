r"""Stage 3, two audio cross-attentions and LoRA on the prior, at the paper's size.

It has 27.4 M trainable parameters, and a frozen audio encoder of 315 M.

    unils train --config dialogue --workdir runs/dialogue --parent runs/prior \
        --config.data.store=DIR

Data: paired dialogue (657 person-hours in the paper). Cost in the paper: 200k steps of 128 pairs;
the release's config says 400k. The paper's ablation with one cross-attention on mixed audio is
`--config.model.prior.audio_condition=mixed`; `own` uses the own track alone. The encoder is fetched
from the hub where there is a network; otherwise set `config.audio_encoder` to its folder.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("prior")
    config.stage = "dialogue"
    config.num_steps = 400_000
    config.audio_encoder = "facebook/wav2vec2-xls-r-300m"
    config.model.prior.update({"audio_dim": 1024, "audio_condition": "pair"})
    # Frames of audio before and after the window that it is conditioned on, too.
    config.model.prior.update({"past_audio_frames": 0, "lookahead_frames": 0})
    config.model.wav2vec2 = {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096}
    config.model.lora = {"rank": 32, "alpha": 32.0, "dropout_rate": 0.1}
    return config
