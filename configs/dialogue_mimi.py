r"""Stage 3 with Mimi, the release's second audio encoder, in place of wav2vec2.

Mimi is causal, and 39.4 M parameters of it encode; its features are 25 frames a second of 512.

    unils train --config dialogue_mimi --workdir runs/dialogue --parent runs/prior \
        --config.data.store=DIR

Data and cost are as in `dialogue`; the paper has no figure for it. The encoder is fetched from the
hub where there is a network; otherwise set `config.audio_encoder` to its folder.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("dialogue")
    config.audio_encoder = "kyutai/mimi"
    config.model.prior.audio_dim = 512
    config.model.wav2vec2 = None
    # What the features are: "both" quantisers' projections (the release's), "semantic", "acoustic",
    # or the "transformer"'s frames. Other settings are the published Mimi's.
    config.model.mimi = {"features": "both"}
    return config
