"""The chunk program against the training forward, its sampling, its precisions, and what it refuses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import uncached
from scipy.stats import chi2
from tiny_models import CODE_DIM, CODEC, CONFIGS, SCALES, abstract_model, random_model, random_motion, tiny_model

from unils_jax.errors import UserError
from unils_jax.evaluation.likelihood import bits_changed
from unils_jax.inference.program import Chunk, Constants, Program, StepInputs, decode_chunk, make_program
from unils_jax.inference.sampling import Sampling, choose_bits, make_controls, uniforms
from unils_jax.models.codec import CodecConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.nn.params import merge, split
from unils_jax.training.throughput.flops import Work, count

pytestmark = pytest.mark.usefixtures("unoptimised")
SURE_GAP = 1e-5
DIALOGUE = CONFIGS["merged"]
ALL_SCALES = dataclasses.replace(CODEC, scales=(1, 5, 25, 50, 100))


def run(program: Program, audio, style, prev, uncond_prev, samplings=None, seed: int = 0) -> Chunk:
    slots = program.slots
    controls = make_controls(samplings or [Sampling()] * slots, [seed] * slots, [0] * slots, len(program.scales))
    return program.chunk(StepInputs(audio, *(jnp.array(x) for x in (style, prev, uncond_prev)), controls))[0]


def inputs(program: Program, seed: int = 0) -> tuple:
    """Returns audio, style, previous motion and the unconditional branch's, for all slots."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(0, 0.1, (program.slots, 2, 64_000)).astype(np.float32) if program.takes_audio else None
    clips = [random_motion(program.people, 100, seed=3 * seed + i) for i in range(3)]
    features = [np.asarray(program.features(np.asarray(clip))) for clip in clips]
    return audio, *(np.stack([clip] * program.slots) for clip in features)


def compare(config: UniLSConfig, seeds: range, people: int) -> tuple[int, int]:
    """Counts bits and those within SURE_GAP over random models; asserts that all others and the motion agree."""
    excluded = bits = 0
    reference = jax.jit(lambda graphdef, params, *args: uncached(merge(graphdef, params), *args), static_argnums=0)
    for seed in seeds:
        model = random_model(config, seed)
        program = make_program(model, people=people)
        audio, *conditions = inputs(program, seed)
        chunk = run(program, audio, *conditions, seed=seed)
        tracks = None if audio is None else audio[0]
        known = [np.asarray(x[0]) for x in (*conditions, chunk.bits)]
        conditional, unconditional, motion = reference(*split(model), tracks, *known)
        expected = 1.5 * conditional - 0.5 * unconditional
        gaps = [np.asarray(logits[..., 1] - logits[..., 0]) for logits in (expected, chunk.logits[0])]
        sure = np.abs(gaps[0]) > SURE_GAP
        np.testing.assert_array_equal((gaps[0] > 0)[sure], (gaps[1] > 0)[sure])
        np.testing.assert_allclose(np.asarray(chunk.motion[0]), motion, atol=1e-4)
        excluded, bits = excluded + (~sure).sum(), bits + sure.size
    return excluded, bits


def test_cached_and_uncached_choose_alike_with_random_models():
    excluded, bits = compare(DIALOGUE, range(50), people=1)
    print(f"{excluded} of {bits} bits are within {SURE_GAP} of a tie")
    assert bits == 50 * sum(SCALES) * CODE_DIM and excluded < 1e-4 * bits


@pytest.mark.slow
@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("audio", [True, False])
def test_cached_and_uncached_choose_alike_at_all_scales(people, audio):
    config = dataclasses.replace(DIALOGUE if audio else CONFIGS["prior"], codec=ALL_SCALES)
    excluded, bits = compare(config, range(50), people)
    assert excluded < 1e-4 * bits


def test_what_a_chain_draws_by_is_what_training_scores():
    model = random_model(CONFIGS["chained"], 0)
    program = make_program(model, people=2)
    _, *conditions = inputs(program)
    chunk = run(program, None, *conditions)
    known = [jnp.asarray(x[0]) for x in (*conditions, chunk.bits)]

    def expected(graphdef, params, *known):
        model = merge(graphdef, params)
        conditional, unconditional, _ = uncached(model, None, *known)
        return model.prior.chained(1.5 * conditional - 0.5 * unconditional, known[-1])

    logits = jax.jit(expected, static_argnums=0)(*split(model), *known)
    np.testing.assert_allclose(chunk.logits[0], logits, atol=1e-4 * float(jnp.abs(logits).max()))


