"""All systems and their training stages by name."""

from unils_jax.systems.artalk import ARTALK
from unils_jax.systems.base import Stage
from unils_jax.systems.dualtalk.system import DUALTALK
from unils_jax.systems.unils.system import CODEC, DIALOGUE, PRIOR
from unils_jax.systems.unitalker.system import UNITALKER

STAGES: dict[str, Stage] = {stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE, ARTALK, DUALTALK, UNITALKER)}
