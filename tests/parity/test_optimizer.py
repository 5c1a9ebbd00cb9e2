"""Schedule and moving average against the goldens. The five updates stand with their models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.compare import RECORDED, TABLE, assert_close, assert_relative
from unils_jax.training.optimizer import OptimizerConfig, learning_rate, update_ema


def test_learning_rate_matches_at_every_recorded_step(golden):
    case = golden("misc")
    settings = case.config["lr"]
    config = OptimizerConfig(
        learning_rate=settings["base"],
        warmup_steps=settings["warmup"],
        decay_steps=settings["decay_iter"],
        final_factor=settings["decay_rate"],
    )
    steps = jnp.asarray(case.outputs["lr_steps"], jnp.int32)
    rates = jax.jit(jax.vmap(lambda step: learning_rate(config, step)))(steps)
    for rate, expected in zip(np.asarray(rates), case.outputs["lr_values"], strict=True):
        assert_relative(rate, expected, RECORDED)


@pytest.mark.parametrize("decay", ["0.9999", "0.9"])
def test_moving_average_matches_and_copies_integers(golden, decay):
    case = golden("misc")
    names = ("w", "f", "i")
    ema = {name: jnp.asarray(_narrow(case.inputs[f"ema_init_{name}"])) for name in names}
    for step in range(len(case.inputs["ema_w"])):
        values = {name: jnp.asarray(_narrow(case.inputs[f"ema_{name}"][step])) for name in names}
        ema = update_ema(ema, values, float(decay))
    for name in ("w", "f"):
        assert_close(ema[name], case.outputs[f"ema_{decay}_{name}"], TABLE)
    np.testing.assert_array_equal(ema["i"], case.outputs[f"ema_{decay}_i"])


def _narrow(value: np.ndarray) -> np.ndarray:
    return value.astype(np.int32) if value.dtype == np.int64 else value
