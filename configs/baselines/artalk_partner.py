r"""ARTalk with the partner's audio: the stronger baseline of UniLS' table.

It is also the ablation "no audio-free stage": two cross-attentions, own and other, all of it from
scratch on ARTalk's codec, no LoRA.

    unils train --config baselines/artalk_partner --workdir runs/partner \
        --parent runs/artalk_codec --config.data.store=DIR

Data: paired dialogue, as for `dialogue`. Cost in the paper: 200k steps. Decoded and evaluated as a
dialogue.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("dialogue")
    config.system = "artalk"
    config.stage = "artalk"
    config.num_steps = 200_000
    config.model.codec.scales = (1, 10, 20, 50, 100)
    config.model.lora = None
    return config
