"""Live decoding: pieces of any size, equal to one-shot; fair shares; bounded memory; the smoother; what is refused."""

import ctypes
import gc
import resource
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny_models import noise, random_motion, tiny_model

from unils_jax.errors import UserError
from unils_jax.inference.conversations import Request, Sampling, decode_many, make_program
from unils_jax.inference.finishing import Smoother, finish
from unils_jax.inference.streaming import Stream, Streams
from unils_jax.motion import smooth

CHUNK = 64_000


@pytest.fixture(scope="module")
def program():
    return make_program(tiny_model("merged"), slots=3)


def style(seed: int = 5) -> np.ndarray:
    return np.asarray(random_motion(1, 100, seed=seed))


def one_shot(program, *tracks: np.ndarray, **settings) -> np.ndarray:
    return next(decode_many(program, [Request(*tracks, **settings)]))[1]


def feed_in_pieces(streams: Streams, stream: Stream, own, other, sizes) -> np.ndarray:
    """Feeds pieces of the given sizes and then the rest, stepping as it goes; all that was received."""
    motion, start = [], 0
    for size in [*sizes, max(len(own), len(other))]:
        stream.feed(own[start : start + size], other[start : start + size])
        start += size
        streams.run()
        motion.append(stream.receive())
    stream.flush()
    streams.run()
    return np.concatenate([*motion, stream.receive()], axis=1)


@pytest.mark.parametrize("sizes", [[], [1, 639, 640, 63_359, 1], [70_000] * 2, [7_777] * 12], ids=str)
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_stream_is_the_one_shot_decode_however_it_is_fed(program, sizes, smoothed):
    own, other = noise(150_001), noise(90_000, 1)
    streams = Streams(program)
    stream = streams.open(seed=3, style=style(), smoothed=smoothed)
    motion = feed_in_pieces(streams, stream, own, other, sizes)
    expected = one_shot(program, own, other, seed=3, style=style())
    np.testing.assert_array_equal(motion, finish(expected, "", causal=True).motion if smoothed else expected)
    assert motion.shape[1] == 235


def test_tracks_may_come_one_after_the_other(program):
    own, other = noise(CHUNK), noise(CHUNK, 1)
    streams = Streams(program)
    stream = streams.open()
    stream.feed(own, other[:0])
    assert streams.run() == 0 and stream not in streams.queue
    stream.feed(own[:0], other)
    assert streams.run() == 1
    np.testing.assert_array_equal(stream.receive(), one_shot(program, own, other))


def test_a_single_track_hears_silence(program):
    streams = Streams(program)
    stream = streams.open(tracks=1)
    stream.feed(noise(1000))
    stream.flush()
    streams.run()
    np.testing.assert_array_equal(stream.receive(), one_shot(program, noise(1000)))


def test_a_chunk_is_handed_out_as_soon_as_its_audio_is_there(program):
    streams = Streams(program)
    plain, smoothed = streams.open(tracks=1), streams.open(tracks=1, smoothed=True)
    received = []
    for samples in (CHUNK - 1, 1, CHUNK):
        for stream in (plain, smoothed):
            stream.feed(noise(samples))
        streams.run()
        received.append((plain.receive().shape[1], smoothed.receive().shape[1]))
    assert received == [(0, 0), (100, 96), (100, 100)]
    smoothed.flush()
    assert smoothed.receive().shape[1] == 4


