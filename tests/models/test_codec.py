"""The codec: statistics, windows, features without gradients, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CODEC, SCALES, jitted, random_motion, tiny_model

from unils_jax.models.codec import Codec, CodecConfig, Statistic
from unils_jax.nn.params import merge, split


@pytest.fixture(scope="module")
def codec():
    return tiny_model("codec").codec


@pytest.fixture(scope="module")
def reconstruct(codec):
    graphdef, params = split(codec)
    return jax.jit(lambda motion: merge(graphdef, params).reconstruct(motion))


def test_normalised_motion_has_the_statistics_taken_out(codec):
    motion = codec.motion_mean[...] + 2 * codec.motion_std[...]
    np.testing.assert_allclose(codec.normalize(motion[None, None]), 2, rtol=1e-5)


def test_a_channel_that_never_moves_is_not_divided_by_zero(codec):
    graphdef, params = split(codec)
    still = merge(graphdef, {**params, "motion_std": jnp.zeros(108)})
    assert jnp.isfinite(still.normalize(random_motion(1, 3))).all()


def test_decoded_motion_has_the_statistics_put_back(codec):
    graphdef, params = split(codec)
    features = jax.random.normal(jax.random.key(0), (1, SCALES[-1], CODEC.code_dim))
    plain = merge(graphdef, {**params, "motion_mean": jnp.zeros(108), "motion_std": jnp.ones(108)})
    expected = (
        jitted(plain, Codec.decode, features) * params["motion_std"][None, None] + params["motion_mean"][None, None]
    )
    np.testing.assert_allclose(jitted(codec, Codec.decode, features), expected, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 100, 101, 250])
def test_reconstruction_has_the_length_of_its_motion(reconstruct, frames):
    assert reconstruct(random_motion(2, frames)).shape == (2, frames, 108)


def test_windows_are_coded_alone(reconstruct):
    motion = random_motion(1, 250)
    changed = reconstruct(motion.at[:, 200:].add(1.0))
    np.testing.assert_array_equal(changed[:, :200], reconstruct(motion)[:, :200])
    assert not np.allclose(changed[:, 200:], reconstruct(motion)[:, 200:])


def test_the_last_window_is_padded_with_zero_motion(reconstruct):
    motion = random_motion(1, 250)
    padded = jnp.concatenate([motion, jnp.zeros((1, 50, 108))], axis=1)
    np.testing.assert_allclose(reconstruct(motion), reconstruct(padded)[:, :250], atol=1e-6)


def test_features_carry_no_gradient(codec):
    graphdef, params = split(codec)
    grads = jax.jit(jax.grad(lambda p, x: merge(graphdef, p).features(x).sum()))(params, random_motion(1, 100))
    assert all(not value.any() for value in grads.values())


def test_straight_through_features_carry_a_gradient_to_the_encoder(codec):
    graphdef, params = split(codec)
    grads = jax.jit(jax.grad(lambda p, x: merge(graphdef, p)(x)[0].std()))(params, random_motion(1, 100))
    assert grads["encoder/inp/kernel"].any()
    assert grads["decoder/out/kernel"].any()


def test_the_statistics_are_no_parameters_of_training(codec):
    assert isinstance(codec.motion_mean, Statistic)
    assert not isinstance(codec.motion_mean, nnx.Param)


def test_the_output_layer_starts_small_and_without_bias():
    out = Codec(CODEC, rngs=nnx.Rngs(0)).decoder.out
    bound = 0.05 * np.sqrt(6 / (CODEC.width + CODEC.motion_dim))
    assert 0.98 * bound < jnp.abs(out.kernel[...]).max() <= bound
    assert not out.bias[...].any()


def test_the_papers_window_is_181_tokens_of_100_frames():
    assert (CodecConfig().num_tokens, CodecConfig().window_frames) == (181, 100)
