"""The prior against the goldens: conditions, logits, loss, gradients, five updates, and a step's noise."""

import jax.numpy as jnp
import pytest
from tiny_models import jitted

from parity.compare import (
    LAYER,
    MODEL,
    TABLE,
    assert_bits_equal,
    assert_close,
    assert_gradients_match,
    assert_relative,
    run_pass,
)
from parity.updates import assert_recorded, assert_trained_weights_match, run_updates
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import next_scale_inputs
from unils_jax.systems.base import Objective
from unils_jax.systems.unils.system import PRIOR, StepNoise, generator_logits


@pytest.fixture(scope="module")
def noisy(golden, prior_model, solo_batch):
    """Logits and target bits with the golden's own drops and flips; drop-path is off."""
    inputs = golden("freegen").inputs
    noise = [jnp.asarray(inputs[name]) for name in ("drop_style", "drop_prev", "flip_masks")]

    def run(model, batch, style, prev, flips):
        return generator_logits(model, batch, StepNoise(style, prev, prev, prev, flips))

    return jitted(prior_model, run, solo_batch, *noise)


@pytest.fixture(scope="module")
def clean(prior_model, solo_batch):
    return run_pass(PRIOR, prior_model, solo_batch)


@pytest.fixture(scope="module")
def training(golden, prior_model, solo_batch):
    return run_updates(PRIOR, prior_model, Objective(), solo_batch, golden("freegen").outputs)


@pytest.mark.parametrize("name", ["prev", "style"])
def test_feature_of_a_condition_matches(golden, prior_model, solo_batch, name):
    features = jitted(prior_model, lambda model, motion: model.codec.features(motion), solo_batch[name])
    assert_close(features, golden("freegen").outputs[f"{name}_feat"], TABLE)


def test_target_bits_are_equal(golden, clean):
    assert_bits_equal(clean.bits, golden("freegen").outputs["gt_bits"])


def test_next_scale_inputs_match(golden, prior_model, clean):
    inputs = next_scale_inputs(clean.bits, prior_model.codec.scales)
    assert_close(inputs, golden("freegen").outputs["next_feat"], TABLE)


def test_drop_path_rates_rise_as_recorded(golden, prior_model):
    rates = [block.drop_path_rate for block in prior_model.prior.blocks]
    assert_close(rates, golden("freegen").config["drop_path_rates"], TABLE)


def test_logits_match(golden, clean):
    expected = golden("freegen").outputs["logits"]
    assert_close(clean.logits.reshape(expected.shape), expected, MODEL)


def test_cross_entropy_matches(golden, clean):
    assert_relative(clean.loss, golden("freegen").outputs["ce_loss"], LAYER)


def test_all_gradients_match(golden, clean):
    assert_gradients_match(clean.grads, "prior", golden("freegen").outputs)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "learning_rate"])
def test_five_updates_record_the_same(golden, training, name):
    assert_recorded(training, golden("freegen").outputs, name)


def test_weights_after_five_updates_match(golden, training):
    assert_trained_weights_match(training, golden("freegen").outputs, "prior")


def test_bits_along_the_noisy_path_are_equal(golden, noisy):
    assert_bits_equal(noisy[1], golden("freegen").outputs["stoch_gt_bits"])


def test_logits_under_drops_and_flips_match(golden, noisy):
    expected = golden("freegen").outputs["stoch_logits"]
    assert_close(noisy[0].reshape(expected.shape), expected, MODEL)


def test_cross_entropy_under_drops_and_flips_matches(golden, noisy):
    assert_relative(bit_cross_entropy(*noisy).mean(), golden("freegen").outputs["stoch_ce_loss"], LAYER)
