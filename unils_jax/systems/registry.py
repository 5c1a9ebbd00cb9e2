"""All systems by name, and their training stages."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
        return system_of_stage(name).stages[name]

    def __iter__(self) -> Iterator[str]:
        return (name for system in SYSTEMS.values() for name in system.stages)

    def __len__(self) -> int:
        return sum(len(system.stages) for system in SYSTEMS.values())


STAGES: Mapping[str, Stage] = _Stages()


def system_of_stage(name: str) -> System:
    """Returns the system that a training stage belongs to. Raises KeyError for an unknown stage."""
    for system in SYSTEMS.values():
        if name in system.stages:
            return system
    raise KeyError(name)


def system_of_config(config: object) -> System:
    """Returns the system of a model's config; of several with the same kind of config the first."""
    return next(system for system in SYSTEMS.values() if isinstance(config, system.config))


def system_of_model(model: nnx.Module) -> System:
    """Returns the system of a module. Raises UserError where it is of none."""
    for system in SYSTEMS.values():
        if isinstance(model, system.build):
            return system
    raise UserError(f"{type(model).__name__} is the module of no system; known are {', '.join(SYSTEMS)}")


def system_of_keys(keys: Iterable[str]) -> System:
    """Returns the system whose state dicts have such keys; UniLS where none has."""
    keys = list(keys)
    return next((system for system in SYSTEMS.values() if system.layout.matches(keys)), UNILS)


def models_with_audio() -> tuple[str, ...]:
    """Returns the kinds of model that turn audio into motion."""
    return tuple(
        dict.fromkeys(stage.trained for stage in STAGES.values() if stage.windows != "solo" and stage.generates)
    )


def form_of(annotation: str) -> tuple[str, str]:
    """Returns what the numbers of an annotation are, and their units."""
    forms = (system.forms[annotation] for system in SYSTEMS.values() if annotation in system.forms)
    return next(forms, ("numbers", "as trained"))


def current_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's settings as they are read now, with `system` and the model's own config.

    Runs that were saved without `system` held a model under the name of its system.
    """
    if values.get("system"):
        return dict(values)
    model = dict(values["model"].items()) if hasattr(values.get("model"), "items") else values.get("model")
    parts = [model.pop(name, None) for name in SYSTEMS] if isinstance(model, dict) else []
    model = next((part for part in parts if part is not None), model)
    stage = values.get("stage")
    name = system_of_stage(stage).name if isinstance(stage, str) and stage in STAGES else UNILS.name
    return {**values, "system": name, "model": model}