def test_bits_of_a_chain_follow_each_other_and_nothing_that_comes_later():
    drawn = jnp.asarray(np.random.default_rng(0).random((1, 500, 3)), jnp.float32)
    controls = jax.tree.map(jnp.asarray, make_controls([Sampling(tau=0.5, cfg=1.0, top_p=1.0)], [0], [0], 1))
    chain = jnp.array([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, -50.0, 0.0]])
    zero = jnp.zeros((1, 500, 3, 2))
    bits, logits = choose_bits(zero, drawn, controls, (1, 1), chain)
    np.testing.assert_array_equal(bits[..., 0], drawn[..., 0] < 0.5)
    np.testing.assert_array_equal(bits[..., 1], bits[..., 0])
    np.testing.assert_array_equal(bits[..., 2], ~bits[..., 0])
    np.testing.assert_allclose(jnp.abs(logits[..., 1:, 1]), 100.0)  # divided by tau, as all logits
    plain, _ = choose_bits(zero, drawn, controls, (1, 1))
    np.testing.assert_array_equal(choose_bits(zero, drawn, controls, (1, 1), jnp.zeros((3, 3)))[0], plain)


@pytest.fixture(scope="module")
def program():
    return make_program(random_model(DIALOGUE, 0))


def test_audio_encoded_apart_gives_the_same_chunk(program):
    audio, *conditions = inputs(program)
    together, apart = run(program, audio, *conditions), run(program, program.encode(audio), *conditions)
    np.testing.assert_array_equal(together.bits, apart.bits)
    np.testing.assert_allclose(together.motion, apart.motion, atol=1e-5)


def test_every_scale_has_its_own_temperature_and_guidance(program):
    given, count = inputs(program), len(program.scales)
    last = slice(sum(program.scales[:-1]), None)
    same = run(program, *given, samplings=[Sampling(1.2, 1.5, 1.0)] * program.slots)
    tuples = run(program, *given, samplings=[Sampling((1.2,) * count, (1.5,) * count, 1.0)] * program.slots)
    np.testing.assert_array_equal(tuples.bits, same.bits)
    greedy = run(program, *given, samplings=[Sampling((1.2,) * (count - 1) + (0.0,), 1.5, 1.0)] * program.slots)
    np.testing.assert_array_equal(greedy.bits[..., : last.start, :], same.bits[..., : last.start, :])
    logits = np.asarray(greedy.logits)[..., last, :, :]
    np.testing.assert_array_equal(greedy.bits[..., last, :], logits[..., 1] > logits[..., 0])
    assert np.any(greedy.bits[..., last, :] != same.bits[..., last, :])
    guided = run(program, *given, samplings=[Sampling(1.2, (1.5,) * (count - 1) + (4.0,), 1.0)] * program.slots)
    np.testing.assert_array_equal(guided.logits[..., : last.start, :, :], same.logits[..., : last.start, :, :])
    assert np.any(guided.logits[..., last, :, :] != same.logits[..., last, :, :])


def test_what_follows_are_the_features_of_the_motion(program):
    audio, *conditions = inputs(program)
    controls = make_controls([Sampling()], [0], [0], len(program.scales))
    chunk, after = program.chunk(StepInputs(audio, *map(jnp.array, conditions), controls))
    np.testing.assert_array_equal(after[0], program.features(np.asarray(chunk.motion[0])))


def test_guidance_of_at_most_one_is_the_conditional_branch_in_a_guided_program(program):
    audio, *conditions = inputs(program)
    unguided = dataclasses.replace(program, guided=False)
    expected = run(unguided, audio, *conditions, [Sampling(cfg=1.0)])
    for cfg in (0.0, 1.0):
        chunk = run(program, audio, *conditions, [Sampling(cfg=cfg)])
        np.testing.assert_array_equal(chunk.bits, expected.bits)
        np.testing.assert_allclose(chunk.logits, expected.logits, atol=1e-5)
    guided = run(program, audio, *conditions, [Sampling(cfg=1.5)])
    assert np.abs(np.asarray(guided.logits - expected.logits)).max() > 1e-2


def test_bfloat16_rounds_and_no_more():
    """Asserts that encoder and prior compute in it; the codec and the logits stay float32."""
    model = random_model(DIALOGUE, 0)
    exact, rounded = make_program(model), make_program(model, dtype="bfloat16")
    audio, *conditions = inputs(exact)
    assert rounded.encode(audio).dtype == jnp.bfloat16
    assert {str(rounded.params[path].dtype) for path in ("codec/encoder/inp/kernel", "prior/head/kernel")} == {
        "float32"
    }
    assert str(rounded.params["prior/blocks/0/mlp/up/kernel"].dtype) == "bfloat16"
    np.testing.assert_array_equal(exact.constants.features, rounded.constants.features)
    first = slice(0, 1)  # before any sampled bit can differ
    ours, theirs = (run(p, audio, *conditions).logits[:, :, first] for p in (rounded, exact))
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(ours - theirs)).max() < 0.1 * np.abs(np.asarray(theirs)).max()


