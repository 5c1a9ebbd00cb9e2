"""The dialogue model with merged weights against the goldens: logits, loss, gradients, and a step's noise."""

import jax.numpy as jnp
import pytest
from tiny_models import jitted

from parity.compare import (
    LAYER,
    MODEL,
    assert_bits_equal,
    assert_close,
    assert_gradients_match,
    assert_relative,
    pairs_first,
    people_first,
    run_pass,
)
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.systems.unils.system import PRIOR, StepNoise, generator_logits


@pytest.fixture(scope="module")
def noisy(golden, dialogue_model, pair_batch):
    """Logits and target bits with the golden's own drops and flips; drop-path is off."""
    inputs = golden("loragen").inputs
    names = ("drop_style", "drop_prev", "drop_audio_self", "drop_audio_other", "flip_masks")
    noise = [pairs_first(jnp.asarray(inputs[name])) for name in names]

    def run(model, batch, *noise):
        return [people_first(x) for x in generator_logits(model, batch, StepNoise(*noise))]

    return jitted(dialogue_model, run, pair_batch, *noise)


@pytest.fixture(scope="module")
def clean(dialogue_model, pair_batch):
    """With merged weights every parameter of the prior is differentiated, as the golden did."""
    return run_pass(PRIOR, dialogue_model, pair_batch)


def test_target_bits_of_both_people_are_equal(golden, clean):
    assert_bits_equal(clean.bits, golden("loragen").outputs["gt_bits"])


def test_logits_of_both_people_match(golden, clean):
    expected = golden("loragen").outputs["logits"]
    assert_close(clean.logits.reshape(expected.shape), expected, MODEL)


def test_cross_entropy_matches(golden, clean):
    assert_relative(clean.loss, golden("loragen").outputs["ce_loss"], LAYER)


def test_all_gradients_match(golden, clean):
    assert_gradients_match(clean.grads, "dialogue", golden("loragen").outputs)


def test_bits_along_the_noisy_path_are_equal(golden, noisy):
    assert_bits_equal(noisy[1], golden("loragen").outputs["stoch_gt_bits"])


def test_logits_under_drops_and_flips_match(golden, noisy):
    expected = golden("loragen").outputs["stoch_logits"]
    assert_close(noisy[0].reshape(expected.shape), expected, MODEL)


def test_cross_entropy_under_drops_and_flips_matches(golden, noisy):
    assert_relative(bit_cross_entropy(*noisy).mean(), golden("loragen").outputs["stoch_ce_loss"], LAYER)
