"""What a training encoder draws: time masks, skipped layers, dropout; and resampling between its halves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unils_jax.models.encoder_noise import EncoderNoise, EncoderRates, draw_encoder_noise, draw_time_mask
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.nn.layers import resample
from unils_jax.nn.params import abstract, merge, split
from unils_jax.nn.stack import FLOAT32, Compute

pytestmark = pytest.mark.usefixtures("unoptimised")
CONFIG = Wav2Vec2Config(8, 2, 2, 16, conv_dims=(4,) * 7, pos_conv_kernel=4, pos_conv_groups=2)
QUIET = EncoderRates(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def features(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


@pytest.mark.parametrize(("frames", "to"), [(47, 24), (56, 29), (5, 9), (4, 4), (7, 1)])
def test_resampling_keeps_both_ends_and_is_linear_between(frames, to):
    x = features(0, 2, frames, 3)
    expected = np.stack([[np.interp(np.linspace(0, frames - 1, to), range(frames), row) for row in s.T] for s in x])
    if to == 1:
        expected = np.float64(x[:, :1]).swapaxes(1, 2)
    np.testing.assert_allclose(resample(x, to), expected.swapaxes(1, 2), atol=1e-5)


def runs(mask: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
    return list(edges[1::2] - edges[::2])


def test_time_masks_are_two_spans_of_ten_in_200_frames_and_equally_many_in_every_row():
    masks = np.asarray(jax.jit(lambda key: draw_time_mask(key, 64, 200, EncoderRates()))(jax.random.key(0)))
    counts = masks.sum(1)
    assert len(set(counts)) == 1 and 11 <= counts[0] <= 20
    lone = np.asarray(jax.jit(lambda key: draw_time_mask(key, 1, 200, EncoderRates()))(jax.random.key(1)))
    assert 11 <= sum(runs(lone[0])) <= 20 and min(runs(lone[0])) >= 10
    assert masks.any(0).mean() > 0.9 and not masks[:, 199].any()  # the last start is never drawn


def test_the_number_of_spans_is_rounded_at_random_to_its_mean():
    draw = jax.jit(jax.vmap(lambda key: draw_time_mask(key, 1, 1500, EncoderRates(mask_prob=0.05)).sum()))
    covered = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))
    assert covered.max() <= 80  # 7.5 spans: 7 or 8
    assert 68 < covered.mean() < 75.1  # less what overlaps


def test_too_few_frames_are_not_masked():
    assert not draw_time_mask(jax.random.key(0), 2, 11, EncoderRates()).any()


def noise_of(masked: np.ndarray | None = None, skipped: tuple[bool, bool] = (False, False)) -> EncoderNoise:
    masked = np.zeros((2, 6), bool) if masked is None else masked
    return EncoderNoise(jax.random.split(jax.random.key(0), 2), jnp.asarray(masked), jnp.array([skipped] * 2))


@functools.cache
def encoder_of(rates: EncoderRates) -> Wav2Vec2:
    graphdef, shapes = abstract(lambda rngs: Wav2Vec2(CONFIG, rates, rngs=rngs))
    rng = np.random.default_rng(0)
    return merge(graphdef, {p: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32) for p, s in shapes.items()})


@functools.partial(jax.jit, static_argnums=(0, 4))
def run(graphdef, params, x, noise, compute):
    return merge(graphdef, params).encode(x, compute, noise)


def encode(encoder: Wav2Vec2, noise: EncoderNoise | None, compute: Compute = FLOAT32, seed: int = 0) -> jax.Array:
    return run(*split(encoder), features(seed, 2, 6, 4), noise, compute)


def test_masked_frames_become_the_learned_vector():
    encoder = encoder_of(QUIET)
    everything = np.ones((2, 6), bool)
    np.testing.assert_array_equal(encode(encoder, noise_of(everything)), encode(encoder, noise_of(everything), seed=1))
    some = np.zeros((2, 6), bool)
    some[0, 2] = True
    masked, quiet = encode(encoder, noise_of(some)), encode(encoder, None)
    assert not np.allclose(masked[0], quiet[0], atol=1e-3)
    np.testing.assert_allclose(masked[1], quiet[1], atol=1e-6)


def test_a_skipped_layer_is_left_out():
    encoder = encoder_of(QUIET)
    shallow = nnx.clone(encoder)
    shallow.blocks = nnx.List([encoder.blocks[1]])
    np.testing.assert_allclose(encode(encoder, noise_of(skipped=(True, False))), encode(shallow, None), atol=1e-6)


def test_noise_is_the_same_unrolled_and_scanned_and_changes_the_features():
    encoder = encoder_of(EncoderRates())
    noise = draw_encoder_noise(jax.random.key(3), 2, 6, 2, EncoderRates(layer_drop=0.5))
    unrolled = encode(encoder, noise)
    np.testing.assert_allclose(encode(encoder, noise, Compute(scan_layers=True)), unrolled, atol=1e-5)
    assert not np.allclose(unrolled, encode(encoder, None), atol=1e-2)


def test_layers_are_skipped_for_a_whole_batch():
    draw = jax.jit(lambda key: draw_encoder_noise(key, 3, 30, 200, EncoderRates()).skipped)
    skipped = np.asarray(draw(jax.random.key(0)))
    assert (skipped == skipped[:1]).all()
    assert 0.04 < skipped.mean() < 0.16
