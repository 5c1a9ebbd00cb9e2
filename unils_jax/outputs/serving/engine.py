"""The one thread that touches JAX: it owns `Streams`, feeds them and hands their motion out.

The event loop posts calls, which run here in their order; whatever a conversation has to say goes
to its `sink`, a function that is called in this thread.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unils_jax.audio import Resampler
from unils_jax.errors import UserError
from unils_jax.inference.program import Program
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.inference.streaming import Streams
from unils_jax.motion import MOTION_DIM, SAMPLE_RATE
from unils_jax.outputs.serving.metrics import Metrics
from unils_jax.outputs.serving.protocol import (
    Open,
    StreamError,
    end_message,
    pack_motion,
    read_samples,
    read_style,
    ready_message,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A message for a client, and what the session must know of it."""

    message: str | bytes
    frames: int = 0  # of motion in it
    is_end: bool = False  # whether it is the last one of a stream that was flushed


Sink = Callable[[Delivery | StreamError], None]


class Conversation:
    """One stream in the engine's thread, with its resamplers and the number of its next frame."""

    def __init__(self, streams: Streams, opened: Open, sink: Sink):
        if opened.people > streams.program.people:
            raise StreamError("bad_message", f"people must be at most {streams.program.people}, the server's")
        self.sink = sink
        self._streams, self._opened = streams, opened
        # A program of two people takes two tracks: a client with one has silence for the other.
        self._num_fed = max(opened.tracks, streams.program.people)
        self._stream = streams.open(
            sampling=opened.sampling(streams.sampling),
            seed=opened.seed,
            style=read_style(opened.style),
            tracks=self._num_fed,
            smoothed=opened.smoothed,
        )
        self._begin()

    def _begin(self) -> None:
        self._resamplers = [Resampler(self._opened.sample_rate, least_samples=1) for _ in range(self._opened.tracks)]
        self._first_frame = 0
        self._has_ended = False
        self.sink(Delivery(ready_message(self._streams, self._opened.people)))

    def feed(self, payload: bytes) -> None:
        """Takes a binary message."""
        track, samples = read_samples(payload, self._opened.format)
        if track >= self._opened.tracks:
            raise StreamError("bad_message", f"track must be 0 to {self._opened.tracks - 1}, got {track}")
        self._feed(track, self._resamplers[track].push(samples[None])[0])

    def _feed(self, track: int, samples: np.ndarray) -> None:
        tracks = [np.zeros(0, np.float32)] * self._num_fed
        tracks[track] = samples
        if self._num_fed > self._opened.tracks:
            tracks[1] = np.zeros(len(samples), np.float32)
        self._stream.feed(*tracks)

    def flush(self) -> None:
        """Ends the audio."""
        for track, resampler in enumerate(self._resamplers):
            self._feed(track, resampler.finish(1)[0])
        self._stream.flush()
        self.collect()

    def reset(self) -> None:
        """Begins anew, as it was opened."""
        self._stream.reset()
        self._begin()

    def set_style(self, style: str | None) -> None:
        """Changes the style from the next chunk on."""
        self._stream.set_style(read_style(style))

    def close(self) -> None:
        """Frees its place."""
        self._stream.close()

    def collect(self) -> int:
        """Hands out what became final; returns its frames."""
        motion = self._stream.receive()[: self._opened.people]
        if frames := motion.shape[1]:
            self.sink(Delivery(pack_motion(self._first_frame, motion), frames))
            self._first_frame += frames
        if self._stream.is_finished and not self._has_ended:
            self._has_ended = True
            self.sink(Delivery(end_message(self._first_frame), is_end=True))
        return frames

    @property
    def newest_latency_s(self) -> float:
        """Seconds that its newest chunk waited for its turn."""
        return self._stream.latencies[-1].queue_s


class Engine:
    """The thread, its streams and the calls that wait for it.

    `is_ready` is set once the program is compiled. After an unforeseen error `failure` says so, and
    every conversation has been given a `StreamError`.
    """

    def __init__(
        self,
        program: Program,
        expression_basis: str,
        capacity: int,
        metrics: Metrics,
        sampling: Sampling = DEFAULT_SAMPLING,
    ):
        self.streams = Streams(program, expression_basis=expression_basis, sampling=sampling, capacity=capacity)
        self.is_ready = threading.Event()
        self.failure = ""
        self._metrics = metrics
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._conversations: dict[int, Conversation] = {}
        self._thread = threading.Thread(target=self._run, name="unils-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread, which compiles first."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the calls that were posted."""
        self._calls.put(None)
        self._thread.join()

    def open(self, number: int, opened: Open, sink: Sink) -> None:
        """Opens a conversation under a number of the caller's."""

        def opening() -> None:
            self._conversations[number] = Conversation(self.streams, opened, sink)

        self._calls.put(lambda: self._guarded(number, sink, opening))

    def post(self, number: int, call: Callable[[Conversation], None]) -> None:
        """Runs a call on a conversation; nothing, where it was closed meanwhile."""

        def calling() -> None:
            if conversation := self._conversations.get(number):
                self._guarded(number, conversation.sink, lambda: call(conversation))

        self._calls.put(calling)

    def close(self, number: int) -> None:
        """Closes a conversation."""
        self._calls.put(lambda: self._close(number))

    def _close(self, number: int) -> None:
        if conversation := self._conversations.pop(number, None):
            conversation.close()

    def _guarded(self, number: int, sink: Sink, call: Callable[[], None]) -> None:
        """Runs a call; what a client did wrong closes that client's conversation alone."""
        try:
            call()
        except StreamError as error:
            self._close(number)
            sink(error)
        except UserError as error:
            self._close(number)
            sink(StreamError("bad_message", " ".join(str(error).splitlines())))

    def _run(self) -> None:
        try:
            self._warm_up()
            self.is_ready.set()
            while self._take_calls():
                if self.streams.queue:
                    self._step()
        except Exception:
            log.exception("the decoder failed; all streams are closed")
            self.is_ready.clear()
            self.failure = "the decoder failed; start the server anew"
            for conversation in self._conversations.values():
                conversation.sink(StreamError("failed", self.failure))

    def _take_calls(self) -> bool:
        """Runs all calls that wait, and waits for one where nothing is to decode; False ends."""
        is_idle = not self.streams.queue
        while True:
            try:
                call = self._calls.get(block=is_idle)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
            # One call may have made a chunk complete; the others that wait come along with it.
            is_idle = is_idle and not self.streams.queue

    def _step(self) -> None:
        begun = time.perf_counter()
        num_served = self.streams.step()
        seconds = time.perf_counter() - begun
        self._metrics.count_run(num_served, num_served * self.streams.window_frames / self.streams.fps, seconds)
        for conversation in list(self._conversations.values()):
            if conversation.collect():
                self._metrics.queue_seconds.observe(conversation.newest_latency_s)

    def _warm_up(self) -> None:
        """Compiles everything that a stream may need: a chunk, a style, a reset."""
        window, people = self.streams.program.window, self.streams.program.people
        stream = self.streams.open(tracks=2, style=np.zeros((people, window.context_frames, MOTION_DIM), np.float32))
        stream.feed(*np.zeros((2, SAMPLE_RATE // 100), np.float32))
        stream.flush()
        self.streams.run()
        stream.reset()
        stream.set_style(None)
        stream.close()
