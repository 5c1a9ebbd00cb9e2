"""What is measured on held-out data: each figure against a value worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CODE_DIM, SCALES, jitted, random_motion, tiny_model
from tiny_runs import quick_compiles

from unils_jax.evaluation.likelihood import (
    codec_error,
    marginal_cross_entropy,
    mean_over,
    window_cross_entropy,
    with_other_audio,
)
from unils_jax.evaluation.statistics import bootstrap_interval
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.systems.unils.system import generator_logits


def pairs(num: int) -> dict[str, np.ndarray]:
    motion = {
        name: np.asarray(random_motion(num, 2, 100, seed=i)) for i, name in enumerate(("motion", "prev", "style"))
    }
    audio = np.random.default_rng(0).normal(0, 0.1, (num, 2, 64_000)).astype(np.float32)
    return {**motion, "audio": audio, "speech_mask": np.ones((num, 2, 100), np.float32)}


def test_codec_error_stands_beside_that_of_predicting_the_mean():
    model = tiny_model("codec")
    motion = random_motion(2, 100)
    error, baseline = codec_error(model, {"motion": np.asarray(motion)})
    rebuilt = jitted(model, lambda model, motion: model.codec(motion)[0], motion)
    assert error == pytest.approx(float(np.abs(rebuilt - motion).mean()), rel=1e-5)
    assert baseline == pytest.approx(
        np.abs(np.asarray(motion) - np.asarray(model.codec.motion_mean[...])).mean(), rel=1e-5
    )


def test_cross_entropy_comes_by_window_and_its_mean_is_the_loss():
    model, batch = tiny_model("dialogue"), pairs(2)
    with quick_compiles():
        cross_entropy, bits = window_cross_entropy(model, batch)
    assert cross_entropy.shape == (4,) and bits.shape == (4, sum(SCALES), CODE_DIM)
    tensors = {name: jnp.asarray(value) for name, value in batch.items()}
    with quick_compiles():
        logits, expected_bits = jitted(model, generator_logits, tensors)
    assert np.array_equal(bits, expected_bits.reshape(bits.shape))
    assert cross_entropy.mean() == pytest.approx(float(bit_cross_entropy(logits, expected_bits).mean()), rel=1e-5)


def test_other_audio_is_that_of_another_pair_and_still_a_conversation():
    batch = pairs(3)
    other = with_other_audio(batch)
    for i in range(3):
        assert np.array_equal(other["audio"][i], batch["audio"][i - 1])
    assert all(other[name] is batch[name] for name in batch if name != "audio")


def test_marginals_of_constant_bits_cost_nothing_and_of_even_ones_a_bit():
    constant = np.zeros((4, sum(SCALES), CODE_DIM), bool)
    assert marginal_cross_entropy(constant, SCALES) == pytest.approx(0, abs=1e-6)
    even = constant.copy()
    even[::2] = True
    assert marginal_cross_entropy(even, SCALES) == pytest.approx(np.log(2))


def test_marginals_are_of_each_scale_and_bit_and_weigh_by_tokens():
    bits = np.zeros((4, sum(SCALES), 2), bool)
    bits[0, : SCALES[0]] = True  # the first scale: a quarter of the windows, both bits
    bits[::2, SCALES[0] : SCALES[0] + SCALES[1], 0] = True  # the second: half of them, one bit
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = (SCALES[0] * quarter + SCALES[1] * np.log(2) / 2) / sum(SCALES)
    assert marginal_cross_entropy(bits, SCALES) == pytest.approx(expected, abs=1e-6)


def test_bootstrap_interval_holds_the_mean_and_narrows_with_more_values():
    rng = np.random.default_rng(1)
    widths = []
    for num in (50, 5000):
        values = rng.normal(3, 2, num)
        low, high = bootstrap_interval(values)
        assert low < values.mean() < high
        assert (low, high) == bootstrap_interval(values)
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 * 2 / np.sqrt(50), rel=0.2)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.2)


def test_mean_over_averages_both_figures():
    batches = [{"motion": np.full(3, i, np.float32)} for i in range(3)]
    assert mean_over(batches, lambda batch: (float(batch["motion"][0]), float(batch["motion"].sum()))) == (1.0, 3.0)
