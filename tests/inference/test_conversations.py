"""Decoding: seeds, guidance, silence, lengths, and sampling that follows the probabilities."""

import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import recorded_chunks
from tiny_models import CODE_DIM, SCALES, jitted, random_motion, tiny_model

from unils_jax.errors import UserError
from unils_jax.inference.conversations import Sampling, decode, decode_prior
from unils_jax.inference.sampling import nucleus_probability, sample_scales
from unils_jax.models.unils import UniLS

pytestmark = pytest.mark.usefixtures("unoptimised")
GREEDY = Sampling(tau=0.0)
COLD = Sampling(tau=1e-6)  # as good as greedy, through the sampler's compiled program


def speech(samples: int, seed: int = 0) -> np.ndarray:
    """Returns noise that swells and fades, so that every window differs."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.1, samples) * np.sin(np.arange(samples) / 3000)).astype(np.float32)


def style(people: int = 1, seed: int = 5) -> np.ndarray:
    return np.asarray(random_motion(people, 100, seed=seed))


@pytest.fixture(scope="module")
def model():
    return tiny_model("merged")


def features(model: UniLS, motion: np.ndarray) -> np.ndarray:
    """Returns the features of `motion [P, 100, 108]`, [1, P, 100, C] as the program takes them."""
    return np.asarray(jitted(model, lambda model, motion: model.codec.features(motion), motion))[None]


def test_the_same_seed_gives_the_same_motion(model):
    np.testing.assert_array_equal(decode(model, speech(1000), seed=3), decode(model, speech(1000), seed=3))


def test_different_seeds_give_different_motion(model):
    assert not np.allclose(decode(model, speech(1000), seed=3), decode(model, speech(1000), seed=4))


def test_greedy_decoding_needs_no_seed(model):
    motions = [decode(model, speech(1000), sampling=GREEDY, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(*motions)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (640, 1), (641, 2), (64_000, 100), (64_001, 101)])
def test_frames_cover_the_samples(model, samples, frames):
    assert decode(model, speech(samples)).shape == (1, frames, 108)


def test_chunks_of_one_decode_differ(model):
    motion = decode(model, np.zeros(128_000, np.float32))
    assert not np.allclose(motion[:, :100], motion[:, 100:])


def test_two_tracks_give_two_people(model):
    motion = decode(model, speech(1000), speech(1000, seed=1))
    assert motion.shape == (2, 2, 108)
    assert not np.allclose(motion[0], motion[1])


def test_each_person_hears_the_other(model):
    own, other = speech(64_000), speech(64_000, seed=1)
    tone = np.sin(np.arange(64_000) / 10, dtype=np.float32)
    same, changed = decode(model, own, other, sampling=COLD), decode(model, own, tone, sampling=COLD)
    assert not np.allclose(same[0], changed[0])
    assert not np.allclose(same[1], changed[1])


def test_the_shorter_track_is_padded_with_silence(model):
    long, short = speech(2000), speech(700, seed=1)
    padded = np.pad(short, (0, 1300))
    np.testing.assert_array_equal(decode(model, long, short), decode(model, long, padded))
    np.testing.assert_array_equal(decode(model, short, long), decode(model, padded, long))


@pytest.mark.parametrize("sampling", [COLD, Sampling()], ids=["cold", "sampled"])
def test_a_missing_second_track_is_silence(model, sampling):
    alone = decode(model, speech(2000), sampling=sampling)
    with_silence = decode(model, speech(2000), np.zeros(2000, np.float32), sampling=sampling)
    # One and two people are different batch shapes, and so equal to rounding only.
    np.testing.assert_allclose(alone[0], with_silence[0], atol=1e-4)


def test_swapping_the_tracks_swaps_the_people(model):
    a, b = speech(2000), speech(2000, seed=1)
    one, other = decode(model, a, b, sampling=COLD), decode(model, b, a, sampling=COLD)
    np.testing.assert_allclose(one, other[::-1], atol=1e-5)


def test_style_and_previous_motion_change_the_motion(model):
    plain = decode(model, speech(2000), sampling=COLD)
    assert not np.allclose(decode(model, speech(2000), style=style(), sampling=COLD), plain)
    assert not np.allclose(decode(model, speech(2000), prev=style(), sampling=COLD), plain)


def test_one_style_serves_both_people(model):
    tracks = speech(2000), speech(2000, seed=1)
    both = decode(model, *tracks, style=style().repeat(2, 0))
    np.testing.assert_array_equal(decode(model, *tracks, style=style()), both)


@pytest.mark.parametrize(("cfg", "guided"), [(0.0, False), (1.0, False), (1.5, True)])
def test_guidance_of_at_most_one_runs_a_single_branch(model, cfg, guided):
    with recorded_chunks() as calls:
        decode(model, speech(640), sampling=Sampling(cfg=cfg))
    assert [call.program.guided for call in calls] == [guided]


def test_no_guidance_and_guidance_of_one_are_the_same(model):
    motions = [decode(model, speech(2000), style=style(), sampling=Sampling(cfg=cfg)) for cfg in (0.5, 1.0)]
    np.testing.assert_array_equal(*motions)


def test_guidance_pushes_away_from_the_unconditional_branch(model):
    weak, strong = (
        decode(model, speech(2000), style=style(), sampling=Sampling(tau=1e-6, cfg=cfg)) for cfg in (1.1, 8.0)
    )
    assert not np.allclose(weak, strong)


def test_the_next_chunk_continues_from_the_decoded_motion(model):
    with recorded_chunks() as calls:
        motion = decode(model, speech(64_001), prev=style())
    first, second = calls
    np.testing.assert_array_equal(first.prev, features(model, style()))
    np.testing.assert_array_equal(first.uncond_prev, features(model, np.zeros((1, 100, 108), np.float32)))
    np.testing.assert_array_equal(second.prev, features(model, motion[:, :100]))
    np.testing.assert_array_equal(second.uncond_prev, second.prev)


def test_the_prior_alone_takes_its_style_for_previous_motion():
    prior = tiny_model("prior")
    with recorded_chunks() as calls:
        motion = decode_prior(prior, style(2), 2)
    first, second = calls
    assert first.audio is None
    for condition in (first.style, first.prev, first.uncond_prev, second.style):
        np.testing.assert_array_equal(condition, features(prior, style(2)))
    for condition in (second.prev, second.uncond_prev):
        np.testing.assert_array_equal(condition, features(prior, motion[:, :100]))


def test_chosen_bits_are_returned_scale_by_scale():
    """Uses a chooser that goes by the scale, whatever the logits are."""

    def choose(tokens, logits):
        return jnp.full(logits.shape[:-1], tokens.start == 1), logits

    def run(model, feature):
        return sample_scales(model.prior, feature, feature, [None] * len(model.prior.blocks), choose)

    bits, logits, _ = jitted(tiny_model("prior"), run, jnp.zeros((1, 100, CODE_DIM)))
    assert logits.shape == (*bits.shape, 2)
    np.testing.assert_array_equal(bits[0, :, 0], np.repeat([False, True, False], SCALES))


def test_an_unlikely_outcome_is_dropped_and_a_likely_one_kept():
    gap = np.log(0.97 / 0.03)
    logits = jnp.array([[0.0, gap + 1e-3], [0.0, gap - 1e-2], [0.0, -gap - 1e-3], [0.0, 0.0]])
    probability = nucleus_probability(logits, 1 - 0.97)
    np.testing.assert_allclose(probability[jnp.array([0, 2, 3])], [1.0, 0.0, 0.5])
    assert 0.96 < probability[1] < 0.97


def test_a_nucleus_of_one_drops_nothing():
    probability = nucleus_probability(jnp.array([[0.0, 6.0], [0.0, -6.0]]), 0.0)
    np.testing.assert_allclose(probability, [1 / (1 + np.exp(-6)), 1 / (1 + np.exp(6))], rtol=1e-5)


def test_sampled_bits_follow_the_probabilities_of_the_chunks_logits(model):
    with recorded_chunks() as calls:
        for seed in range(10):
            decode(model, speech(640), speech(640, seed=1), sampling=Sampling(tau=1.0), seed=seed)
    bits = np.concatenate([np.asarray(call.chunk.bits).ravel() for call in calls])
    logits = np.concatenate([np.asarray(call.chunk.logits).reshape(-1, 2) for call in calls])
    probability = np.asarray(nucleus_probability(jnp.asarray(logits), 1 - 0.97))
    for low in np.arange(0.1, 0.9, 0.2):
        chosen = (probability >= low) & (probability < low + 0.2)
        if chosen.sum() > 500:
            assert bits[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.06)
    assert (bits != (probability > 0.5)).mean() > 0.05
    assert not bits[probability == 0].any() and bits[probability == 1].all()


def test_the_lower_the_temperature_the_nearer_to_greedy(model):
    greedy = decode(model, speech(2000), sampling=GREEDY)
    np.testing.assert_allclose(decode(model, speech(2000), sampling=COLD, seed=1), greedy, atol=1e-4)
    assert not np.allclose(decode(model, speech(2000), seed=1), greedy, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau": -0.1}, r"tau must be 0 \(greedy\) or positive, got -0.1"),
        ({"tau": float("nan")}, "tau must be"),
        ({"tau": float("inf")}, "tau must be"),
        ({"cfg": -1.0}, "cfg must be 0 or positive, got -1.0"),
        ({"cfg": float("nan")}, "cfg must be"),
        ({"top_p": 0.4}, "top_p must be from 0.5 to 1, got 0.4"),
        ({"top_p": 1.01}, "top_p must be from 0.5 to 1, got 1.01"),
        ({"top_p": float("nan")}, "top_p must be"),
        ({"tau": -1.0, "cfg": -1.0}, "tau must be.*cfg must be"),
        ({"tau": (1.0, -0.5)}, r"tau must be 0 \(greedy\) or positive, got 1,-0.5"),
        ({"cfg": (float("inf"), 1.0)}, "cfg must be 0 or positive, got inf,1"),
    ],
)
def test_impossible_sampling_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)


def test_values_of_other_scales_than_the_models_are_refused(model):
    with pytest.raises(UserError, match="tau has 7 values; give one, or"):
        decode(model, speech(640), sampling=Sampling(tau=(1.0,) * 7))


@pytest.mark.parametrize("stage", ["codec", "prior"])
def test_a_model_without_ears_is_refused(stage):
    with pytest.raises(UserError, match="no audio encoder: decode needs a dialogue checkpoint"):
        decode(tiny_model(stage), speech(1000))


def test_no_samples_are_refused(model):
    with pytest.raises(UserError, match="audio holds no samples"):
        decode(model, np.zeros(0, np.float32))


@pytest.mark.parametrize("name", ["style", "prev"])
def test_clips_for_too_many_people_are_refused(model, name):
    with pytest.raises(UserError, match=rf"{name} must be \[1 or 1, 100, 108\], got \[3, 100, 108\]"):
        decode(model, speech(1000), **{name: style(3)})
