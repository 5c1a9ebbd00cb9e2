"""The stages: what trains, how pairs become people, what noise does, and what the losses report."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_flame_asset
from tiny_models import CODE_DIM, CONFIGS, SCALES, jitted, random_motion, tiny_model

from unils_jax.models.codec_losses import CodecLossWeights, motion_losses, observed_sample_weights, vertex_losses
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import scale_slices, to_codes, upsample
from unils_jax.nn.params import merge, split
from unils_jax.systems.base import NoiseRates, Objective
from unils_jax.systems.registry import STAGES
from unils_jax.systems.unils.system import CODEC, DIALOGUE, PRIOR, StepNoise, generator_logits, sample_noise

NUM_FLIPS = sum(SCALES[:-1])


def solo(batch: int = 2) -> dict[str, jax.Array]:
    return {name: random_motion(batch, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}


def pairs(batch: int = 2) -> dict[str, jax.Array]:
    motions = {name: random_motion(batch, 2, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}
    return {**motions, "audio": 0.1 * jax.random.normal(jax.random.key(0), (batch, 2, 64_000))}


def noise(people: tuple[int, ...], *dropped: str) -> StepNoise:
    """Drops these conditions of every sample and flips nothing."""
    drops = {
        name: jnp.full((*people, 1, 1), name in dropped)
        for name in ("drop_style", "drop_prev", "drop_own", "drop_other")
    }
    return StepNoise(**drops, flips=jnp.zeros((*people, NUM_FLIPS, CODE_DIM), bool))


@pytest.fixture(scope="module")
def solo_logits():
    """(batch, noise or none at all) -> logits and target bits of two people, each alone."""
    graphdef, params = split(tiny_model("prior"))
    compiled = jax.jit(lambda batch, noise: generator_logits(merge(graphdef, params), batch, noise))
    return lambda batch, drawn=None: compiled(batch, drawn or noise((2,)))


@pytest.fixture(scope="module")
def pair_logits():
    """(batch, noise or none at all) -> logits and target bits of two pairs."""
    graphdef, params = split(tiny_model("dialogue"))
    compiled = jax.jit(lambda batch, noise: generator_logits(merge(graphdef, params), batch, noise))
    return lambda batch, drawn=None: compiled(batch, drawn or noise((2, 2)))


@pytest.fixture(scope="module")
def evaluate():
    """batch -> (loss, metrics) of the prior in evaluation mode."""
    graphdef, params = split(tiny_model("prior"))
    return jax.jit(lambda batch: PRIOR.loss(merge(graphdef, params), batch, None, Objective()))


@pytest.fixture(scope="module")
def train():
    """(batch, key) -> loss and gradients of all parameters, the frozen ones too, in training mode."""
    graphdef, params = split(tiny_model("prior"))

    def loss(params, batch, key):
        model = merge(graphdef, params)
        return PRIOR.loss(model, batch, PRIOR.draw(key, batch, model, Objective()), Objective())[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda batch, key: compiled(params, batch, key)


@pytest.mark.parametrize("stage", sorted(STAGES.keys() & CONFIGS.keys()))
def test_trainable_and_frozen_make_up_the_model(stage):
    params = split(tiny_model(stage))[1]
    trainable, frozen = STAGES[stage].split(params)
    assert not set(trainable) & set(frozen)
    assert {**trainable, **frozen} == params
    assert trainable


@pytest.mark.parametrize(
    ("stage", "trains", "stays"),
    [
        (CODEC, ["codec/encoder/inp/kernel", "codec/decoder/out/bias"], ["codec/motion_mean", "codec/motion_std"]),
        (PRIOR, ["prior/start_token", "prior/scale_embed", "prior/head_norm/scale"], ["codec/encoder/inp/kernel"]),
        (
            DIALOGUE,
            ["prior/head/lora_a", "prior/blocks/1/mlp/up/lora_b", "prior/blocks/0/other_audio_attn/audio_norm/bias"],
            ["prior/head/kernel", "prior/own_audio_embed", "prior/blocks/0/self_attn/norm/scale", "prior/style_embed"],
        ),
    ],
)
def test_a_stage_trains_these_and_leaves_those(stage, trains, stays):
    trainable, frozen = stage.split(split(tiny_model(stage.name))[1])
    assert set(trains) <= set(trainable)
    assert set(stays) <= set(frozen)


def test_every_stage_of_unils_but_the_first_has_the_one_before_as_parent():
    assert [(stage.name, stage.parent, stage.windows) for stage in STAGES.values()] == [
        ("codec", None, "solo"),
        ("prior", "codec", "solo"),
        ("dialogue", "prior", "pair"),
        ("ear", None, "pair"),
        ("artalk", "codec", "pair"),
        ("dualtalk", None, "partners"),
        ("unitalker", None, "speech"),
    ]


def test_the_people_of_a_pair_are_people_side_by_side(solo_logits, pair_logits):
    batch = pairs()
    logits, bits = pair_logits(batch)
    assert logits.shape == (2, 2, sum(SCALES), CODE_DIM, 2)
    for person in (0, 1):
        codec, motion = tiny_model("dialogue").codec, batch["motion"][:, person]
        expected = jitted(codec, lambda codec, motion: codec.quantize(motion).bits, motion)
        np.testing.assert_array_equal(bits[:, person], expected)


def test_swapping_the_people_of_a_pair_swaps_their_logits(pair_logits):
    batch = pairs()
    swapped = {name: value[:, ::-1] for name, value in batch.items()}
    logits, other = pair_logits(batch)[0], pair_logits(swapped)[0]
    np.testing.assert_allclose(other[:, ::-1], logits, atol=1e-5)


def test_a_person_hears_own_and_other_audio(pair_logits):
    batch = pairs()
    logits = pair_logits(batch)[0]
    tone = 0.1 * jnp.sin(jnp.arange(64_000) / 10)
    for person in (0, 1):
        changed = {**batch, "audio": batch["audio"].at[0, person].set(tone)}
        moved = jnp.abs(pair_logits(changed)[0] - logits).max((2, 3, 4)) > 1e-3
        np.testing.assert_array_equal(moved, [[True, True], [False, False]])  # both people of the first pair


@pytest.mark.parametrize("condition", ["style", "prev"])
def test_a_dropped_condition_is_zero_motion_before_the_codec(solo_logits, condition):
    batch = solo()
    dropped = solo_logits(batch, noise((2,), f"drop_{condition}"))[0]
    zero = {**batch, condition: jnp.zeros_like(batch[condition])}
    np.testing.assert_allclose(dropped, solo_logits(zero)[0], atol=1e-6)
    assert not np.allclose(dropped, solo_logits(batch)[0], atol=1e-3)


def test_drops_fall_on_their_own_sample(solo_logits):
    batch = solo()
    one = noise((2,))
    one = StepNoise(jnp.array([True, False])[:, None, None], one.drop_prev, one.drop_own, one.drop_other, one.flips)
    moved = jnp.abs(solo_logits(batch, one)[0] - solo_logits(batch)[0]).max((1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(moved, [True, False])


def test_with_both_tracks_dropped_audio_does_not_matter(pair_logits):
    batch, silent = pairs(), noise((2, 2), "drop_own", "drop_other")
    other_audio = {**batch, "audio": batch["audio"][::-1]}
    np.testing.assert_array_equal(pair_logits(batch, silent)[0], pair_logits(other_audio, silent)[0])
    one_left = noise((2, 2), "drop_own")
    assert not np.allclose(pair_logits(batch, one_left)[0], pair_logits(other_audio, one_left)[0], atol=1e-3)


def test_flips_change_inputs_and_later_targets_not_the_first_target(solo_logits):
    batch, drawn = solo(), noise((2,))
    flipped = StepNoise(drawn.drop_style, drawn.drop_prev, drawn.drop_own, drawn.drop_other, ~drawn.flips)
    (clean_logits, clean_bits), (logits, bits) = solo_logits(batch), solo_logits(batch, flipped)
    np.testing.assert_array_equal(bits[:, 0], clean_bits[:, 0])
    assert (bits != clean_bits).any()
    assert not np.allclose(logits, clean_logits, atol=1e-3)


def test_noise_is_drawn_at_its_rates_and_independently():
    rates = NoiseRates(style_drop=0.1, prev_drop=0.3, audio_drop=0.5, max_flip_percent=30)
    batch = {"motion": jnp.zeros((2000, 2, 1, 108))}
    drawn = sample_noise(jax.random.key(0), batch, tiny_model("dialogue"), Objective(noise=rates))
    drops = {name: np.asarray(getattr(drawn, name)) for name in ("drop_style", "drop_prev", "drop_own", "drop_other")}
    assert all(drop.shape == (2000, 2, 1, 1) for drop in drops.values())
    sample_weights = [drop.mean() for drop in drops.values()]
    np.testing.assert_allclose(sample_weights, [0.1, 0.3, 0.5, 0.5], atol=0.03)
    correlations = np.corrcoef([drop.ravel() for drop in drops.values()])
    assert np.abs(correlations[~np.eye(4, dtype=bool)]).max() < 0.06
    assert drawn.flips.shape == (2000, 2, NUM_FLIPS, CODE_DIM)
    assert 0 <= drawn.flips.mean() <= 0.31
    assert len(np.unique(jax.random.key_data(drawn.keys).reshape(4000, -1), axis=0)) == 4000


def test_training_loss_follows_its_key(train, evaluate):
    batch = solo()
    losses = [float(train(batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert float(evaluate(batch)[0]) not in losses


def test_evaluation_reports_cross_entropy_and_share_of_right_bits(evaluate, solo_logits):
    loss, metrics = evaluate(solo())
    logits, bits = solo_logits(solo())
    assert set(metrics) == {"loss", "bit_accuracy"}
    assert metrics["loss"] == loss
    np.testing.assert_allclose(loss, bit_cross_entropy(logits, bits).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["bit_accuracy"], ((logits[..., 1] > logits[..., 0]) == bits).mean(), atol=1e-3)


def test_gradients_reach_what_trains_and_never_the_codec(train):
    grads = train(solo(), jax.random.key(0))[1]
    assert not any(value.any() for path, value in grads.items() if path.startswith("codec/"))
    trainable, _ = PRIOR.split(grads)
    assert all(value.any() for value in trainable.values())


def test_without_a_head_the_codec_has_no_vertex_terms():
    model, batch = tiny_model("codec"), {"motion": random_motion(2, 100)}
    loss, metrics = jitted(model, lambda model, batch: CODEC.loss(model, batch, None, Objective()), batch)
    assert set(metrics) == {"loss", "vq", "motion", "pose", "velocity", "smooth", "l1"}
    terms = sum(value for name, value in metrics.items() if name not in ("loss", "l1"))
    np.testing.assert_allclose(loss, terms, rtol=1e-6)


def test_with_a_head_the_codec_sees_vertices(golden):
    objective = Objective(head=golden_flame_asset(golden))
    model, batch = tiny_model("codec"), {"motion": 0.1 * random_motion(1, 100)}
    metrics = jitted(model, lambda model, batch: CODEC.loss(model, batch, None, objective)[1], batch)
    assert metrics["mesh"] > 0 and metrics["lips"] > 0


def test_perfect_motion_costs_its_own_jerk_only():
    motion = random_motion(2, 30)
    losses = motion_losses(motion, motion, CodecLossWeights(), observed_sample_weights(jnp.ones((2, 108))))
    assert all(losses[name] == 0 for name in ("motion", "pose", "velocity"))
    second_difference = jnp.diff(motion[..., 100:104], 2, axis=1)
    np.testing.assert_allclose(losses["smooth"], 0.5 * jnp.square(second_difference).mean(), rtol=1e-5)


def test_a_constant_offset_costs_no_velocity():
    motion = random_motion(1, 30)
    losses = motion_losses(motion + 0.5, motion, CodecLossWeights(), observed_sample_weights(jnp.ones((1, 108))))
    np.testing.assert_allclose([losses["motion"], losses["pose"]], [0.5, 8 * 0.5], rtol=1e-5)
    assert losses["velocity"] < 1e-9


def test_a_coded_past_is_what_the_codec_makes_of_it_and_the_rest_stays(solo_logits):
    batch, drawn = solo(), noise((2,))
    coded = dataclasses.replace(drawn, coded_prev=jnp.array([True, False])[:, None, None])
    past = jitted(tiny_model("prior"), lambda model, prev: model.codec(prev)[0], batch["prev"])
    first, second = solo_logits(batch, coded)[0]
    expected = solo_logits(batch | {"prev": batch["prev"].at[0].set(past[0])}, drawn)[0]
    np.testing.assert_allclose(first, expected[0], atol=1e-5)
    np.testing.assert_array_equal(second, solo_logits(batch, drawn)[0][1])
    assert not np.allclose(first, solo_logits(batch, drawn)[0][0], atol=1e-3)


def test_drawing_coded_pasts_changes_no_other_draw():
    model, key = tiny_model("prior"), jax.random.key(0)
    plain = sample_noise(key, solo(), model, Objective())
    drawn = sample_noise(key, solo(), model, Objective(noise=NoiseRates(prev_coded=1.0)))
    assert plain.coded_prev is None and drawn.coded_prev.all()
    for name in ("drop_style", "drop_prev", "drop_own", "drop_other", "flips"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(plain, name))
    np.testing.assert_array_equal(*(jax.random.key_data(noise.keys) for noise in (drawn, plain)))


def test_our_terms_are_of_the_eyes_of_squares_and_of_all_velocities():
    pred, target = random_motion(2, 30), random_motion(2, 30, seed=1)
    observed = jnp.ones((2, 108)).at[0, 104:].set(0)  # the first person's eyes are not known
    weights = CodecLossWeights(eyes=4.0, motion_square=5.0, motion_velocity=30.0)
    losses = motion_losses(pred, target, weights, observed_sample_weights(observed))
    error = np.asarray(pred - target, np.float64)
    rows = [error[0][:, :104], error[1]]
    np.testing.assert_allclose(losses["eyes"], 4 * np.abs(error[1][:, 104:]).mean(), rtol=1e-5)
    squares = np.concatenate([np.square(row).ravel() for row in rows])
    np.testing.assert_allclose(losses["motion_square"], 5 * squares.mean(), rtol=1e-5)
    velocities = np.concatenate([np.square(np.diff(row, axis=0)).ravel() for row in rows])
    np.testing.assert_allclose(losses["motion_velocity"], 30 * velocities.mean(), rtol=1e-5)


def test_the_coarse_term_is_the_motion_terms_of_what_the_first_scales_decode_to():
    model, batch = tiny_model("codec"), {"motion": random_motion(2, 100)}
    weights = CodecLossWeights(eyes=4.0, motion_square=5.0, coarse=0.5, coarse_scales=2)

    def losses(model, batch):
        first = slice(0, sum(SCALES[:2]))
        codes = to_codes(model.codec.quantize(batch["motion"]).bits[:, first])
        coarse = sum(upsample(codes[:, tokens], 100) for tokens in scale_slices(SCALES[:2]))
        terms = motion_losses(
            model.codec.decode(coarse), batch["motion"], weights, observed_sample_weights(jnp.ones((2, 108)))
        )
        plain = CODEC.loss(model, batch, None, Objective(dataclasses.replace(weights, coarse=0.0)))[1]
        return 0.5 * sum(terms.values()), plain, CODEC.loss(model, batch, None, Objective(weights))[1]

    expected, plain, found = jitted(model, losses, batch)
    np.testing.assert_allclose(found["coarse"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], plain["loss"] + expected, rtol=1e-5)
    assert found.keys() - plain.keys() == {"coarse"}
    np.testing.assert_array_equal(found["motion"], plain["motion"])


def test_the_coarse_term_trains_the_encoder_and_counts_observed_channels_alone():
    graphdef, params = split(tiny_model("codec"))
    batch = {"motion": random_motion(1, 100), "observed": jnp.ones((1, 108)).at[:, 104:].set(0)}
    nothing = dict.fromkeys(("vq", "motion", "pose", "velocity", "smooth"), 0.0)
    weights = CodecLossWeights(**nothing, eyes=1.0, coarse=1.0, coarse_scales=1)

    def loss(params, weights):
        return CODEC.loss(merge(graphdef, params), batch, None, Objective(weights))[1]["coarse"]

    assert jax.jit(loss, static_argnums=1)(params, weights) == 0  # of the eyes alone, which are not known
    grads = jax.jit(jax.grad(loss), static_argnums=1)(params, dataclasses.replace(weights, motion=1.0))
    moved = {path.split("/")[1] for path, grad in grads.items() if jnp.abs(grad).max() > 0}
    assert {"encoder", "decoder"} <= moved


def test_vertex_losses_are_in_square_millimetres_and_repeats_count():
    target = jnp.zeros((1, 1, 3, 3))
    pred = target.at[..., 0, :].set(0.001).at[..., 2, :].set(0.002)
    weights = CodecLossWeights(mesh=1.0, lips=1.0)
    losses = vertex_losses(pred, target, np.array([0, 2, 2]), weights)
    np.testing.assert_allclose(
        [losses["mesh"][0, 0], losses["lips"][0, 0]], [(1 + 0 + 4) / 3, (1 + 4 + 4) / 3], rtol=1e-5
    )


def test_patterns_of_the_stages_are_full_matches():
    assert not re.fullmatch(DIALOGUE.trainable, "prior/head/lora_a_old")
    assert not re.fullmatch(PRIOR.trainable, "audio_encoder/prior/x")
