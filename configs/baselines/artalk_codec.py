r"""ARTalk's motion codec: UniLS' with other scales and two more vertex terms.

The scales are more and coarser, [1, 10, 20, 50, 100].

    unils train --config baselines/artalk_codec --workdir runs/artalk_codec \
        --config.data.store=DIR --config.head=FLAME.pkl

The vertex terms need a head. Head rotation is centred over each record, as everywhere here, and
ARTalk's is not: that is `--config.data.centre_head=False`, then for its generator too.
"""

import ml_collections

from unils_jax.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = load_config("codec")
    config.model.codec.scales = (1, 10, 20, 50, 100)
    config.loss.mesh_velocity = 1e7
    config.loss.mesh_smooth = 1e5
    return config
