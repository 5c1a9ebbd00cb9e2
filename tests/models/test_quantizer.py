"""The quantiser: resize matrices, bits, features, flips, and gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.models.quantizer import (
    area_matrix,
    area_pool,
    draw_flips,
    full_features,
    l2_normalize,
    linear_matrix,
    next_scale_inputs,
    quantize,
    scale_slices,
    to_codes,
    upsample,
)

SCALES = (1, 4, 20)
quantize_jit = jax.jit(quantize, static_argnums=1)


def latent(seed: int = 0, batch: int = 3, channels: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, SCALES[-1], channels))


def test_area_matrix_averages_overlapping_bins():
    third = 1 / 3
    np.testing.assert_allclose(area_matrix(5, 2), [[third, third, third, 0, 0], [0, 0, third, third, third]])


def test_linear_matrix_has_half_pixel_centres_and_clamped_edges():
    np.testing.assert_allclose(linear_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


@pytest.mark.parametrize("make", [area_matrix, linear_matrix])
@pytest.mark.parametrize(("from_frames", "to_frames"), [(1, 7), (7, 1), (5, 100), (100, 25), (7, 3)])
def test_resizing_keeps_constants(make, from_frames, to_frames):
    np.testing.assert_allclose(make(from_frames, to_frames).sum(1), np.ones(to_frames), atol=1e-6)


@pytest.mark.parametrize("resize", [area_pool, upsample])
def test_resizing_to_the_same_length_is_the_identity(resize):
    x = latent()
    assert resize(x, x.shape[1]) is x


def test_scales_stand_one_after_the_other():
    assert scale_slices((1, 5, 25)) == [slice(0, 1), slice(1, 6), slice(6, 31)]


def test_codes_lie_on_the_unit_sphere():
    codes = to_codes(jnp.array([[[0, 1, 1, 0]]]))
    np.testing.assert_array_equal(codes, [[[-0.5, 0.5, 0.5, -0.5]]])


def test_features_are_those_of_the_bits():
    quantized = quantize_jit(latent(), SCALES)
    np.testing.assert_allclose(quantized.features, full_features(quantized.bits, SCALES), atol=1e-6)


def test_the_first_scale_is_the_sign_of_the_mean():
    x = latent()
    np.testing.assert_array_equal(quantize_jit(x, SCALES).bits[:, 0], x.mean(1) > 0)


def test_gradient_is_that_of_the_normalised_latent():
    x, c = latent(), latent(1)
    scales = (SCALES[-1],)
    straight = jax.grad(lambda x: jnp.sum(quantize(x, scales).features * c))(x)
    np.testing.assert_allclose(straight, jax.grad(lambda x: jnp.sum(l2_normalize(x) * c))(x), atol=1e-6)


@pytest.mark.parametrize("case", ["saturated", "zero", "huge"])
def test_jitted_losses_and_gradients_stay_finite(case):
    # Saturated tokens: one channel carries all of the vector, so that a sigmoid is exactly 0 or 1 in float32.
    axis = jnp.zeros((2, SCALES[-1], 2)).at[..., 0].set(1.0)
    x = {"saturated": axis, "zero": 0 * axis, "huge": 1e18 * axis}[case]
    value, grad = jax.jit(jax.value_and_grad(lambda x: quantize(x, SCALES).losses.sum()))(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


def test_flips_invert_bits_of_all_scales_but_the_last():
    x = latent()
    flips = jnp.zeros((3, sum(SCALES[:-1]), 8), bool).at[:, 0, :3].set(True).at[1, 2, 5].set(True)
    quantized = quantize_jit(x, SCALES, flips)
    last = scale_slices(SCALES)[-1]
    np.testing.assert_array_equal(quantized.flipped_bits[:, : last.start], quantized.bits[:, : last.start] ^ flips)
    np.testing.assert_array_equal(quantized.flipped_bits[:, last], quantized.bits[:, last])


def test_flips_move_the_residual_and_so_the_targets_of_later_scales_only():
    x = latent()
    flips = jnp.ones((3, sum(SCALES[:-1]), 8), bool)
    clean, noisy = quantize_jit(x, SCALES), quantize_jit(x, SCALES, flips)
    np.testing.assert_array_equal(noisy.bits[:, :1], clean.bits[:, :1])
    assert (noisy.bits[:, 1:] != clean.bits[:, 1:]).any()


def test_no_flips_are_the_clean_path():
    x = latent()
    clean = quantize_jit(x, SCALES)
    noisy = quantize_jit(x, SCALES, jnp.zeros((3, sum(SCALES[:-1]), 8), bool))
    for name in ("bits", "flipped_bits", "features", "losses"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(clean, name))


def test_inputs_follow_from_the_lower_scales_alone():
    bits = quantize_jit(latent(), SCALES).bits
    full = next_scale_inputs(bits, SCALES)
    assert full.shape == (3, sum(SCALES[1:]), 8)
    np.testing.assert_array_equal(next_scale_inputs(bits[:, :1], SCALES), full[:, : SCALES[1]])


def test_inputs_hold_the_pooled_sum_of_upsampled_codes():
    bits = quantize_jit(latent(), SCALES).bits
    codes = [upsample(to_codes(bits[:, tokens]), SCALES[-1]) for tokens in scale_slices(SCALES)]
    inputs = next_scale_inputs(bits, SCALES)
    np.testing.assert_allclose(inputs[:, : SCALES[1]], area_pool(codes[0], SCALES[1]), atol=1e-6)
    np.testing.assert_allclose(inputs[:, SCALES[1] :], codes[0] + codes[1], atol=1e-6)


def test_flip_rates_are_whole_percents_drawn_per_scale_for_the_whole_batch():
    scales = (50, 100, 200)
    draw = jax.jit(lambda key: draw_flips(key, (16,), 32, scales))
    rates = []
    for seed in range(20):
        flips = np.asarray(draw(jax.random.key(seed)))
        assert flips.shape == (16, 150, 32)
        rates += [flips[:, :50].mean(), flips[:, 50:].mean()]
        # One rate for the whole batch: every sample's share lies about the batch's.
        assert np.abs(flips[:, 50:].mean((1, 2)) - rates[-1]).max() < 0.04
    assert 0 <= min(rates) < 0.05
    assert 0.25 < max(rates) < 0.32
    assert np.mean(rates) == pytest.approx(0.15, abs=0.05)


def test_a_largest_rate_of_zero_flips_nothing():
    assert not draw_flips(jax.random.key(0), (4,), 8, SCALES, max_percent=0).any()
