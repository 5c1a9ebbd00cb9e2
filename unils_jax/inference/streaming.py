"""Decoding live: audio is fed as it comes, motion is handed out as it becomes final.

A stream is the one-shot decode of what it was fed, cut by chunks of 4 s instead of files: with the same program the
motion is equal, bit for bit. Many streams of one process share the program's slots. Not for several threads at once.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.inference.program import Program
from unils_jax.inference.sampling import Sampling
from unils_jax.inference.slots import Slots, Turn, check_guidance, clip_of
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME, WINDOW_FRAMES, WINDOW_SAMPLES, smooth

SMOOTHER_FRAMES = 9
SMOOTHER_DELAY_FRAMES = SMOOTHER_FRAMES // 2
KEPT_LATENCIES = 100


class Smoother:
    """Savitzky-Golay over time (window 9, order 3) for motion that comes in pieces, equal to `motion.smooth`.

    A frame is final once the four that follow it are there, 0.16 s; the first four wait for the ninth, because either
    end of a sequence is one polynomial through its outermost nine frames. It keeps nine frames.
    """

    def __init__(self, people: int):
        self._kept = np.zeros((people, 0, MOTION_DIM), np.float32)
        self._has_begun = False

    def feed(self, motion: Float[np.ndarray, "P T 108"]) -> Float[np.ndarray, "P T2 108"]:
        """The frames that became final."""
        frames = np.concatenate([self._kept, motion], axis=1)
        if frames.shape[1] < SMOOTHER_FRAMES:
            self._kept = frames
            return frames[:, :0]
        handed_out = SMOOTHER_FRAMES - SMOOTHER_DELAY_FRAMES if self._has_begun else 0
        self._kept, self._has_begun = frames[:, -SMOOTHER_FRAMES:], True
        return smooth(frames)[:, handed_out:-SMOOTHER_DELAY_FRAMES]

    def flush(self) -> Float[np.ndarray, "P T 108"]:
        """The frames that are left where no more will come; the smoother is as new."""
        left = smooth(self._kept)[:, -SMOOTHER_DELAY_FRAMES if self._has_begun else 0 :]
        self._kept, self._has_begun = self._kept[:, :0], False
        return left


@dataclass(frozen=True)
class Latency:
    """Where a chunk's time went, in seconds: `collect_s` from its first sample to its last, `queue_s` until the program
    took it, `encode_s` in the audio encoder (0 where it was not timed apart) and `decode_s` in all the rest.
    `queue_runs` counts the program's runs that served others after the chunk was next in its stream."""

    collect_s: float
    queue_s: float
    encode_s: float
    decode_s: float
    queue_runs: int


