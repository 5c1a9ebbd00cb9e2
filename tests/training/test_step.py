"""One step: what accumulation, missing channels, broken batches, precision, remat and scan do to it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIGS, random_motion, sample_keys, tiny_model
from tiny_runs import quick_compiles

from unils_jax.models.codec_losses import CodecLossWeights, mesh_losses, motion_losses, observed_sample_weights
from unils_jax.models.unils import UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.block import Block, BlockSizes
from unils_jax.nn.layers import MLP
from unils_jax.nn.params import abstract, merge, split
from unils_jax.nn.stack import Compute, run_blocks
from unils_jax.systems.base import Objective
from unils_jax.systems.registry import STAGES
from unils_jax.systems.unils.system import CODEC, DIALOGUE
from unils_jax.training.optimizer import OptimizerConfig, for_release_devices
from unils_jax.training.step import hold_frozen, init_state, make_eval_step, make_train_step, updates_done
from unils_jax.training.throughput.flops import count

CONFIG = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=100)
OBSERVED = np.ones((3, 108), np.float32)


@pytest.fixture(scope="module")
def codec():
    """Returns (step, fresh state, frozen) of the tiny codec, compiled once.

    Batches carry `observed` and `record`.
    """
    graphdef, params = split(tiny_model("codec"))
    trainable, frozen = CODEC.split(params)
    step = make_train_step(CODEC, graphdef, Objective(), CONFIG)
    return step, lambda: init_state(trainable, CONFIG), frozen


def take(codec, batches: list[dict]):
    """Takes steps on these batches; returns the state and the metrics of the last."""
    step, fresh, frozen = codec
    state = fresh()
    with quick_compiles():
        for batch in batches:
            state, metrics = step(state, frozen, batch, jax.random.key(0))
    return state, jax.device_get(metrics)


def motion_batch(observed: np.ndarray = OBSERVED, motion: np.ndarray | None = None) -> dict[str, np.ndarray]:
    motion = np.asarray(random_motion(3, 100)) if motion is None else motion
    return {"motion": motion, "observed": observed, "record": np.arange(3, dtype=np.int32)}


def test_a_batch_that_is_not_finite_is_taken_and_changes_nothing(codec):
    good = motion_batch()
    bad = motion_batch(motion=np.where(np.arange(108) == 5, np.nan, good["motion"]).astype(np.float32))
    once, last = take(codec, [good])
    state, metrics = take(codec, [good, bad])
    assert (metrics["finite"], metrics["skipped"], int(state.step), int(updates_done(state))) == (0, 1, 2, 1)
    assert (last["finite"], last["skipped"]) == (1, 0)
    for before, after in zip(jax.tree.leaves(once)[1:], jax.tree.leaves(state)[1:], strict=True):
        np.testing.assert_array_equal(before, after)
    # The schedule follows the updates: the next good batch is the second one.
    _, metrics = take(codec, [good, bad, good])
    assert (metrics["finite"], metrics["skipped"]) == (1, 1)
    assert metrics["learning_rate"] == pytest.approx(0.55e-3)


def test_what_was_not_observed_does_not_count_and_moves_no_weight(codec):
    observed = OBSERVED.copy()
    observed[2] = 0
    observed[:, 50:] = 0
    missing = np.array(random_motion(3, 100))
    missing[2] = 0
    state, metrics = take(codec, [motion_batch(observed, missing)])
    other = missing.copy()
    other[2] = 3 * np.asarray(random_motion(100, seed=7))  # an item with no motion at all
    again, same = take(codec, [motion_batch(observed, other)])
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-6)
    gradient = state.opt_state[0].mu
    for path in ("codec/decoder/out/bias", "codec/encoder/inp/kernel"):
        largest = np.abs(gradient[path]).max()
        np.testing.assert_allclose(again.opt_state[0].mu[path], gradient[path], atol=1e-5 * largest)
    bias = np.asarray(gradient["codec/decoder/out/bias"])
    assert not bias[50:].any() and bias[:50].all()


def test_losses_of_missing_channels_are_those_of_the_observed_ones():
    pred, target, weights = random_motion(2, 30), random_motion(2, 30, seed=1), CodecLossWeights()
    observed = jnp.ones((2, 108)).at[0, 60:103].set(0)
    losses = motion_losses(pred, target, weights, observed_sample_weights(observed))
    error = np.abs(np.asarray(pred - target))
    seen = np.concatenate([error[0][:, np.r_[0:60, 103:108]].ravel(), error[1].ravel()])
    np.testing.assert_allclose(losses["motion"], seen.mean(), rtol=1e-5)
    pose = np.concatenate([error[0][:, [103]].ravel(), error[1][:, 100:104].ravel()])
    np.testing.assert_allclose(losses["pose"], 8 * pose.mean(), rtol=1e-5)
    assert all(
        value == 0 for value in motion_losses(pred, target, weights, observed_sample_weights(0 * observed)).values()
    )


def test_shares_sum_to_one_and_are_zero_where_nothing_is_observed():
    observed = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 2, 108)), jnp.float32).at[1, 0].set(0)
    sample_weights = observed_sample_weights(observed)
    assert sample_weights.items.shape == (3, 2)
    for share in (sample_weights.items, sample_weights.channels, sample_weights.pose):
        assert float(share.sum()) == pytest.approx(1, rel=1e-5)
        assert not share[1, 0].any()


def test_artalks_terms_are_of_the_vertices_velocity_in_metres():
    pred, target = random_motion(2, 8), random_motion(2, 8, seed=1)
    weights = CodecLossWeights(mesh_velocity=1e7, mesh_smooth=1e5)
    vertices = lambda motion: 1e-3 * motion[..., :12].reshape(*motion.shape[:2], 4, 3)  # noqa: E731
    terms = mesh_losses(vertices, np.array([0, 1]), pred, target, weights, jnp.array([1.0, 0.0]), 2)
    p, t = (1e-3 * np.float64(x)[0, :, :12] for x in (pred, target))
    assert float(terms["mesh_velocity"]) == pytest.approx(1e7 * np.square(np.diff(p - t, axis=0)).mean(), rel=1e-5)
    assert float(terms["mesh_smooth"]) == pytest.approx(1e5 * np.square(np.diff(p, 2, axis=0)).mean(), rel=1e-5)
    plain = mesh_losses(vertices, np.array([0, 1]), pred, target, CodecLossWeights(), jnp.array([1.0, 0.0]), 2)
    assert set(plain) == {"mesh", "lips"} and float(plain["mesh"]) == pytest.approx(float(terms["mesh"]), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 10])
def test_mesh_losses_in_chunks_of_time_are_those_of_the_whole(chunk):
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 0.01, (108, 21)).astype(np.float32)
    pred, target = random_motion(2, 20), random_motion(2, 20, seed=1)
    sample_weights, lips = jnp.array([0.25, 0.75]), np.array([1, 3, 3])

    def losses(pred, chunk):
        vertices = lambda motion: jnp.tanh(motion @ matrix).reshape(*motion.shape[:-1], 7, 3)  # noqa: E731
        terms = mesh_losses(vertices, lips, pred, target, CodecLossWeights(), sample_weights, chunk)
        return terms["mesh"] + terms["lips"], terms

    (_, whole), expected = jax.value_and_grad(losses, has_aux=True)(pred, 20)
    (_, terms), grad = jax.value_and_grad(losses, has_aux=True)(pred, chunk)
    np.testing.assert_allclose([terms["mesh"], terms["lips"]], [whole["mesh"], whole["lips"]], rtol=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.fixture(scope="module")
def stack():
    """Returns how to run three blocks that drop paths: loss and gradients for a `Compute`."""
    blocks = [
        split(Block(BlockSizes(8, 2, 16, norm_eps=1e-6, mlp_norm=True), drop_path_rate=rate, rngs=nnx.Rngs(i)))
        for i, rate in enumerate((0.0, 0.3, 0.6))
    ]
    graphdefs, weights = zip(*blocks, strict=True)
    x, keys = jax.random.normal(jax.random.key(0), (4, 5, 8)), [sample_keys(i, 4) for i in range(3)]
    rotary = (np.ones((5, 2), np.float32), np.zeros((5, 2), np.float32))

    def run(weights, compute):
        modules = [merge(graphdef, params) for graphdef, params in zip(graphdefs, weights, strict=True)]
        values = list(zip(keys, [module.drop_path_rate for module in modules], strict=True))
        call = lambda block, x, key, rate: block(x, rotary, None, None, key, rate)  # noqa: E731
        return jnp.sum(jnp.square(run_blocks(modules, x, call, values, compute)))

    def measured(compute):
        with quick_compiles():
            return jax.jit(jax.value_and_grad(run), static_argnums=1)(weights, compute)

    return measured


KEEPS_PRODUCTS = Compute(remat=True, remat_policy="dots_saveable")


@pytest.mark.parametrize(
    "compute", [Compute(remat=True), Compute(scan_layers=True), Compute(jnp.float32, True, True), KEEPS_PRODUCTS]
)
def test_remat_and_scan_change_nothing_noise_included(stack, compute):
    expected, grads = stack(Compute())
    value, found = stack(compute)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for actual, grad in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(actual, grad, atol=1e-5 * float(jnp.abs(grad).max()))


@pytest.mark.parametrize(("policy", "share"), [("nothing_saveable", 1), ("dots_saveable", 0), ("offload", 0)])
def test_products_that_a_policy_keeps_are_not_computed_again(policy, share):
    layers = [MLP(8, 16, norm_eps=None, rngs=nnx.Rngs(i)) for i in range(2)]
    x, call = jnp.ones((2, 3, 8)), lambda block, x: block(x)

    def loss(x):
        return run_blocks(layers, x, call, [()] * 2, Compute(remat=True, remat_policy=policy)).sum()

    # A block's last product is not needed again, whatever is kept: of a block's two, one is.
    assert count(jax.grad(loss), x).recomputed == share * count(loss, x).total / 2


def primitives(jaxpr, name: str) -> int:
    """Counts a primitive in a jaxpr, those of its calls included."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == name
        inner = [value for value in jax.tree.leaves(equation.params, is_leaf=is_jaxpr) if is_jaxpr(value)]
        count += sum(primitives(getattr(value, "jaxpr", value), name) for value in inner)
    return count


