"""The optimiser: schedule, Adam, decay, clipping, average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.training.optimizer import (
    OptimizerConfig,
    clip_gradients,
    learning_rate,
    make_optimizer,
    scale_by_adam,
    update_ema,
)

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_steps=110)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (5, 0.55), (10, 1.0), (60, 0.55), (110, 0.1), (111, 0.1), (10_000, 0.1)]
)
def test_the_rate_rises_from_a_tenth_and_falls_to_a_tenth(step, rate):
    assert float(learning_rate(CONFIG, step)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (0, 100), (5, 5), (10, 5)])
def test_degenerate_schedules_stay_between_a_tenth_and_the_full_rate(warmup, decay):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=warmup, decay_steps=decay)
    rates = np.array([learning_rate(config, step) for step in range(0, 120, 10)])
    assert ((rates >= 0.1 - 1e-6) & (rates <= 1 + 1e-6)).all()


def test_the_defaults_are_the_papers():
    assert OptimizerConfig() == OptimizerConfig(
        learning_rate=1e-4,
        warmup_steps=1000,
        decay_steps=200_000,
        final_factor=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        ema_decay=0.9999,
    )


def test_adam_matches_its_definition_in_float64():
    rng = np.random.default_rng(0)
    adam = scale_by_adam(0.9, 0.999, eps=1e-8)
    state = adam.init({"w": jnp.zeros(50)})
    m = v = np.zeros(50)
    for step in range(1, 6):
        grad = rng.normal(size=50).astype(np.float32)
        direction, state = adam.update({"w": jnp.asarray(grad)}, state)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad.astype(np.float64) ** 2
        expected = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(direction["w"], expected, atol=1e-6)


def test_the_first_update_is_the_rate_against_the_sign_of_the_gradient():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, weight_decay=0.0))
    params = {"w": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}
    grads = {"w": jnp.array([5.0, -0.01]), "bias": jnp.array([100.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-4)


@pytest.mark.parametrize("path", ["block/kernel", "block/bias", "norm/scale", "start_token"])
def test_weight_decay_shrinks_every_tensor(path):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, weight_decay=0.01))
    params = {path: jnp.full(3, 2.0)}
    updates, _ = optimizer.update({path: jnp.zeros(3)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates[path], -0.1 * 0.01 * 2.0, rtol=1e-5)


def test_a_large_gradient_is_scaled_to_the_norm_and_a_small_one_left():
    large, small = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
    clipped, norm = clip_gradients(large, 1.0)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-5)
    kept, norm = clip_gradients(small, 1.0)
    assert float(norm) == pytest.approx(0.5)
    np.testing.assert_array_equal(kept["a"], small["a"])


def test_zero_gradients_stay_finite():
    clipped, norm = clip_gradients({"a": jnp.zeros(3)}, 1.0)
    assert norm == 0
    assert jnp.isfinite(clipped["a"]).all()


def test_the_average_follows_floats_and_copies_integers():
    ema = update_ema(
        {"w": jnp.zeros(2), "count": jnp.array([1])}, {"w": jnp.array([1.0, -2.0]), "count": jnp.array([7])}, 0.9
    )
    np.testing.assert_allclose(ema["w"], [0.1, -0.2], rtol=1e-5)
    np.testing.assert_array_equal(ema["count"], [7])


def test_the_average_of_constant_weights_does_not_drift():
    update = jax.jit(lambda ema, params: update_ema(ema, params, 0.9999))
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)}
    ema = params
    for _ in range(100):
        ema = update(ema, params)
    np.testing.assert_allclose(ema["w"], params["w"], rtol=2e-5)