@pytest.mark.slow
def test_the_price_of_a_dtype_is_counted_in_bits():
    rng = np.random.default_rng(0)
    motions = {name: np.asarray(random_motion(2, 2, 100, seed=i)) for i, name in enumerate(("motion", "style", "prev"))}
    batch = {**motions, "audio": rng.normal(0, 0.1, (2, 2, 64_000)).astype(np.float32)}
    model = random_model(DIALOGUE, 0)
    assert bits_changed(model, batch, "float32") == 0
    assert 0 < bits_changed(model, batch, "bfloat16") < 0.05


def full_size_work(people: int, audio: tuple[int, ...]) -> Work:
    """Counts the work of one chunk of the full model, for one slot."""
    graphdef, params = abstract_model(UniLSConfig(CodecConfig(), PriorConfig(audio_dim=1024), Wav2Vec2Config()))
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def chunk(params, silent, features, inputs):
        return decode_chunk(merge(graphdef, params), Constants(features, silent), inputs, guided=True, dtype="float32")

    conditions = [shape((1, people, 100, 32))] * 3
    controls = jax.tree.map(jnp.asarray, make_controls([Sampling()], [0], [0], len(CodecConfig().scales)))
    inputs = StepInputs(shape(audio), *conditions, controls)
    return count(chunk, params, shape((8, 2, 512)), shape((100, 32)), inputs)


@pytest.mark.slow
def test_a_chunk_at_full_size_costs_what_caching_leaves():
    both, one_without_encoder = full_size_work(2, (1, 2, 64_000)), full_size_work(1, (1, 2, 199, 1024))
    encoder = both.within("wav2vec2")
    assert 290e9 < encoder < 300e9  # once a track, whether one or both are decoded
    assert 60e9 < one_without_encoder.total <= 88e9
    assert one_without_encoder.total + encoder <= 385e9
    assert 400e9 < both.total <= 465e9


def draw(sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Draws 10^6 bits of 20 slots, two people each; also returns the level of their logit."""
    slots, people, shape = 20, 2, (100, 250)
    level = np.random.default_rng(0).integers(0, 16, (slots * people, *shape))
    gap = np.linspace(-3, 3, 16, dtype=np.float32)[level]
    controls = make_controls([sampling] * slots, range(slots), range(7, 7 + slots), 1)
    logits = jnp.stack([jnp.zeros_like(gap), jnp.asarray(gap)], axis=-1)
    choose = jax.jit(
        lambda logits, controls: choose_bits(logits, uniforms(controls, people, shape), controls, (slots, people))[0]
    )
    return np.asarray(choose(logits, controls)).ravel(), level.ravel()


def chi_square_p(bits: np.ndarray, level: np.ndarray, probability: np.ndarray) -> float:
    """Returns the chance of bits at least so far from the probability of each level's bits."""
    number = np.bincount(level)
    expected = number * probability
    statistic = (np.bincount(level, bits) - expected) ** 2 / (expected * (1 - probability))
    return float(chi2.sf(statistic.sum(), len(number)))


def test_a_million_draws_follow_their_probabilities_and_no_others():
    bits, level = draw(Sampling(tau=1.0, top_p=1.0))
    gap = np.linspace(-3, 3, 16)
    assert len(bits) == 10**6
    assert chi_square_p(bits, level, 1 / (1 + np.exp(-gap))) > 1e-3
    assert chi_square_p(bits, level, 1 / (1 + np.exp(-gap / 1.03))) < 1e-3


def test_temperature_divides_the_logits_of_the_draw():
    bits, level = draw(Sampling(tau=0.5, top_p=1.0))
    gap = np.linspace(-3, 3, 16)
    assert chi_square_p(bits, level, 1 / (1 + np.exp(-gap / 0.5))) > 1e-3


def test_every_seed_chunk_and_person_draws_its_own_numbers():
    controls = make_controls([Sampling()] * 3, [5, 5, 6], [0, 1, 0], 1)
    numbers = np.asarray(uniforms(controls, 2, (3, 4))).reshape(6, -1)
    assert len(np.unique(numbers)) == numbers.size
    alone = make_controls([Sampling()], [5], [1], 1)
    np.testing.assert_array_equal(uniforms(alone, 1, (3, 4))[0], numbers.reshape(6, 3, 4)[2])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"slots": 0}, "slots and people must be at least 1"),
        ({"people": 3}, "people of a dialogue at most 2, got 1, 3"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
        ({"slots": 3, "devices": jax.devices() * 2}, "slots must be a multiple of the 2 devices, got 3"),
    ],
)
def test_impossible_programs_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        make_program(tiny_model("dialogue"), **settings)


def test_a_codec_is_refused():
    with pytest.raises(UserError, match="a codec does not decode"):
        make_program(tiny_model("codec"))
