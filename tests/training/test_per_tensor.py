"""Adam with a count for every tensor, against one Adam for each."""

import jax.numpy as jnp
import numpy as np

from unils_jax.training.optimizer import init_per_tensor, scale_by_adam, scale_by_per_tensor_adam

SETTINGS = (0.9, 0.999, 1e-8)


def gradients(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [{name: jnp.asarray(rng.normal(0, 1, 3), jnp.float32) for name in "ab"} for _ in range(count)]


def test_with_every_gradient_it_is_adam():
    plain, own = scale_by_adam(*SETTINGS), scale_by_per_tensor_adam(*SETTINGS)
    grads = gradients(3)
    state, other = plain.init(grads[0]), init_per_tensor(grads[0])
    for grad in grads:
        expected, state = plain.update(grad, state)
        found, other = own.update(grad, other)
        np.testing.assert_array_equal(found["a"], expected["a"])
    assert other.count == 3 and other.counts["b"] == 3


def test_a_tensor_without_gradient_stays_and_does_not_count():
    adam, grads = scale_by_per_tensor_adam(*SETTINGS), gradients(3)
    state = init_per_tensor(grads[0])
    found = []
    for grad, present in zip(grads, (True, False, True), strict=True):
        direction, state = adam.update(grad, state, present={"b": jnp.asarray(present)})
        found.append(direction["b"])
    assert not found[1].any() and state.counts == {"a": 3, "b": 2} and state.count == 3
    alone = init_per_tensor({"b": grads[0]["b"]})
    for i in (0, 2):
        expected, alone = adam.update({"b": grads[i]["b"]}, alone)
        np.testing.assert_array_equal(found[i], expected["b"])


def test_a_zero_gradient_counts():
    adam, grads = scale_by_per_tensor_adam(*SETTINGS), gradients(1)
    zero = {name: jnp.zeros(3) for name in "ab"}
    _, state = adam.update(zero, init_per_tensor(zero))
    after, state = adam.update(grads[0], state)
    first, _ = adam.update(grads[0], init_per_tensor(zero))
    assert state.counts["a"] == 2 and not np.allclose(after["a"], first["a"])


def test_a_rebuilt_optimiser_forgets():
    adam, grads = scale_by_per_tensor_adam(*SETTINGS), gradients(2)
    _, state = adam.update(grads[0], init_per_tensor(grads[0]))
    found, state = adam.update(grads[1], state, rebuild=True)
    expected, fresh = adam.update(grads[1], init_per_tensor(grads[0]))
    np.testing.assert_array_equal(found["a"], expected["a"])
    assert state.counts == fresh.counts and state.count == 2
