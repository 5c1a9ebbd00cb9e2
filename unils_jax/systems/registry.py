"""All systems by name, and their training stages."""

from collections.abc import Iterator, Mapping

from flax import nnx

from unils_jax.errors import UserError
from unils_jax.systems.artalk import ARTALK
from unils_jax.systems.base import Stage, System
from unils_jax.systems.dualtalk.system import DUALTALK
from unils_jax.systems.unils.system import UNILS
from unils_jax.systems.unitalker.system import UNITALKER

# A system of your own is one more entry: `SYSTEMS["mine"] = MINE`.
SYSTEMS: dict[str, System] = {system.name: system for system in (UNILS, ARTALK, DUALTALK, UNITALKER)}


class _Stages(Mapping[str, Stage]):
    """The stages of all systems by name, also of systems that join later."""

    def __getitem__(self, name: str) -> Stage:
        return next((system.stages[name] for system in SYSTEMS.values() if name in system.stages), None) or _missing(name)

    def __iter__(self) -> Iterator[str]:
        return (name for system in SYSTEMS.values() for name in system.stages)

    def __len__(self) -> int:
        return sum(len(system.stages) for system in SYSTEMS.values())


def _missing(name: str) -> Stage:
    raise KeyError(name)


STAGES: Mapping[str, Stage] = _Stages()


def system_of_stage(name: str) -> System:
    """Returns the system that a training stage belongs to. Raises KeyError for an unknown stage."""
    return next((system for system in SYSTEMS.values() if name in system.stages), None) or _missing(name)


def system_of_model(model: nnx.Module) -> System:
    """Returns the system of a module. Raises UserError where it is of none."""
    for system in SYSTEMS.values():
        if isinstance(model, system.build):
            return system
    raise UserError(f"{type(model).__name__} is the module of no system; known are {', '.join(SYSTEMS)}")


def generating_stages() -> tuple[str, ...]:
    """Returns the kinds of model that generate motion: what the last stage of each system trains."""
    last = (list(system.stages.values())[-1] for system in SYSTEMS.values())
    return tuple(dict.fromkeys(stage.trained for stage in last))