def is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("compute", [Compute(), Compute(remat=True)])
def test_the_encoder_runs_once_a_track_and_never_in_the_backward_pass(compute):
    base = CONFIGS["dialogue"]
    wav2vec2 = Wav2Vec2Config(8, 1, 1, 8, (4,) * 7, pos_conv_kernel=4, pos_conv_groups=2)
    config = UniLSConfig(base.codec, replace(base.prior, audio_dim=8), wav2vec2, lora=base.lora)
    graphdef, shapes = abstract(lambda rngs: UniLS(config, rngs=rngs))
    trainable, frozen = DIALOGUE.split(shapes)
    motion, audio = (jax.ShapeDtypeStruct((2, 2, *shape), jnp.float32) for shape in ((100, 108), (64_000,)))
    batch = {"motion": motion, "prev": motion, "style": motion, "audio": audio}
    step = make_train_step(DIALOGUE, graphdef, Objective(compute=compute), CONFIG)
    state = jax.eval_shape(lambda params: init_state(params, CONFIG), trainable)
    jaxpr = step.trace(state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0))).jaxpr
    assert primitives(jaxpr.jaxpr, "conv_general_dilated") == len(wav2vec2.conv_kernels) + 1


def test_what_is_frozen_is_held_in_the_compute_dtype_but_for_codec_and_norms():
    for stage in ("prior", "dialogue"):
        frozen = STAGES[stage].split(split(tiny_model(stage))[1])[1]
        held = hold_frozen(frozen, "bfloat16")
        narrow = {path for path, value in held.items() if value.dtype == jnp.bfloat16}
        kept = set(held) - narrow
        assert all(path.startswith("codec/") or "norm/" in path for path in kept)
        assert not any(path.startswith("codec/") or "norm/" in path for path in narrow)
    assert {"prior/head/kernel", "prior/start_token", "prior/blocks/0/mlp/up/bias"} <= narrow
    assert all(value.dtype == jnp.float32 for value in hold_frozen(frozen, "float32").values())


@pytest.mark.slow
def test_holding_the_frozen_in_the_compute_dtype_changes_no_loss():
    graphdef, params = split(tiny_model("dialogue"))
    trainable, frozen = DIALOGUE.split(params)
    evaluate = make_eval_step(DIALOGUE, graphdef, Objective(compute=Compute(jnp.bfloat16)))
    batch = {name: random_motion(2, 2, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}
    batch["audio"] = 0.1 * jax.random.normal(jax.random.key(0), (2, 2, 64_000))
    held, whole = (evaluate(trainable, part, batch) for part in (hold_frozen(frozen, jnp.bfloat16), frozen))
    assert held["loss"] == whole["loss"]


def test_the_releases_rule_for_four_devices():
    config = OptimizerConfig(release_devices=4)
    rule = for_release_devices(config)
    assert (rule.learning_rate, rule.warmup_steps, rule.decay_steps) == (4e-4, 250, 50_000)
    assert rule.ema_decay == pytest.approx(0.9996, abs=1e-6)
    assert rule.release_devices == 1 and for_release_devices(rule) == rule
