r"""ARTalk: a generator from scratch on its codec, which uses the speaker's audio alone.

It has no audio-free stage, no LoRA, and one cross-attention.

    unils train --config baselines/artalk_prior --workdir runs/artalk \
        --parent runs/artalk_codec --config.data.store=DIR

Cost in the paper: 200k steps. Decoded and evaluated as a dialogue, of which it uses one track. The
data are dialogues, as for `dialogue`, with each of their people as an item: records of one person
with audio are not read. ARTalk leaves head rotation as it is, which is
`--config.data.centre_head=False`, for its codec too. Not built: ARTalk's index of records, and the
other network of its published demo.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("baselines/artalk_partner")
    config.model.prior.audio_condition = "own"
    return config
