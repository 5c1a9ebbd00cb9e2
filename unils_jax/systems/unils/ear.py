"""The stage that trains the ear, and what the dialogue takes from it."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.models.unils import UniLS
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params
from unils_jax.systems.base import (
    Arrays,
    GlobalBatch,
    Metrics,
    Objective,
    Run,
    Stage,
    Start,
    WindowData,
    batch_sample_weights,
)

PREFIX = "ear/"  # of the ear's parameters in a model


@dataclass(frozen=True)
class EarNoise:
    """One draw of the ear's noise: for every track a factor of its level and of its frequencies."""

    gains: Array  # [B, 2, 1]
    vocal_tract: Array | None = None  # [B, 2]; None: frequencies stay


jax.tree_util.register_dataclass(EarNoise, ["gains", "vocal_tract"], [])


def draw_gains(key: RandomKey, batch: Arrays, level_db: tuple[float, ...]) -> Float[Array, "B 2 1"]:
    """Draws the factor of every track of a batch, uniformly in decibels."""
    return 10 ** (jax.random.uniform(key, (*batch["audio"].shape[:-1], 1), minval=level_db[0], maxval=level_db[1]) / 20)


def ear_noise(key: RandomKey, batch: Arrays, model: UniLS, objective: Objective) -> EarNoise:
    """Draws by how much the level and the frequencies of every track are moved."""
    gains, reach = draw_gains(key, batch, objective.noise.level_db), objective.noise.vocal_tract
    if not reach:
        return EarNoise(gains)
    drawn = jax.random.uniform(jax.random.fold_in(key, 1), batch["audio"].shape[:-1], minval=-reach, maxval=reach)
    return EarNoise(gains, jnp.exp(drawn))


def ear_loss(
    model: UniLS, batch: Arrays, noise: EarNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Computes the mean squared error of the articulators, standardised, of both people of pairs.

    People without any observed motion do not count, nor do channels that were not observed.
    """
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    audio = batch["audio"] if noise is None else batch["audio"] * noise.gains
    people_shape, ear = audio.shape[:-1], model.ear
    factors = None if noise is None or noise.vocal_tract is None else noise.vocal_tract.reshape(-1)
    pred = ear.articulators(audio.reshape(-1, audio.shape[-1]), batch["motion"].shape[-2], factors)
    error = jnp.square(pred.reshape(*people_shape, *pred.shape[1:]) - ear.standardized(batch["motion"])).mean(-2)
    if "observed" in batch:
        error = error * batch["observed"][..., list(ear.channels)]
    by_channel = jnp.sum(sample_weights[..., None] * error, axis=(0, 1))
    metrics = {f"mse_{channel}": by_channel[i] for i, channel in enumerate(ear.channels)}
    return by_channel.mean(), {"loss": by_channel.mean(), **metrics}


def init_ear(config: Run, shapes: Params, data: WindowData, start: Start) -> Params:
    """Returns the statistics of the ear's channels; its weights are drawn."""
    channels = list(config.model.ear.channels)
    mean, std = (np.asarray(values)[channels] for values in data.mixture.statistics(centred=config.data.centre_head))
    return {f"{PREFIX}channel_mean": mean, f"{PREFIX}channel_std": std}


def ear_of(config: Run, start: Start) -> Params:
    """Returns the parameters of the ear that a dialogue's config names; none without an ear.

    Raises UserError where it names none, and where the ear is of other sizes or another basis.
    """
    wanted, path = config.model.ear, config.audio_encoder
    if wanted is None:
        return {}
    if not path:
        raise UserError("a dialogue with model.ear needs a trained one: set --config.audio_encoder to its workdir")
    if not Path(path).exists():
        raise UserError(f"config.audio_encoder {path!r} does not exist; give the workdir of an ear (`smoke/ear`)")
    found = start.load_checkpoint(path, "ear")
    problems = [
        f"ear.{name} is {getattr(found.config.ear, name)} in it and {value} in the config"
        for name, value in vars(wanted).items()
        if getattr(found.config.ear, name) != value
    ]
    if found.expression_basis != config.expression_basis:
        problems.append(f"its motion is of the {found.expression_basis!r} basis, the config's of another")
    if problems:
        raise UserError(f"ear {path} does not fit: {'; '.join(problems)}; use the config that it was trained with")
    return found.params


EAR = Stage(
    "ear",
    None,
    "pair",
    r"ear/(context|hidden|blocks|out)/.*",
    ear_loss,
    ear_noise,
    item_frames=lambda config: 2 * config.window.frames,
    init=init_ear,
    generates=False,
)
