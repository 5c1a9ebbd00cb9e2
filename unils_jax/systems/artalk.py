"""ARTalk: UniLS' generator from scratch on a codec, without the audio-free stage."""

from dataclasses import replace

from unils_jax.systems.base import Stage
from unils_jax.systems.unils.system import UNILS, frames_of_pair, generator_loss, init, sample_noise

# The audio that it is conditioned on is the config's choice: the own track (ARTalk itself, which
# treats the two people of a pair independently), or the partner's too.
ARTALK_STAGE = Stage(
    "artalk",
    "codec",
    "pair",
    r"prior/.*",
    generator_loss,
    sample_noise,
    item_frames=frames_of_pair,
    decodes=True,
    model="dialogue",
    init=init,
)

ARTALK = replace(UNILS, name="artalk", title="ARTalk", stages={ARTALK_STAGE.name: ARTALK_STAGE})
