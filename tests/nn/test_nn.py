"""Attention, layers, drop-path, and a model as a flat dict of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIGS, sample_keys, tiny_model

from unils_jax.models.unils import UniLS
from unils_jax.nn.attention import attend, rotary_table, rotate
from unils_jax.nn.layers import MLP, LayerNorm, Linear, drop_path, split_key, token_init
from unils_jax.nn.params import abstract, merge, split


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_position_zero_is_not_rotated():
    x = normal(1, 3, 2, 4)
    np.testing.assert_array_equal(rotate(x, rotary_table(np.zeros(3), 4)), x)


def test_rotation_turns_neighbouring_channels_by_the_position():
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    rotated = rotate(x, rotary_table(np.array([2]), 4))[0, 0, 0]
    slow = 2 / 100  # the second pair's frequency is 10000 ** (-2 / 4)
    np.testing.assert_allclose(rotated, [np.cos(2), np.sin(2), -np.sin(slow), np.cos(slow)], atol=1e-6)


def test_scores_depend_on_the_distance_of_positions_only():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def score(query_position: int, key_position: int) -> float:
        rotated = [rotate(x, rotary_table(np.array([at]), 8)) for x, at in ((q, query_position), (k, key_position))]
        return float(jnp.vdot(*rotated))

    assert score(3, 7) == pytest.approx(score(13, 17), abs=1e-5)
    assert score(3, 7) != pytest.approx(score(7, 3), abs=1e-3)


def test_masked_keys_have_no_influence():
    q, k, v = (normal(1, 3, 2, 4, seed=seed) for seed in range(3))
    mask = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    changed = attend(q, k.at[:, 2].set(9.0), v.at[:, 2].set(9.0), mask)
    np.testing.assert_array_equal(changed[:, :2], attend(q, k, v, mask)[:, :2])
    assert not np.allclose(changed[:, 2], attend(q, k, v, mask)[:, 2])


def test_attention_of_equal_scores_averages_the_values():
    v = normal(1, 5, 2, 4)
    out = attend(jnp.zeros((1, 1, 2, 4)), normal(1, 5, 2, 4, seed=1), v)
    np.testing.assert_allclose(out[0, 0], v[0].mean(0).reshape(-1), atol=1e-6)


def test_layer_norm_gives_zero_mean_and_unit_deviation():
    y = LayerNorm(64, 1e-6)(3 + 5 * normal(2, 7, 64))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-5)


@pytest.mark.parametrize("layer", ["norm", "linear", "mlp"])
def test_layers_compute_in_the_dtype_of_their_input(layer):
    rngs = nnx.Rngs(0)
    layers = {"norm": LayerNorm(8, 1e-5), "linear": Linear(8, 8, rngs=rngs), "mlp": MLP(8, 8, norm_eps=1e-6, rngs=rngs)}
    assert layers[layer](normal(1, 2, 8).astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_is_drawn_uniformly_up_to_the_root_of_its_fan_in():
    linear = Linear(100, 400, rngs=nnx.Rngs(0))
    for values in (linear.kernel[...], linear.bias[...]):
        assert 0.098 < jnp.abs(values).max() <= 0.1
        assert jnp.std(values) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)


def test_learned_vectors_are_drawn_with_the_papers_deviation():
    vectors = token_init(512)(jax.random.key(0), (100, 512))
    assert float(vectors.std()) == pytest.approx(np.sqrt(1 / 512 / 3), rel=0.02)


def test_mlp_without_norm_sees_the_scale_of_its_input():
    x = normal(1, 3, 8)
    with_norm, without = (MLP(8, 16, norm_eps=eps, rngs=nnx.Rngs(0)) for eps in (1e-6, None))
    np.testing.assert_allclose(with_norm(x), with_norm(10 * x), atol=1e-4)
    assert not np.allclose(without(x), without(10 * x), atol=1e-1)


def test_drop_path_drops_whole_samples_and_scales_the_kept():
    x = 1 + jnp.abs(normal(200, 3, 5))
    y = drop_path(x, 0.25, sample_keys(1, len(x)))
    kept = np.asarray(y != 0)
    assert (kept.all((1, 2)) | ~kept.any((1, 2))).all()
    np.testing.assert_allclose(y[kept.all((1, 2))], x[kept.all((1, 2))] / 0.75, rtol=1e-6)


def test_drop_path_keeps_the_expectation():
    y = drop_path(jnp.ones((20_000, 1, 1)), 0.3, sample_keys(0, 20_000))
    assert float(y.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("rate", "key"), [(0.5, None), (0.0, 0)])
def test_drop_path_without_a_key_or_a_rate_is_the_identity(rate, key):
    x = normal(4, 2, 3)
    assert drop_path(x, rate, key if key is None else sample_keys(key, len(x))) is x


def test_no_key_splits_into_no_keys():
    assert split_key(None, 3) == [None, None, None]
    keys = jax.random.key_data(jnp.stack(split_key(sample_keys(0, 2), 3)))
    assert keys.shape[:2] == (3, 2)
    assert len(np.unique(keys.reshape(6, -1), axis=0)) == 6


def test_a_sample_draws_the_same_whatever_its_batch():
    x, keys = 1 + jnp.abs(normal(6, 3, 5)), sample_keys(0, 6)
    whole = drop_path(x, 0.5, keys)
    np.testing.assert_array_equal(drop_path(x[2:4], 0.5, keys[2:4]), whole[2:4])
    assert len({bool((y == 0).all()) for y in whole}) == 2


def test_split_and_merge_give_the_model_back():
    model = tiny_model("prior")
    graphdef, params = split(model)
    again = split(merge(graphdef, params))[1]
    assert list(again) == list(params)
    assert all(again[path] is value for path, value in params.items())


def test_paths_name_module_index_and_parameter():
    paths = set(split(tiny_model("prior"))[1])
    assert {"codec/encoder/blocks/0/mlp/up/kernel", "prior/blocks/1/self_attn/norm/scale"} <= paths


def test_abstract_has_the_shapes_of_the_model_and_no_arrays():
    _, shapes = abstract(lambda rngs: UniLS(CONFIGS["dialogue"], rngs=rngs))
    params = split(tiny_model("dialogue"))[1]
    assert {path: value.shape for path, value in shapes.items()} == {path: v.shape for path, v in params.items()}
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in shapes.values())
