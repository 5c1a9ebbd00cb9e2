"""How near is near: one comparison for values, one for gradients."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unils_jax.checkpoints.torch_keys import torch_views
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import Params, merge, split
from unils_jax.systems.base import Arrays, Stage
from unils_jax.systems.unils.system import generator_logits

TABLE, LAYER, MODEL = 1e-6, 1e-5, 1e-4  # tolerances of constants and single operations, of a layer, of a whole model
GRADIENT = 1e-5  # of a gradient, relative to the largest entry of its tensor
TRAINED = 1e-4  # of weights after five updates: Adam amplifies rounding where a gradient is near zero
RECORDED = 1e-6  # of losses, norms and rates while training, relative


@dataclass(frozen=True)
class Pass:
    """A generator's forward and backward pass without noise: `loss` is the mean cross-entropy of its bits."""

    loss: jax.Array
    logits: jax.Array
    bits: jax.Array
    grads: Params


def people_first(x: jax.Array) -> jax.Array:
    """[B, 2, ...] of pairs -> [2B, ...], all first people, then all second ones, as in the goldens; else as it is."""
    return x if x.shape[1] != 2 else jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def pairs_first(x: jax.Array) -> jax.Array:
    """The way back, [2B, ...] -> [B, 2, ...]."""
    return jnp.swapaxes(x.reshape(2, -1, *x.shape[1:]), 0, 1)


def run_pass(stage: Stage, model: UniLS, batch: Arrays) -> Pass:
    """Both passes over a batch, compiled once; `stage` says what is differentiated."""
    graphdef, params = split(model)
    trainable, frozen = stage.split(params)

    def loss(trainable: Params, batch: Arrays) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits, bits = map(people_first, generator_logits(merge(graphdef, {**frozen, **trainable}), batch))
        return bit_cross_entropy(logits, bits).mean(), (logits, bits)

    (value, (logits, bits)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable, batch)
    return Pass(value, logits, bits, grads)


def assert_close(actual, expected, tolerance: float) -> None:
    """The largest error is within `tolerance`, relative to the reference's largest entry where that is above 1."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    error, size = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= tolerance * max(1.0, size), f"error {error:.2e} at magnitude {size:.2e}, tolerance {tolerance}"


def assert_relative(actual, expected, tolerance: float) -> None:
    """The largest error is within `tolerance` of the reference's largest entry, however small that is."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    error, size = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= tolerance * size, f"error {error:.2e} at magnitude {size:.2e}, tolerance {tolerance} of that"


def assert_bits_equal(actual, expected) -> None:
    """Not one bit differs."""
    actual, expected = np.asarray(actual).astype(bool), np.asarray(expected).astype(bool)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert (actual != expected).sum() == 0, f"{(actual != expected).sum()} of {expected.size} bits differ"


def assert_gradients_match(grads: dict, stage: str, outputs: dict[str, np.ndarray]) -> None:
    """The gradients of our parameters are the golden's `grad.*`: the same tensors, each within GRADIENT of its size."""
    expected = {key.removeprefix("grad."): value for key, value in outputs.items() if key.startswith("grad.")}
    by_key = dict(torch_views(grads, stage))
    found = {key.replace(".modules_to_save.default", ""): key for key in expected}
    assert set(by_key) == set(found)
    for key, value in by_key.items():
        try:
            assert_relative(value, expected[found[key]], GRADIENT)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}") from None