def test_neighbours_change_nothing_and_take_their_turns(program):
    streams = Streams(program, capacity=8)
    opened = [streams.open(seed=i, tracks=1, sampling=Sampling(tau=i / 4)) for i in range(8)]
    for i, stream in enumerate(opened):
        stream.feed(noise(CHUNK * 3, i))
    served = []
    while streams.step():
        served.append([stream.receive().shape[1] // 100 for stream in opened])
    # Nobody gets a second chunk before everybody has had the first.
    assert np.cumsum(served, axis=0)[2].tolist() == [2] + [1] * 7
    assert np.sum(served, axis=0).tolist() == [3] * 8
    # A chunk is next in its stream when the one before it was decoded: then it waits for one round, three runs.
    assert max(latency.queue_runs for stream in opened for latency in stream.latencies) <= 3


def test_a_new_style_takes_effect_at_the_next_chunk(program):
    own, plain = noise(CHUNK * 2), Sampling(tau=0.0, cfg=1.0)
    streams = Streams(program)
    stream = streams.open(tracks=1, style=style(1), sampling=plain)
    stream.feed(own[:CHUNK])
    streams.run()
    stream.set_style(style(2))
    stream.feed(own[CHUNK:])
    streams.run()
    motion = stream.receive()
    unchanged = one_shot(program, own, style=style(1), sampling=plain)
    np.testing.assert_array_equal(motion[:, :100], unchanged[:, :100])
    assert not np.allclose(motion[:, 100:], unchanged[:, 100:])
    # Greedy and without guidance, a chunk hangs on its audio, style and previous motion alone.
    second = one_shot(program, own[CHUNK:], style=style(2), prev=motion[:, :100], sampling=plain)
    np.testing.assert_array_equal(motion[:, 100:], second)


def test_reset_begins_anew(program):
    streams = Streams(program)
    stream = streams.open(seed=4, tracks=1, style=style(1), prev=style(2), smoothed=True)
    stream.feed(noise(CHUNK + 100, 1))
    streams.run()
    stream.set_style(style(3))
    stream.feed(noise(CHUNK, 2))
    stream.reset()
    assert stream not in streams.queue and stream.receive().shape[1] == 0 and streams.run() == 0
    stream.feed(noise(1000))
    stream.flush()
    streams.run()
    expected = one_shot(program, noise(1000), seed=4, style=style(1), prev=style(2))
    np.testing.assert_array_equal(stream.receive(), finish(expected, "", causal=True).motion)


def test_a_closed_stream_leaves_its_place_to_another(program):
    streams = Streams(program, capacity=1)
    first = streams.open(tracks=1, style=style(), seed=1)
    first.feed(noise(CHUNK))
    first.close()
    second = streams.open(tracks=1)
    second.feed(noise(640))
    second.flush()
    assert streams.run() == 1
    np.testing.assert_array_equal(second.receive(), one_shot(program, noise(640)))


def test_latency_tells_collecting_queueing_encoding_and_decoding_apart(program):
    now = iter(range(1000))
    streams = Streams(program, timed=True, clock=lambda: float(next(now)))
    stream = streams.open(tracks=1)
    stream.feed(noise(CHUNK - 1))  # 0
    stream.feed(noise(1))  # 1
    streams.step()  # taken at 2, begun at 3, encoded at 4, decoded at 5
    (latency,) = stream.latencies
    assert (latency.collect_s, latency.queue_s, latency.encode_s, latency.decode_s) == (1, 1, 1, 1)


def test_timing_the_encoder_apart_changes_rounding_at_most(program):
    motions = []
    for timed in (False, True):
        streams = Streams(program, timed=timed)
        stream = streams.open(tracks=1)
        stream.feed(noise(CHUNK))
        streams.run()
        motions.append(stream.receive())
    np.testing.assert_allclose(*motions, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 8, 9, 10, 30])
@pytest.mark.parametrize("sizes", [[1] * 30, [100], [4, 5, 6], [9, 0, 12]], ids=str)
def test_the_smoother_in_pieces_is_the_offline_one(frames, sizes):
    motion = np.asarray(random_motion(2, frames))
    smoother, pieces, start = Smoother(2), [], 0
    for size in [*sizes, frames]:
        pieces.append(smoother.feed(motion[:, start : start + size]))
        start += size
        if size and 9 <= start <= frames:
            assert sum(piece.shape[1] for piece in pieces) == start - 4  # the delay
    pieces.append(smoother.flush())
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), smooth(motion))
    assert smoother.flush().shape[1] == 0


