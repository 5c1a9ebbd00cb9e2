"""LoRA: surgery that changes nothing at first, adapters that alone are new, merging that changes nothing either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIGS, jitted, sample_keys, tiny_model

from unils_jax.models.prior import LORA_PATTERN, MotionPrior, PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.nn.layers import Linear
from unils_jax.nn.lora import LoRALinear, add_lora, merge_lora
from unils_jax.nn.params import abstract, split


def linear_and_lora(dropout_rate: float = 0.0) -> tuple[Linear, LoRALinear]:
    rngs = nnx.Rngs(0)
    base = Linear(6, 4, rngs=rngs)
    return base, LoRALinear(base, rank=2, alpha=6.0, dropout_rate=dropout_rate, rngs=rngs)


def trained(layer: LoRALinear) -> LoRALinear:
    layer.lora_b[...] = jax.random.normal(jax.random.key(1), layer.lora_b.shape)
    return layer


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (5, 6))


@pytest.mark.parametrize("key", [None, 0])
def test_an_adapter_starts_as_the_identity(x, key):
    base, lora = linear_and_lora(dropout_rate=0.5)
    np.testing.assert_array_equal(lora(x, key if key is None else sample_keys(key, len(x))), base(x))


def test_an_adapter_adds_alpha_over_rank_of_its_factors(x):
    base, lora = linear_and_lora()
    trained(lora)
    expected = base(x) + 3.0 * x @ lora.lora_a[...] @ lora.lora_b[...]
    np.testing.assert_allclose(lora(x), expected, atol=1e-5)


def test_dropout_falls_on_the_adapter_only_and_keeps_its_expectation():
    base, lora = linear_and_lora(dropout_rate=0.5)
    trained(lora)
    x = jnp.ones((200_000, 6))
    added = lora(x, sample_keys(2, len(x))) - base(x)
    # With six inputs at one half, a row in 64 loses all of them and is the base's.
    assert np.isclose(added, 0, atol=1e-6).all(1).mean() == pytest.approx(0.5**6, abs=0.005)
    clean = (lora(x[:1]) - base(x[:1]))[0]
    np.testing.assert_allclose(added.mean(0), clean, atol=0.03 * jnp.abs(clean).max())


def test_without_a_key_there_is_no_dropout(x):
    lora = trained(linear_and_lora(dropout_rate=0.9)[1])
    np.testing.assert_array_equal(lora(x), lora(x, None))
    np.testing.assert_array_equal(lora(x), trained(linear_and_lora()[1])(x))


def test_factors_start_like_a_linear_and_like_zero():
    lora = linear_and_lora()[1]
    assert 0 < jnp.abs(lora.lora_a[...]).max() <= 6**-0.5
    assert not lora.lora_b[...].any()


def test_surgery_leaves_kernels_and_biases_where_they_were():
    config = CONFIGS["dialogue"]
    plain = UniLSConfig(config.codec, config.prior, logmel=config.logmel)
    before, after = (abstract(lambda rngs, c=c: UniLS(c, rngs=rngs))[1] for c in (plain, config))
    added = set(after) - set(before)
    assert set(before) <= set(after)
    assert added and all(path.endswith(("/lora_a", "/lora_b")) for path in added)


def test_surgery_names_what_it_changed_and_spares_the_rest():
    config = CONFIGS["dialogue"]
    model = UniLS(UniLSConfig(config.codec, config.prior, logmel=config.logmel), rngs=nnx.Rngs(0))
    paths = add_lora(model.prior, LORA_PATTERN, rank=1, alpha=1.0, dropout_rate=0.0, rngs=nnx.Rngs(1))
    blocks = [
        f"blocks/{i}/{name}" for i in (0, 1) for name in ("self_attn/to_qkv", "self_attn/to_out", "mlp/up", "mlp/down")
    ]
    assert set(paths) == {"token_embed", "head", *blocks}
    assert isinstance(model.prior.head, LoRALinear)
    assert not isinstance(model.prior.blocks[0].own_audio_attn.q_proj, LoRALinear)
    assert not isinstance(model.codec.encoder.inp, LoRALinear)


def test_a_model_with_fresh_adapters_computes_what_it_did():
    config = CONFIGS["prior"]
    model = UniLS(config, rngs=nnx.Rngs(0))
    zeros = jnp.zeros((1, 100, 8)), jnp.ones((1, 100, 8)), jnp.ones((1, 0, 8))
    before = jitted(model.prior, MotionPrior.__call__, *zeros)
    add_lora(model.prior, LORA_PATTERN, rank=2, alpha=2.0, dropout_rate=0.1, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(jitted(model.prior, MotionPrior.__call__, *zeros), before)


def test_the_paper_adapts_34_layers_with_two_million_values():
    config = UniLSConfig(prior=PriorConfig(audio_dim=1024), lora=LoRAConfig())
    shapes = abstract(lambda rngs: UniLS(config, rngs=rngs))[1]
    factors = {path: shape for path, shape in shapes.items() if "/lora_" in path}
    assert len([path for path in factors if path.endswith("/lora_a")]) == 34
    assert sum(shape.size for shape in factors.values()) == 2_132_992


def test_merging_gives_the_same_layer_without_factors(x):
    _, lora = linear_and_lora()
    params = {f"layer/{path}": value for path, value in split(trained(lora))[1].items()}
    merged = merge_lora(params, lora.scale)
    assert set(merged) == {"layer/kernel", "layer/bias"}
    np.testing.assert_allclose(x @ merged["layer/kernel"] + merged["layer/bias"][None], lora(x), atol=1e-5)


def test_merging_leaves_layers_without_adapters_alone():
    params = split(tiny_model("dialogue"))[1]
    merged = merge_lora(params, 2.0)
    adapted = {path.removesuffix("/lora_a") for path in params if path.endswith("/lora_a")}
    same = [path for path in merged if path.removesuffix("/kernel") not in adapted]
    assert all(merged[path] is params[path] for path in same)
