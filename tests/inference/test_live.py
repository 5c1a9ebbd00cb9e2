"""Windows of any length: cached like the training forward, causal to the frame, and the same fed live."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import recorded_chunks, uncached
from hypothesis import given, settings
from hypothesis import strategies as st
from random_records import dialogue
from tiny_models import jitted, live_config, noise, random_model, random_motion

from data_pipelines.windows import RecordSource, cut_window, to_float
from unils_jax.errors import UserError
from unils_jax.inference.conversations import Request, decode_many
from unils_jax.inference.finishing import finish
from unils_jax.inference.program import Program, StepInputs, make_program
from unils_jax.inference.sampling import Sampling, make_controls
from unils_jax.inference.slots import Slots, Turn
from unils_jax.inference.streaming import Streams
from unils_jax.models.unils import UniLSConfig
from unils_jax.motion import SAMPLES_PER_FRAME, Window
from unils_jax.nn.params import merge, split
from unils_jax.systems.unils.system import StepNoise, generator_logits

pytestmark = pytest.mark.usefixtures("unoptimised")
LIVE = live_config(10, context_windows=3, past=15, ahead=3)
PLAIN = Sampling(tau=0.0, cfg=1.0)
CASES = [
    live_config(frames, context_windows, *audio)
    for frames, context_windows in ((10, 3), (25, 2), (100, 1))
    for audio in ((0, 0), (15, 3))
]


@cache
def program() -> Program:
    return make_program(random_model(LIVE, 0), slots=2)


def motion_of(own: np.ndarray, other: np.ndarray | None = None, **settings) -> np.ndarray:
    return next(decode_many(program(), [Request(own, other, **settings)]))[1]


def logits_of(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the motion and the logits of every window."""
    with recorded_chunks() as calls:
        motion = motion_of(own, other)
    return motion, [np.asarray(call.chunk.logits[0]) for call in calls]


def named(config: UniLSConfig) -> str:
    window, audio = config.window, config.prior.audio_condition
    return f"{window.frames}-{window.context_windows}-{window.past_audio_frames}-{window.lookahead_frames}-{audio}"


def cases() -> list:
    """Only the first of each kind is quick; the others are as many programs to compile."""
    one_audio = [live_config(25, 2, 15, 3, audio) for audio in ("own", "mixed")]
    every = [pytest.param(config, marks=pytest.mark.slow, id=named(config)) for config in (*CASES, *one_audio)]
    return [pytest.param(LIVE, id=named(LIVE)), *(case for case in every if case.values != (LIVE,))]


@pytest.mark.parametrize("config", cases())
def test_a_cached_window_is_the_training_forward(config):
    """Compares both branches with the uncached forward, and the conditional one with what training computes."""
    model, window = random_model(config, 0), config.window
    ready = make_program(model, people=2)
    clips = {name: random_motion(1, 2, window.context_frames, seed=seed) for seed, name in enumerate(("prev", "style"))}
    batch = {**clips, "motion": random_motion(1, 2, window.frames, seed=3)}
    batch["audio"] = jnp.asarray(noise(2 * window.num_samples).reshape(1, 2, -1))
    logits, bits = jitted(model, generator_logits, batch)
    style, prev = (ready.features(np.asarray(clips[name][0]))[None] for name in ("style", "prev"))
    uncond_prev = ready.features(np.asarray(random_motion(2, window.context_frames, seed=5)))[None]
    controls = make_controls([Sampling()], [0], [0], len(ready.scales))
    chunk, after = ready.chunk(StepInputs(batch["audio"], style, jnp.array(prev), uncond_prev, controls, bits))
    known = [x[0] for x in (style, prev, uncond_prev, bits)]
    conditional, unconditional, motion = jitted(model, uncached, batch["audio"][0], *known)
    np.testing.assert_allclose(conditional, logits[0], atol=1e-5)
    np.testing.assert_allclose(chunk.logits[0], 1.5 * conditional - 0.5 * unconditional, atol=1e-4)
    np.testing.assert_allclose(chunk.motion[0], motion, atol=1e-4)
    # The next window is conditioned on this one and on the newest windows before it.
    np.testing.assert_array_equal(after[:, :, : -window.frames], prev[:, :, window.frames :])
    np.testing.assert_array_equal(after[0][:, -window.frames :], ready.features(np.asarray(chunk.motion[0])))


