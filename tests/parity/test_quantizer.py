"""The quantiser alone against the goldens: bits exact, losses, features and all three gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest

from parity.compare import GRADIENT, LAYER, TABLE, assert_bits_equal, assert_close, assert_relative
from unils_jax.models.quantizer import area_pool, l2_normalize, quantize, scale_loss, to_codes, upsample

SIZES = pytest.mark.parametrize("size", ["d8", "d32s"])


def scales_of(golden, size: str) -> tuple[int, ...]:
    return tuple(golden("bsq").config["patch"][size])


@pytest.fixture(scope="module")
def quantized(golden):
    """size -> what the jitted quantiser makes of the golden's latent."""

    @cache
    def run(size: str):
        return jax.jit(quantize, static_argnums=1)(golden("bsq").inputs[f"{size}_x"], scales_of(golden, size))

    return run


@SIZES
def test_bits_are_equal(golden, quantized, size):
    assert_bits_equal(quantized(size).bits, golden("bsq").outputs[f"{size}_bits"])


@SIZES
def test_quantized_features_match(golden, quantized, size):
    assert_close(quantized(size).features, golden("bsq").outputs[f"{size}_quantized"], LAYER)


@SIZES
def test_loss_of_every_scale_matches(golden, quantized, size):
    assert_close(quantized(size).losses, golden("bsq").outputs[f"{size}_losses"], LAYER)


@pytest.fixture(scope="module")
def gradient(golden):
    """size -> the gradient of `features_weight * sum(features * c) + losses_weight * sum(losses)`, compiled once."""

    @cache
    def compiled(size: str):
        c, scales = golden("bsq").inputs[f"{size}_c"], scales_of(golden, size)

        def objective(x, features_weight, losses_weight):
            quantized = quantize(x, scales)
            return features_weight * jnp.sum(quantized.features * c) + losses_weight * quantized.losses.sum()

        return jax.jit(jax.grad(objective))

    return compiled


@SIZES
@pytest.mark.parametrize(
    ("name", "features_weight", "losses_weight"), [("sum_qc", 1.0, 0.0), ("losses", 0.0, 1.0), ("both", 1.0, 1.0)]
)
def test_gradient_of_the_latent_matches(golden, gradient, size, name, features_weight, losses_weight):
    case = golden("bsq")
    actual = gradient(size)(case.inputs[f"{size}_x"], features_weight, losses_weight)
    assert_relative(actual, case.outputs[f"{size}_grad_{name}"], GRADIENT)


@SIZES
def test_normalised_latent_matches(golden, size):
    case = golden("bsq")
    assert_close(l2_normalize(jnp.asarray(case.inputs[f"{size}_x"])), case.outputs[f"{size}_normalized"], TABLE)


@SIZES
def test_a_single_scale_without_pooling_matches(golden, size):
    case = golden("bsq")
    z = l2_normalize(jnp.asarray(case.inputs[f"{size}_x"]))
    assert_bits_equal(z > 0, case.outputs[f"{size}_single_bits"])
    assert_close(to_codes(z > 0), case.outputs[f"{size}_single_quantized"], TABLE)
    assert_close(scale_loss(z, to_codes(z > 0)), case.outputs[f"{size}_single_loss"], LAYER)


@SIZES
def test_area_pooling_matches_at_every_scale(golden, size):
    case = golden("bsq")
    x = jnp.asarray(case.inputs[f"{size}_x"])
    for scale in scales_of(golden, size)[:-1]:
        assert_close(area_pool(x, scale), case.outputs[f"{size}_area_{x.shape[1]}to{scale}"], TABLE)


@SIZES
def test_linear_upsampling_matches_at_every_scale(golden, size):
    case = golden("bsq")
    frames = case.inputs[f"{size}_x"].shape[1]
    for scale in scales_of(golden, size)[:-1]:
        pooled = jnp.asarray(case.outputs[f"{size}_area_{frames}to{scale}"])
        assert_close(upsample(pooled, frames), case.outputs[f"{size}_linear_{scale}to{frames}"], TABLE)
