"""Five optimiser updates on one batch, as the goldens record them: through the package's own train step."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from parity.compare import RECORDED, TRAINED, assert_close, assert_relative
from unils_jax.checkpoints.torch_keys import torch_views
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import Params, split
from unils_jax.systems.base import Arrays, Objective, Stage
from unils_jax.training.optimizer import OptimizerConfig
from unils_jax.training.step import init_state, make_train_step

GOLDEN_NAMES = {"loss": "loss", "grad_norm": "gradnorm", "learning_rate": "lr"}


@dataclass(frozen=True)
class Training:
    """What was recorded before every update, and all parameters after the last."""

    recorded: dict[str, np.ndarray]
    params: Params


def schedule(rates: np.ndarray) -> OptimizerConfig:
    """The settings behind recorded rates: they rise to the base rate, then fall on a line to a tenth of it."""
    rates = [float(rate) for rate in rates]
    warmup = int(np.argmax(rates))
    base, slope = rates[warmup], rates[warmup] - rates[warmup + 1]
    return OptimizerConfig(learning_rate=base, warmup_steps=warmup, decay_steps=warmup + round(0.9 * base / slope))


def run_updates(stage: Stage, model: UniLS, objective: Objective, batch: Arrays, outputs: dict) -> Training:
    """As many updates as the golden's record, without noise and dropout."""
    config = schedule(outputs["train5_lr"])
    quiet = replace(stage, draw=None)
    graphdef, params = split(model)
    trainable, frozen = stage.split(params)
    state, step = init_state(trainable, config), make_train_step(quiet, graphdef, objective, config)
    rows = []
    for _ in outputs["train5_lr"]:
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        rows.append(metrics)
    return Training({name: np.array([row[name] for row in rows]) for name in GOLDEN_NAMES}, state.params)


def assert_recorded(training: Training, outputs: dict, name: str) -> None:
    """Loss, norm or rate of every update."""
    expected = outputs[f"train5_{GOLDEN_NAMES[name]}"]
    for actual, value in zip(training.recorded[name], expected, strict=True):
        assert_relative(actual, value, RECORDED)


def assert_trained_weights_match(training: Training, outputs: dict, stage: str) -> None:
    """Every weight that the golden keeps of the last update."""
    trained = dict(torch_views(training.params, stage))
    expected = {key.removeprefix("train5_after."): v for key, v in outputs.items() if key.startswith("train5_after.")}
    assert expected
    for key, value in expected.items():
        assert_close(trained[key], value, TRAINED)
