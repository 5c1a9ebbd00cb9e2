"""ARTalk: UniLS' generator from scratch on a codec, without the audio-free stage."""

from unils_jax.motion import WINDOW_FRAMES
from unils_jax.systems.base import Stage
from unils_jax.systems.unils.system import generator_loss, sample_noise

# ARTalk: no audio-free stage, all of it from scratch on a codec. What it listens to stands in the config: the own track
# (ARTalk itself, the people of a pair as people of their own), or the partner's too.
ARTALK = Stage(
    "artalk",
    "codec",
    "pair",
    r"prior/.*",
    generator_loss,
    sample_noise,
    item_frames=2 * WINDOW_FRAMES,
    decodes=True,
    model="dialogue",
)
