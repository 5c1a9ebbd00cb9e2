"""The prior: who sees whom, where everyone stands, and what the loss counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CODE_DIM, SCALES, sample_keys, tiny_model

from unils_jax.models.prior import (
    attention_mask,
    audio_positions,
    bit_cross_entropy,
    scale_levels,
    token_positions,
)
from unils_jax.models.quantizer import scale_slices
from unils_jax.motion import Window
from unils_jax.nn.attention import rotary_table
from unils_jax.nn.params import merge, split

AUDIO_FRAMES = 9


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def arguments():
    """Returns style, prev, inputs, own and other audio of two samples."""
    audio_dim = tiny_model("dialogue").prior.own_audio_embed.shape[-1]
    clips = [normal(seed, 2, SCALES[-1], CODE_DIM) for seed in (0, 1)]
    audio = [normal(seed, 2, AUDIO_FRAMES, audio_dim) for seed in (3, 4)]
    return [*clips, normal(2, 2, sum(SCALES[1:]), CODE_DIM), *audio]


@pytest.fixture(scope="module")
def dialogue():
    graphdef, params = split(tiny_model("dialogue").prior)
    return jax.jit(lambda *arguments: merge(graphdef, params)(*arguments))


@pytest.fixture(scope="module")
def prior():
    graphdef, params = split(tiny_model("prior").prior)
    return jax.jit(lambda *arguments: merge(graphdef, params)(*arguments))


def test_the_mask_of_two_small_scales_is_this_matrix():
    expected = [
        # style, style, prev, prev | scale 0 | scale 1, scale 1
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(attention_mask((1, 2)), np.array(expected, bool))


def test_tokens_stand_in_the_middle_of_what_they_cover():
    # Two scales of a window of 4 frames: linspace(0, 3, 3)[1] = 1.5 rounds half to even.
    np.testing.assert_array_equal(token_positions((1, 4)), [*range(8), 8 + 2, 8 + 0, 8 + 1, 8 + 2, 8 + 3])


def test_audio_has_the_positions_of_its_window():
    np.testing.assert_array_equal(audio_positions(4, Window()), [200, 225, 250, 275])


def test_every_token_knows_its_scale():
    np.testing.assert_array_equal(scale_levels((1, 3)), [0, 1, 1, 1])


@pytest.mark.parametrize("scale", range(len(SCALES) - 1))
def test_prior_ignores_later_scales(prior, arguments, scale):
    style, prev, inputs, *_ = arguments
    stop = scale_slices(SCALES)[scale].stop
    # The inputs start at scale 1: those of later scales than `scale` begin at stop - 1.
    changed = prior(style, prev, inputs.at[:, stop - 1 :].add(1.0))
    same = prior(style, prev, inputs)
    np.testing.assert_array_equal(changed[:, :stop], same[:, :stop])
    assert not np.allclose(changed[:, stop:], same[:, stop:])


def test_tokens_of_a_scale_see_each_other(prior, arguments):
    style, prev, inputs, *_ = arguments
    tokens = scale_slices(SCALES)[1]
    later = slice(tokens.start, tokens.stop - 1)  # as inputs, all tokens of scale 1 but its first
    changed = prior(style, prev, inputs.at[:, later].set(normal(9, 2, later.stop - later.start, CODE_DIM)))
    same = prior(style, prev, inputs)
    assert not np.allclose(changed[:, tokens.start], same[:, tokens.start], atol=1e-3)


def test_the_prefix_sees_the_prefix_only():
    graphdef, params = split(tiny_model("prior").prior)
    rotary = rotary_table(token_positions(SCALES), tiny_model("prior").prior.head_dim)
    prefix, mask = 2 * SCALES[-1], attention_mask(SCALES)

    @jax.jit
    def through_blocks(x):
        for block in merge(graphdef, params).blocks:
            x = block(x, rotary, mask)
        return x

    x = normal(0, 1, len(mask), 16)
    same, changed = through_blocks(x), through_blocks(x.at[:, prefix:].add(1.0))
    np.testing.assert_array_equal(same[:, :prefix], changed[:, :prefix])
    assert not np.allclose(same[:, prefix:] + 1, changed[:, prefix:])


def test_fewer_inputs_give_the_same_logits_of_fewer_scales(prior, arguments):
    style, prev, inputs, *_ = arguments
    first = prior(style, prev, inputs[:, :0])
    assert first.shape == (2, 1, CODE_DIM, 2)
    np.testing.assert_allclose(first, prior(style, prev, inputs)[:, :1], atol=1e-4)  # two programs of one model


@pytest.mark.parametrize("index", range(5), ids=["style", "prev", "inputs", "own_audio", "other_audio"])
def test_every_condition_matters(dialogue, arguments, index):
    changed = list(arguments)
    changed[index] = changed[index] + normal(9, *changed[index].shape)
    assert not np.allclose(dialogue(*changed), dialogue(*arguments), atol=1e-3)


def test_own_and_other_audio_play_different_parts(dialogue, arguments):
    style, prev, inputs, own, other = arguments
    assert not np.allclose(dialogue(style, prev, inputs, other, own), dialogue(*arguments), atol=1e-3)


def test_style_and_previous_motion_play_different_parts(prior, arguments):
    style, prev, inputs, *_ = arguments
    assert not np.allclose(prior(prev, style, inputs), prior(style, prev, inputs), atol=1e-3)


def test_samples_of_a_batch_do_not_see_each_other(prior, arguments):
    style, prev, inputs, *_ = arguments
    changed = prior(style.at[1].add(1.0), prev, inputs)
    np.testing.assert_array_equal(changed[0], prior(style, prev, inputs)[0])


def test_a_key_turns_noise_on_and_names_it(dialogue, arguments):
    keys = [sample_keys(seed, len(arguments[0])) for seed in (0, 0, 1)]
    first, again, other = (dialogue(*arguments, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, dialogue(*arguments))


def test_drop_path_rises_from_zero_with_depth():
    rates = [block.drop_path_rate for block in tiny_model("prior").prior.blocks]
    np.testing.assert_allclose(rates, [0, 0.1 * 2 / 24])


def test_even_odds_cost_log_two_a_bit():
    losses = bit_cross_entropy(jnp.zeros((1, 2, 3, 2)), jnp.array([[[0, 1, 1], [1, 0, 0]]]))
    np.testing.assert_allclose(losses, np.full((1, 2, 3), np.log(2)), rtol=1e-6)


def test_a_sure_and_right_bit_costs_nothing_and_a_wrong_one_its_margin():
    logits = jnp.array([[[[0.0, 50.0], [0.0, 50.0]]]])
    np.testing.assert_allclose(bit_cross_entropy(logits, jnp.array([[[True, False]]]))[0, 0], [0, 50], atol=1e-6)
