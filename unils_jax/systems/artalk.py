"""ARTalk: UniLS' generator from scratch on a codec, without the audio-free stage."""

from unils_jax.motion import WINDOW_FRAMES
from unils_jax.models.unils import ModelConfig, UniLS
from unils_jax.systems.base import Stage, System
from unils_jax.systems.unils.system import INPUTS, generate, generator_loss, sample_noise

# ARTalk: no audio-free stage, all of it from scratch on a codec. What it listens to stands in the config: the own track
# (ARTalk itself, the people of a pair as people of their own), or the partner's too.
ARTALK_STAGE = Stage(
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

ARTALK = System(
    name="artalk",
    title="ARTalk",
    config=ModelConfig,
    build=UniLS,
    stages={ARTALK_STAGE.name: ARTALK_STAGE},
    inputs=INPUTS,
    draws=True,
    generate=generate,
)
