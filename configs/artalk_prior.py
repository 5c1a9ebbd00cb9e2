"""ARTalk with the partner's audio, the stronger baseline of UniLS' table: a dialogue without an audio-free stage, all
of it from scratch on its codec, no LoRA.

    unils train --config artalk_prior --workdir runs/artalk --parent runs/artalk_codec --config.data.store=DIR

Data: paired dialogue, as for `dialogue`. Cost in the paper: 200k steps. Decoded and evaluated as a dialogue. ARTalk
that hears its own track alone is not built.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("dialogue")
    config.stage = "artalk"
    config.num_steps = 200_000
    config.model.codec.scales = (1, 10, 20, 50, 100)
    config.model.lora = None
    return config