class _Track:
    """Samples that wait, with the times when they came."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, np.ndarray]] = deque()
        self.waiting = 0

    def append(self, samples: np.ndarray, now: float) -> None:
        if len(samples):
            self._pieces.append((now, np.array(samples, np.float32)))
            self.waiting += len(samples)

    def take(self, window: np.ndarray) -> float:
        """Fills the window's beginning with what there is; gives the time when its first sample came."""
        first, filled = self._pieces[0][0] if self._pieces else np.inf, 0
        while self._pieces and filled < len(window):
            came, piece = self._pieces.popleft()
            part = piece[: len(window) - filled]
            window[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(piece):
                self._pieces.appendleft((came, piece[len(part) :].copy()))
        self.waiting -= filled
        return first


class Stream:
    """One live conversation; `Streams.open` makes it.

    Feed, let `Streams.step` run, receive. What was neither decoded nor received yet is kept: a stream that is received
    from as it goes holds at most what it was fed beyond a chunk and one chunk of motion.
    """

    def __init__(self, streams: "Streams", row: int, clips: dict, sampling: Sampling, seed: int, options: dict):
        self._streams, self._row, self._clips = streams, row, clips
        self._sampling, self._seed = sampling, seed
        self._num_tracks = options["tracks"]
        self._smoother = Smoother(streams.program.people) if options["smoothed"] else None
        self.latencies: deque[Latency] = deque(maxlen=KEPT_LATENCIES)
        self._clear()

    def _clear(self) -> None:
        self._tracks = [_Track() for _ in range(self._num_tracks)]
        self._fed_samples = [0] * self._num_tracks
        self._index = 0
        self._ended = False
        self._motion: list[np.ndarray] = []
        self._ready_at: deque[float] = deque()
        self._ready_run = 0

    def feed(self, own: Float[np.ndarray, " N"], other: Float[np.ndarray, " N2"] | None = None) -> None:
        """Takes samples (16 kHz mono) of both tracks, any number each; of the own alone where the other is silent.

        Raises UserError after `flush` or `close`, and where the tracks are not as the stream was opened.
        """
        self._check_open()
        if self._ended:
            raise UserError("the stream was flushed; reset it or open another one")
        if (other is not None) != (self._num_tracks == 2):
            raise UserError(f"the stream was opened with {self._num_tracks} tracks; feed as many")
        now = self._streams.clock()
        for i, samples in enumerate((own, other)[: self._num_tracks]):
            if not np.isfinite(samples).all():
                raise UserError("audio holds NaN or infinite samples; feed finite ones")
            self._tracks[i].append(samples, now)
            self._fed_samples[i] += len(samples)
        self._note_ready(min(self._fed_samples) // WINDOW_SAMPLES, now)

    def flush(self) -> None:
        """Says that nothing more will come: the rest is padded with silence, the motion cut to ceil(samples / 640)."""
        self._check_open()
        self._ended = True
        self._note_ready(-(-max(self._fed_samples) // WINDOW_SAMPLES), self._streams.clock())
        if not self._ready_at and self._smoother is not None:
            self._motion.append(self._smoother.flush())

    def reset(self) -> None:
        """Starts anew, as it was opened; what was fed and not received is dropped."""
        self._check_open()
        self._leave_queue()
        self._streams.slots.restart(self._row, self._clips["prev"])
        self._streams.slots.set_style(self._row, self._clips["style"])
        if self._smoother is not None:
            self._smoother.flush()
        self._clear()

    def set_style(self, style: Float[np.ndarray, "S 100 108"] | None) -> None:
        """Changes the style of every chunk that is not decoded yet; None is zero motion."""
        self._check_open()
        self._streams.slots.set_style(self._row, clip_of("style", style, self._streams.program.people))

    def receive(self) -> Float[np.ndarray, "P T 108"]:
        """The frames that became final since the last call, possibly none."""
        motion, self._motion = self._motion, []
        return np.concatenate([np.zeros((self._streams.program.people, 0, MOTION_DIM), np.float32), *motion], axis=1)

    def close(self) -> None:
        """Gives its place to another stream; what was decoded can still be received."""
        self._check_open()
        self._leave_queue()
        self._streams.slots.release(self._row)
        self._streams.open_streams.remove(self)

    @property
    def num_ready(self) -> int:
        """Chunks whose audio is complete and which are not decoded yet."""
        return len(self._ready_at)

    def _check_open(self) -> None:
        if self not in self._streams.open_streams:
            raise UserError("the stream is closed; open another one")

    def _leave_queue(self) -> None:
        if self._ready_at:
            self._streams.queue.remove(self)
            self._ready_at.clear()

    def _note_ready(self, complete: int, now: float) -> None:
        was_waiting = bool(self._ready_at)
        self._ready_at.extend([now] * (complete - self._index - len(self._ready_at)))
        if self._ready_at and not was_waiting:
            self._ready_run = self._streams.num_runs
            self._streams.queue.append(self)

    def _take_turn(self) -> tuple[Turn, tuple[float, float, int]]:
        """The next chunk, and its times: collected and queued seconds, runs that it waited for."""
        window = np.zeros((2, WINDOW_SAMPLES), np.float32)
        first = min(track.take(part) for track, part in zip(self._tracks, window, strict=False))
        ready, now = self._ready_at.popleft(), self._streams.clock()
        turn = Turn(self._row, window, self._sampling, self._seed, self._index)
        self._index += 1
        times = ready - first, now - ready, self._streams.num_runs - self._ready_run
        if self._ready_at:
            self._ready_run = self._streams.num_runs + 1
            self._streams.queue.append(self)
        return turn, times

    def _take_motion(self, motion: np.ndarray, latency: Latency) -> None:
        self.latencies.append(latency)
        last = self._ended and not self._ready_at
        if last:
            frames = -(-max(self._fed_samples) // SAMPLES_PER_FRAME)
            motion = motion[:, : frames - (self._index - 1) * WINDOW_FRAMES]
        if self._smoother is None:
            self._motion.append(motion.copy())
            return
        self._motion.append(self._smoother.feed(motion))
        if last:
            self._motion.append(self._smoother.flush())


class Streams:
    """Live conversations of one process, up to `capacity` open at a time, over the slots of one program.

    A run of the program serves as many streams as it has slots, those first that have waited longest. A round is as
    many runs as give each open stream one turn, ceil(open / slots); a chunk that is next in its stream waits for one
    round at most. With `timed` the encoder runs in a jit of its own, so that its time is known apart.
    """

    def __init__(
        self,
        program: Program,
        *,
        capacity: int | None = None,
        timed: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.program = program
        self.slots = Slots(program, capacity or program.slots)
        self.clock = clock
        self.queue: deque[Stream] = deque()
        self.open_streams: set[Stream] = set()
        self.num_runs = 0
        self._timed = timed

    def open(
        self,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        style: Float[np.ndarray, "S 100 108"] | None = None,
        prev: Float[np.ndarray, "R 100 108"] | None = None,
        tracks: int = 2,
        smoothed: bool = False,
    ) -> Stream:
        """A new stream of the program's people. `tracks` = 1: the other track is silent, and not fed.

        `smoothed` motion (`Smoother`) is for display and comes four frames later. Raises UserError where all places
        are taken, or where the program cannot decode what is asked for.
        """
        if len(self.open_streams) == self.slots.capacity:
            raise UserError(f"{self.slots.capacity} streams are open already; close one or give a larger capacity")
        if tracks not in (1, 2) or tracks < self.program.people:
            raise UserError(f"tracks must be {self.program.people} to 2, got {tracks}")
        sampling = sampling or Sampling()
        check_guidance(self.program, sampling)
        people = self.program.people
        clips = {"style": clip_of("style", style, people), "prev": clip_of("prev", prev, people)}
        options = {"tracks": tracks, "smoothed": smoothed}
        stream = Stream(self, self.slots.admit(clips["style"], clips["prev"]), clips, sampling, seed, options)
        self.open_streams.add(stream)
        return stream

    def step(self) -> int:
        """Decodes a chunk of each of the streams whose turn it is; gives their number, 0 where nothing is ready."""
        chosen = [self.queue.popleft() for _ in range(min(self.program.slots, len(self.queue)))]
        if not chosen:
            return 0
        turns, times = zip(*(stream._take_turn() for stream in chosen), strict=True)
        self.num_runs += 1
        motion, encode_s, decode_s = self._decode(turns)
        for stream, window, (collect_s, queue_s, runs) in zip(chosen, motion, times, strict=False):
            stream._take_motion(window, Latency(collect_s, queue_s, encode_s, decode_s, runs))
        return len(chosen)

    def run(self) -> int:
        """Steps until nothing is ready; gives the number of chunks."""
        total = 0
        while served := self.step():
            total += served
        return total

    def _decode(self, turns: tuple[Turn, ...]) -> tuple[np.ndarray, float, float]:
        begun = encoded = self.clock()
        features = None
        if self._timed:
            features = jax.block_until_ready(self.program.encode(self.slots.window(turns)))
            encoded = self.clock()
        motion = np.asarray(self.slots.decode(turns, features).motion)
        return motion, encoded - begun, self.clock() - encoded
