"""Counted products against hand formulas and XLA's own count where nothing is scanned."""

import jax
import jax.numpy as jnp
import pytest

from unils_jax.training.throughput.flops import count, matrix_peak


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_a_batched_product_is_two_flop_a_multiply_add():
    work = count(lambda a, b: jnp.einsum("Bij,Bjk->Bik", a, b), shape(3, 4, 5), shape(3, 5, 7))
    assert work.total == work.model == 2 * 3 * 4 * 5 * 7
    assert work.backward == work.recomputed == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_strided_convolution_is_its_outputs_times_its_taps(groups):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (3,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
        )

    outputs = (50 - 5) // 3 + 1
    assert count(conv, shape(2, 50, 8), shape(5, 8 // groups, 6)).total == 2 * 2 * outputs * 6 * 5 * 8 // groups


def test_the_gradient_of_a_convolution_is_two_more_of_it():
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")).sum()

    arguments = shape(2, 41, 4), shape(3, 4, 6)
    forward = count(conv, *arguments).total
    # Rounded up where the stride does not divide the input's frames.
    assert count(jax.grad(conv, (0, 1)), *arguments).total == pytest.approx(3 * forward, rel=0.03)


def layers(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


def test_a_scan_counts_as_often_as_it_runs_through_jit_and_nested():
    def scanned(x, w):
        inner = jax.jit(lambda x, _: (layers(x, w), None))
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=3)[0], None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=5)[0]

    assert count(jax.jit(scanned), shape(2, 4), shape(4, 4)).total == 15 * 2 * 2 * 4 * 4


def test_branches_count_as_the_dearest():
    def branching(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert count(branching, flag, shape(2, 4), shape(4, 4)).total == 2 * 2 * 2 * 4 * 4


def test_a_while_loop_with_products_is_refused_and_one_without_is_not():
    def until(x, w, body):
        return jax.lax.while_loop(lambda x: x.sum() < 1, body, x)

    assert count(lambda x: until(x, x, lambda x: x + 1), shape(4, 4)).total == 0
    with pytest.raises(ValueError, match="while"):
        count(lambda x, w: until(x, w, lambda x: x @ w), shape(4, 4), shape(4, 4))


def test_a_custom_gradient_s_products_count():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    forward = 2 * 2 * 4 * 4
    assert count(product, shape(2, 4), shape(4, 4)).total == forward
    loss = lambda x, w: product(x, w).sum()  # noqa: E731
    assert count(jax.grad(loss, (0, 1)), shape(2, 4), shape(4, 4)).total == 3 * forward


def test_recomputation_and_backward_are_told_apart():
    def loss(w, x, *, remat):
        block = jax.checkpoint(layers) if remat else layers
        x = jax.lax.stop_gradient(layers(x, w))
        for _ in range(2):
            x = block(x, w)
        return x.sum()

    forward = 2 * 2 * 4 * 4
    # Three products forward; backward two a block but for the first block's input, which needs no gradient.
    plain = count(lambda w, x: jax.grad(loss)(w, x, remat=False), shape(4, 4), shape(2, 4))
    assert (plain.total, plain.backward, plain.recomputed) == (6 * forward, 3 * forward, 0)
    again = count(lambda w, x: jax.grad(loss)(w, x, remat=True), shape(4, 4), shape(2, 4))
    assert (again.model, again.backward) == (plain.model, plain.backward)
    assert again.recomputed == again.total - plain.total > 0


def test_scopes_are_found_inside_jit_and_gradients():
    def loss(w, x):
        with jax.named_scope("encoder"):
            x = jax.jit(layers)(x, w)
        with jax.named_scope("head"):
            return layers(x, w).sum()

    work = count(jax.grad(loss), shape(4, 4), shape(2, 4))
    forward = 2 * 2 * 4 * 4
    assert work.within("head") == 3 * forward and work.within("encoder") == 2 * forward
    assert work.within("head") + work.within("encoder") == work.total
    assert work.within("enc") == 0


def test_an_unrolled_model_has_the_work_that_xla_counts():
    def model(x, w, kernel):
        x = jax.lax.conv_general_dilated(x, kernel, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return jnp.einsum("BLD,DE,FE->BLF", x, w, w)

    arguments = shape(2, 101, 16), shape(32, 64), shape(5, 16, 32)
    xla = jax.jit(model).lower(*arguments).compile().cost_analysis()["flops"]
    assert count(model, *arguments).total == pytest.approx(xla, rel=1e-3)


def test_a_measured_peak_is_that_of_a_computer():
    assert 1e8 < matrix_peak(jnp.float32, 64, rounds=1) < 1e16