def test_misuse_is_told_in_one_line(program):
    streams = Streams(program, capacity=1)
    stream = streams.open(tracks=1)
    with pytest.raises(UserError, match="1 streams are open already; close one"):
        streams.open()
    with pytest.raises(UserError, match="opened with 1 tracks; feed as many"):
        stream.feed(noise(1), noise(1))
    with pytest.raises(UserError, match="NaN or infinite"):
        stream.feed(np.full(1, np.nan, np.float32))
    with pytest.raises(UserError, match=r"style must be \[1 or 1, 100, 108\]"):
        stream.set_style(np.zeros((2, 100, 108), np.float32))
    stream.flush()
    with pytest.raises(UserError, match="was flushed; reset it"):
        stream.feed(noise(1))
    stream.close()
    with pytest.raises(UserError, match="is closed; open another"):
        stream.feed(noise(1))
    with pytest.raises(UserError, match="tracks must be 1 to 2, got 3"):
        streams.open(tracks=3)


@dataclass
class Fed:
    """A stream under test: what it is fed, in pieces of at most `piece` samples, and what came out."""

    request: Request
    piece: int
    fed: int = 0
    motion: list[np.ndarray] = field(default_factory=list)

    def feed(self, stream: Stream, rng: np.random.Generator) -> None:
        """Feeds a few parts; flushes after the last one."""
        for _ in range(int(rng.integers(0, 4))):
            if self.fed < len(self.request.audio):
                part = slice(self.fed, self.fed + int(rng.integers(0, self.piece)))
                stream.feed(self.request.audio[part], self.request.other[part])
                self.fed = part.stop
                if self.fed >= len(self.request.audio):
                    stream.flush()


def random_request(rng: np.random.Generator, name: str) -> Request:
    own = rng.normal(0, 0.1, rng.integers(1, 4 * CHUNK)).astype(np.float32)
    other = rng.normal(0, 0.1, rng.integers(0, len(own) + 1)).astype(np.float32)
    sampling = Sampling(tau=float(rng.uniform(0, 1.2)), cfg=float(rng.uniform(0.5, 2)))
    return Request(own, other, sampling=sampling, seed=int(rng.integers(1 << 32)), name=name)


@pytest.mark.slow
def test_a_thousand_streams_are_their_one_shot_decodes():
    """Feeds random lengths in random patterns: equal to one-shot, fair, and no memory is kept."""
    program, rng = make_program(tiny_model("merged"), slots=8), np.random.default_rng(0)
    streams = Streams(program, capacity=40)
    live: dict[Stream, Fed] = {}
    ended: list[Fed] = []
    opened, waits, memory = 0, [], []
    while live or opened < 1000:
        while len(live) < 40 and opened < 1000:
            request = random_request(rng, str(opened))
            stream = streams.open(seed=request.seed, sampling=request.sampling)
            live[stream] = Fed(request, piece=int(rng.choice([2_000, 20_000, 70_000, 300_000])))
            opened += 1
        rounds = -(-len(live) // program.slots)
        for stream, state in live.items():
            state.feed(stream, rng)
        streams.step() if rng.random() < 0.5 else streams.run()
        for stream, state in list(live.items()):
            state.motion.append(stream.receive())
            waits += [latency.queue_runs / rounds for latency in stream.latencies]
            stream.latencies.clear()
            if state.fed >= len(state.request.audio) and stream not in streams.queue:
                stream.close()
                ended.append(live.pop(stream))
        if len(ended) >= 50 or opened == 1000 and not live:
            expected = {request.name: motion for request, motion in decode_many(program, [e.request for e in ended])}
            for state in ended:
                np.testing.assert_array_equal(np.concatenate(state.motion, axis=1), expected[state.request.name])
            ended.clear()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # other tests' commands tell malloc to keep what was freed
            memory.append(resident_mib())
    print(f"longest wait {max(waits):.2f} rounds; MiB held after every 50 streams: {[round(m) for m in memory]}")
    assert len(waits) > 1500 and max(waits) <= 2
    assert memory[-1] < memory[len(memory) // 2] * 1.01


def resident_mib() -> float:
    """Returns what the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