@pytest.mark.slow
def test_a_past_of_several_windows_is_coded_window_by_window():
    """As decoding does, where each window of it was decoded and coded by itself."""
    model = random_model(LIVE, 0)
    batch = {name: random_motion(2, 30, seed=seed) for seed, name in enumerate(("prev", "style"))}
    batch |= {"motion": random_motion(2, 10, seed=3)}
    windows = batch["prev"].reshape(6, 10, 108)
    coded = jitted(model.codec, lambda codec, motion: codec(motion)[0], windows).reshape(2, 30, 108)
    audio = jnp.asarray(noise(2 * 2 * LIVE.window.num_samples).reshape(2, 2, -1))
    pairs = {name: jnp.stack([value, value], 1) for name, value in batch.items()} | {"audio": audio}
    no, yes = jnp.zeros((2, 2, 1, 1), bool), jnp.ones((2, 2, 1, 1), bool)
    flips = jnp.zeros((2, 2, sum(model.codec.scales[:-1]), 8), bool)
    passed, plain = StepNoise(no, no, no, no, flips, coded_prev=yes), StepNoise(no, no, no, no, flips)
    logits = jitted(model, generator_logits, pairs, passed)[0]
    expected = jitted(model, generator_logits, {**pairs, "prev": jnp.stack([coded, coded], 1)}, plain)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("changed_frame", [0, 12, 13, 22, 23, 24, 38])
def test_no_frame_depends_on_audio_behind_its_window_s_look_ahead(changed_frame):
    own, other = noise(40 * SAMPLES_PER_FRAME), noise(40 * SAMPLES_PER_FRAME, 1)
    before, logits = logits_of(own, other)
    for track in (own, other):
        track[changed_frame * SAMPLES_PER_FRAME :] = noise(1)[0]
    after, changed_logits = logits_of(own, other)
    # Windows end at frames 10, 20, 30, 40, and each is conditioned on three frames more.
    same = max(changed_frame - 3, 0) // 10 * 10
    np.testing.assert_array_equal(before[:, :same], after[:, :same])
    first = same // 10
    assert not np.array_equal(logits[first], changed_logits[first])


@pytest.mark.parametrize(("changed", "matters"), [(slice(0, 15), False), (slice(15, 16), True), (slice(42, 43), True)])
def test_no_frame_depends_on_audio_before_the_past_but_through_the_motion(changed, matters):
    """Window 3 holds frames 30-39: its audio is of frames 15-42, whatever the motion before it is of."""
    samples = slice(changed.start * SAMPLES_PER_FRAME, changed.stop * SAMPLES_PER_FRAME)
    own = noise(60 * SAMPLES_PER_FRAME)
    other = own.copy()
    other[samples] = noise(samples.stop - samples.start, 1)
    slots = Slots(program(), 1)
    row = slots.admit(prev=np.asarray(random_motion(1, 30)))
    logits = []
    for track in (own, other):
        slots.restart(row, np.asarray(random_motion(1, 30)))
        heard = Request(track).window(3, LIVE.window)
        logits.append(np.asarray(slots.decode([Turn(row, heard, PLAIN, 0, 3)]).logits[0]))
    assert np.array_equal(*logits) == (not matters)


