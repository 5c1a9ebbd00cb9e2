"""Multi-head attention and post-norm layers: against formulas written out, dropout, biases, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import jitted, sample_keys

from unils_jax.nn.params import merge, split
from unils_jax.nn.postnorm import DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention

DIM, HEADS = 8, 2


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def randomised(module: nnx.Module) -> nnx.Module:
    """Returns the module with random parameters: no bias zero, no norm trivial."""
    graphdef, params = split(module)
    rng = np.random.default_rng(0)
    return merge(graphdef, {p: jnp.asarray(rng.normal(0, 0.4, v.shape), jnp.float32) for p, v in params.items()})


def attention_by_hand(attention: MultiHeadAttention, x, memory, bias=0.0) -> np.ndarray:
    """Computes every head apart, in float64, from torch's [3D, D] weight."""
    weight, offset = np.float64(attention.in_proj.kernel[...]).T, np.float64(attention.in_proj.bias[...])
    width, outs = DIM // HEADS, []
    for head in range(HEADS):
        rows = [slice(part * DIM + head * width, part * DIM + (head + 1) * width) for part in range(3)]
        q, k, v = (s @ weight[r].T + offset[r] for s, r in zip((x, memory, memory), rows, strict=True))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(width) + bias
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        outs.append(weights @ v)
    out = attention.out_proj
    return np.concatenate(outs, -1) @ np.float64(out.kernel[...]) + np.float64(out.bias[...])


@pytest.mark.parametrize("frames", [5, 7])
def test_attention_is_that_of_every_head_by_itself(frames):
    attention = randomised(MultiHeadAttention(DIM, HEADS, rngs=nnx.Rngs(0)))
    x, memory = normal(2, 5, DIM), normal(2, frames, DIM, seed=1)
    bias = normal(1, 1, 5, frames, seed=2)
    expected = attention_by_hand(attention, np.float64(x), np.float64(memory), np.float64(bias[0, 0]))
    actual = jitted(attention, lambda attention, *arguments: attention(*arguments), x, memory, bias)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_without_memory_looks_at_its_queries():
    attention = randomised(MultiHeadAttention(DIM, HEADS, rngs=nnx.Rngs(0)))
    x = normal(2, 5, DIM)
    np.testing.assert_allclose(attention(x), attention(x, x), atol=1e-6)


def test_a_bias_of_minus_infinity_hides_a_key():
    attention = randomised(MultiHeadAttention(DIM, HEADS, rngs=nnx.Rngs(0)))
    x, causal = normal(1, 4, DIM), np.where(np.tri(4, dtype=bool), 0, -np.inf)[None, None].astype(np.float32)
    changed = x.at[:, 3].set(9.0)
    np.testing.assert_array_equal(attention(changed, None, causal)[:, :3], attention(x, None, causal)[:, :3])
    assert not np.allclose(attention(changed)[:, :3], attention(x)[:, :3], atol=1e-3)


def norm_by_hand(norm, x: np.ndarray) -> np.ndarray:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * np.float64(norm.scale[...]) + np.float64(norm.bias[...])


def mlp_by_hand(mlp: FeedForward, x: np.ndarray) -> np.ndarray:
    up = np.maximum(x @ np.float64(mlp.up.kernel[...]) + np.float64(mlp.up.bias[...]), 0)
    return up @ np.float64(mlp.down.kernel[...]) + np.float64(mlp.down.bias[...])


def test_layers_normalise_after_every_residual():
    encoder, decoder = (randomised(kind(DIM, HEADS, 16, rngs=nnx.Rngs(0))) for kind in (EncoderLayer, DecoderLayer))
    x, memory = np.float64(normal(2, 5, DIM)), np.float64(normal(2, 3, DIM, seed=1))
    for layer in (encoder, decoder):
        y = norm_by_hand(layer.self_norm, x + attention_by_hand(layer.self_attn, x, x))
        if layer is decoder:
            y = norm_by_hand(layer.cross_norm, y + attention_by_hand(layer.cross_attn, y, memory))
        y = norm_by_hand(layer.mlp_norm, y + mlp_by_hand(layer.mlp, y))
        given = (jnp.float32(x),) if layer is encoder else (jnp.float32(x), jnp.float32(memory))
        np.testing.assert_allclose(jitted(layer, lambda layer, *x: layer(*x), *given), y, atol=1e-5)


def test_dropout_needs_a_key_and_a_rate_and_keeps_the_expectation():
    layer = randomised(DecoderLayer(DIM, HEADS, 16, dropout_rate=0.2, rngs=nnx.Rngs(0)))
    many = jnp.broadcast_to(normal(1, 3, DIM), (4000, 3, DIM))

    def branch(layer, x, key):
        return layer.mlp(x, key)

    quiet, noisy = jitted(layer, branch, many[:1], None), jitted(layer, branch, many, sample_keys(0, 4000))
    np.testing.assert_allclose(noisy.mean(0), quiet[0], atol=0.05)
    assert float(noisy.std(0).max()) > 0.1
    again = jitted(layer, lambda layer, x, key: layer(x, x, key=key), many[:2], sample_keys(0, 2))
    assert not np.allclose(again[0], again[1], atol=1e-3)
    layer = DecoderLayer(DIM, HEADS, 16, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(many[:2], many[:2], key=sample_keys(0, 2)), layer(many[:2], many[:2]))


def test_attention_starts_as_torchs():
    params = split(MultiHeadAttention(200, HEADS, rngs=nnx.Rngs(0)))[1]
    assert not params["in_proj/bias"].any() and not params["out_proj/bias"].any()
    assert 0.99 < jnp.abs(params["in_proj/kernel"]).max() / np.sqrt(6 / 800) <= 1
    assert 0.99 < jnp.abs(params["out_proj/kernel"]).max() * np.sqrt(200) <= 1