def test_nothing_in_a_window_hangs_on_audio_outside_its_span_in_training():
    """The gradient of a window's loss by its audio: every frame of the past and of the look-ahead counts."""
    graphdef, params = split(random_model(LIVE, 0))
    window = LIVE.window
    batch = {name: random_motion(1, 2, window.context_frames) for name in ("prev", "style")}
    batch["motion"] = random_motion(1, 2, window.frames)
    audio = jnp.asarray(noise(2 * window.num_samples).reshape(1, 2, -1))

    def loss(audio):
        model = merge(graphdef, params)
        tracks = model.audio_of_people(model.encode_audio(audio))
        features = [model.codec.features(batch[name][0]) for name in ("style", "prev")]
        return model.prior(*features, jnp.zeros((2, 0, 8)), *tracks).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(audio)).reshape(1, 2, window.audio_frames, -1)
    assert window.audio_frames == 15 + 10 + 3 and np.abs(gradient).max(-1).all()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 30_000), st.integers(0, 30_000)),
    sizes=st.lists(st.integers(0, 12_000), max_size=8),
    smoothed=st.booleans(),
)
def test_a_stream_is_the_one_shot_decode_however_it_is_fed(lengths, sizes, smoothed):
    own, other = (noise(length, i) for i, length in enumerate(lengths))
    streams = Streams(program(), expression_basis="standin")
    stream, neighbour = streams.open(seed=7, smoothed=smoothed), streams.open(tracks=1, seed=1)
    start, parts = 0, []
    for size in [*sizes, 30_000]:
        stream.feed(own[start : start + size], other[start : start + size])
        neighbour.feed(noise(size, start))
        start += size
        streams.run()
        parts.append(stream.receive())
    stream.flush()
    streams.run()
    plain = motion_of(own, other, seed=7)
    expected = finish(plain, "standin", causal=True, window_frames=10).motion if smoothed else plain
    np.testing.assert_array_equal(np.concatenate([*parts, stream.receive()], axis=1), expected)


def test_a_stream_waits_for_the_look_ahead_and_no_longer():
    streams = Streams(program())
    assert (streams.window_frames, streams.lookahead_frames, streams.fps) == (10, 3, 25)
    stream = streams.open(tracks=1)
    received = []
    for samples in (13 * SAMPLES_PER_FRAME - 1, 1, 10 * SAMPLES_PER_FRAME - 1, 1):
        stream.feed(noise(samples))
        streams.run()
        received.append(stream.receive().shape[1])
    assert received == [0, 10, 0, 10]
    stream.flush()
    assert streams.run() == 1 and stream.receive().shape[1] == 3


def test_reset_forgets_the_past_audio():
    streams = Streams(program())
    stream = streams.open(tracks=1)
    stream.feed(noise(23 * SAMPLES_PER_FRAME, 1))
    streams.run()
    stream.reset()
    stream.feed(noise(20 * SAMPLES_PER_FRAME))
    stream.flush()
    streams.run()
    np.testing.assert_array_equal(stream.receive(), motion_of(noise(20 * SAMPLES_PER_FRAME)))


@settings(max_examples=50, deadline=None)
@given(
    k=st.integers(0, 9),
    window=st.builds(Window, st.sampled_from([10, 25]), st.just(1), st.integers(0, 90), st.integers(0, 12)),
)
def test_training_and_decoding_are_conditioned_on_the_same_audio(k, window):
    record = dialogue("numbered", 250, 0)
    start = min(k * window.frames, 250 - window.frames)
    draws = iter([start, 0, 0])
    cut = cut_window(RecordSource(record), 0, lambda low, high: next(draws), window)
    assert cut["motion"][0, 0, 1] == start
    heard = Request(*to_float(record.audio)).window(start // window.frames, window)
    np.testing.assert_array_equal(cut["audio"], heard)


def test_clips_of_another_length_than_the_context_are_refused():
    with pytest.raises(UserError, match=r"style must be \[1 or 1, 30, 108\], got \[1, 100, 108\]"):
        Streams(program()).open(style=np.zeros((1, 100, 108), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_windows": 0}, "context_windows must be at least 1"),
        ({"lookahead_frames": -1}, "lookahead_frames must not be negative"),
        ({"audio_dim": None}, "without prior.audio_dim there is no audio"),
    ],
)
def test_impossible_windows_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LIVE, prior=dataclasses.replace(LIVE.prior, **change))
