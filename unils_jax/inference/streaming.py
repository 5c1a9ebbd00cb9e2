"""Live decoding: audio is fed as it comes, motion is handed out as it becomes final.

A stream decodes what one-shot decoding of the same audio would, chunk by chunk instead of file by
file: with the same program the motion is equal bit for bit. A chunk is a window of the model, 4 s
of the release's; where the model looks ahead, it waits for that audio, too. Many streams of one
process share the program's slots. Streams are not for several threads at once.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.inference.finishing import Finisher
from unils_jax.inference.program import Program
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.inference.slots import Clip, Slots, Turn, check_sampling, clip_of
from unils_jax.motion import FPS, MOTION_DIM, SAMPLES_PER_FRAME, Window

KEPT_LATENCIES = 100  # of a stream, the newest


@dataclass(frozen=True)
class Latency:
    """Where the time of one chunk went."""

    collect_s: float  # from its first sample to the last one that it needs, of the look-ahead
    queue_s: float  # from then until the program took it
    queue_runs: int  # runs of the program for other streams while the chunk was next in its own
    encode_s: float = 0.0  # in the audio encoder; 0 where that is not timed apart
    decode_s: float = 0.0  # in all the rest


@dataclass(frozen=True)
class _Settings:
    """How one stream decodes."""

    sampling: Sampling
    seed: int
    style: Clip | None  # when it starts; None: zero motion
    prev: Clip | None  # previous motion of its first chunk; None: zero motion
    num_tracks: int  # tracks that are fed: 2, or 1 where the other one is silent
    smoothed: bool  # whether the motion goes through a `Finisher`


class _Track:
    """Samples that wait to be decoded, with their arrival times, and those before them."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._chunks: deque[tuple[float, np.ndarray]] = deque()
        self._past = np.zeros(window.past_audio_frames * SAMPLES_PER_FRAME, np.float32)

    def append(self, samples: np.ndarray, now: float) -> None:
        if len(samples):
            # A copy: the caller may fill its buffer again.
            self._chunks.append((now, np.array(samples, np.float32)))

    def take(self, heard: np.ndarray) -> float:
        """Fills in the next window's audio [N]; returns the arrival time of its first new sample.

        The window's own samples are taken, those of its look-ahead stay for the next one.
        """
        first, past = self._chunks[0][0] if self._chunks else np.inf, len(self._past)
        heard[:past] = self._past
        filled = past
        for _, samples in self._chunks:
            part = samples[: len(heard) - filled]
            heard[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(heard):
                break
        taken = self._window.frames * SAMPLES_PER_FRAME
        self._past = heard[taken : taken + past].copy()
        self._drop(taken)
        return first

    def _drop(self, count: int) -> None:
        while self._chunks and count:
            arrived, samples = self._chunks.popleft()
            if len(samples) > count:
                # A copy of the rest lets the decoded part be freed.
                self._chunks.appendleft((arrived, samples[count:].copy()))
            count -= min(count, len(samples))


class Stream:
    """One live conversation; `Streams.open` makes it.

    Call `feed`, then `Streams.step`, then `receive`. What was neither decoded nor received yet is
    kept: a stream that is received from as it goes holds at most the audio fed beyond a chunk, the
    past audio that the next one is conditioned on, and one chunk of motion.
    """

    def __init__(self, streams: "Streams", row: int, settings: _Settings):
        self._streams, self._row, self._settings = streams, row, settings
        self._finisher = (
            Finisher(streams.program.people, streams.expression_basis, streams.window_frames)
            if settings.smoothed
            else None
        )
        self.latencies: deque[Latency] = deque(maxlen=KEPT_LATENCIES)
        self._clear()

    def _clear(self) -> None:
        self._tracks = [_Track(self._streams.program.window) for _ in range(self._settings.num_tracks)]
        self._fed_samples = [0] * self._settings.num_tracks
        self._index = 0  # of the next chunk
        self._ended = False  # whether `flush` was called
        self._motion: list[np.ndarray] = []  # final, not received yet
        self._ready_at: deque[float] = deque()  # when each chunk that waits was complete
        self._ready_run = 0  # the program's run from which on the next chunk waits

    def feed(self, own: Float[np.ndarray, " N"], other: Float[np.ndarray, " N2"] | None = None) -> None:
        """Takes samples (16 kHz mono) of both tracks, any number of each.

        Only the own track is fed where the stream was opened with one. Raises UserError after
        `flush` or `close`, and where the tracks are not as the stream was opened.
        """
        self._check_open()
        if self._ended:
            raise UserError("the stream was flushed; reset it or open another one")
        num_tracks = self._settings.num_tracks
        if (other is not None) != (num_tracks == 2):
            raise UserError(f"the stream was opened with {num_tracks} tracks; feed as many")
        now = self._streams.clock()
        for i, samples in enumerate((own, other)[:num_tracks]):
            if not np.isfinite(samples).all():
                raise UserError("audio holds NaN or infinite samples; feed finite ones")
            self._tracks[i].append(samples, now)
            self._fed_samples[i] += len(samples)
        # A chunk needs both tracks, so the shorter one decides.
        self._note_ready(self._streams.program.window.num_complete(min(self._fed_samples)), now)

    def flush(self) -> None:
        """Ends the audio: pads the rest with silence and cuts the motion to ceil(samples / 640).

        The silence is also what the last chunks look ahead to.
        """
        self._check_open()
        self._ended = True
        self._note_ready(self._streams.program.window.count(max(self._fed_samples)), self._streams.clock())
        if not self._ready_at and self._finisher is not None:
            self._motion.append(self._finisher.flush())

    def reset(self) -> None:
        """Starts the stream anew, as it was opened; what was fed and not received is dropped."""
        self._check_open()
        self._leave_queue()
        self._streams.slots.restart(self._row, self._settings.prev)
        self._streams.slots.set_style(self._row, self._settings.style)
        if self._finisher is not None:
            self._finisher.flush()
        self._clear()

    def set_style(self, style: Float[np.ndarray, "S F 108"] | None) -> None:
        """Changes the style of every chunk that is not decoded yet; None is zero motion."""
        self._check_open()
        program = self._streams.program
        self._streams.slots.set_style(self._row, clip_of("style", style, program.people, program.window))

    def receive(self) -> Float[np.ndarray, "P T 108"]:
        """Returns the frames that became final since the last call, possibly none."""
        motion, self._motion = self._motion, []
        return np.concatenate([np.zeros((self._streams.program.people, 0, MOTION_DIM), np.float32), *motion], axis=1)

    @property
    def is_finished(self) -> bool:
        """Whether it was flushed and all of its audio is decoded."""
        return self._ended and not self._ready_at

    def close(self) -> None:
        """Frees the stream's place for another one; what was decoded can still be received."""
        self._check_open()
        self._leave_queue()
        self._streams.slots.release(self._row)
        self._streams.open_streams.remove(self)

    def _check_open(self) -> None:
        if self not in self._streams.open_streams:
            raise UserError("the stream is closed; open another one")

    def _leave_queue(self) -> None:
        if self._ready_at:
            self._streams.queue.remove(self)
            self._ready_at.clear()

    def _note_ready(self, num_complete: int, now: float) -> None:
        """Puts the stream into the queue once any of its `num_complete` chunks is not decoded."""
        was_waiting = bool(self._ready_at)
        self._ready_at.extend([now] * (num_complete - self._index - len(self._ready_at)))
        if self._ready_at and not was_waiting:
            self._ready_run = self._streams.num_runs
            self._streams.queue.append(self)

    def _take_turn(self) -> tuple[Turn, Latency]:
        """Takes the next chunk; returns it and how long it was collected and queued."""
        heard = np.zeros((2, self._streams.program.window.num_samples), np.float32)
        first = min(track.take(part) for track, part in zip(self._tracks, heard, strict=False))
        ready, now = self._ready_at.popleft(), self._streams.clock()
        turn = Turn(self._row, heard, self._settings.sampling, self._settings.seed, self._index)
        self._index += 1
        latency = Latency(ready - first, now - ready, self._streams.num_runs - self._ready_run)
        if self._ready_at:
            # One turn a round: the stream's next chunk goes behind all streams that wait.
            self._ready_run = self._streams.num_runs + 1
            self._streams.queue.append(self)
        return turn, latency

    def _take_motion(self, motion: np.ndarray, latency: Latency) -> None:
        self.latencies.append(latency)
        last = self.is_finished
        if last:
            # The padding that completed the last window is cut off again.
            frames = -(-max(self._fed_samples) // SAMPLES_PER_FRAME)
            motion = motion[:, : frames - (self._index - 1) * self._streams.window_frames]
        if self._finisher is None:
            self._motion.append(motion.copy())
            return
        self._motion.append(self._finisher.feed(motion))
        if last:
            self._motion.append(self._finisher.flush())


class Streams:
    """Live conversations of one process, over the slots of one program.

    Up to `capacity` may be open at a time (None: as many as the program has slots). A run of the
    program serves as many streams as it has slots, those first that have waited longest. A round is
    as many runs as give each open stream one turn, ceil(open / slots); a chunk that is next in its
    stream waits for one round at most. With `timed` the encoder runs in a jit apart, so that its
    time is known. `expression_basis` is the checkpoint's, for the limits of streams that are
    smoothed; "" leaves their expression without. `sampling`, the checkpoint's own, is that of all
    streams that are opened without one.
    """

    def __init__(
        self,
        program: Program,
        *,
        expression_basis: str = "",
        sampling: Sampling = DEFAULT_SAMPLING,
        capacity: int | None = None,
        timed: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.program = program
        self.expression_basis = expression_basis
        self.sampling = sampling
        self.slots = Slots(program, capacity or program.slots)
        self.clock = clock
        self.queue: deque[Stream] = deque()
        self.open_streams: set[Stream] = set()
        self.num_runs = 0
        self._timed = timed

    @property
    def fps(self) -> float:
        """Frames of motion a second."""
        return FPS

    @property
    def window_frames(self) -> int:
        """Frames of motion that come at a time."""
        return self.program.window.frames

    @property
    def lookahead_frames(self) -> int:
        """Frames of audio behind them that they wait for."""
        return self.program.window.lookahead_frames

    def open(
        self,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        style: Float[np.ndarray, "S F 108"] | None = None,
        prev: Float[np.ndarray, "R F2 108"] | None = None,
        tracks: int = 2,
        smoothed: bool = False,
    ) -> Stream:
        """Opens a new stream of the program's people.

        Raises UserError where all places are taken, or where the program cannot decode what is
        asked for.

        Args:
            sampling: How bits are chosen; None: as the streams' own `sampling` says.
            seed: Of all random draws of the stream.
            style: Style clip of one person for all or of each, of the program's
                `window.context_frames`; None: zero motion.
            prev: Clip before the first chunk, in the same form; None: zero motion.
            tracks: 2, or 1: the other track is silent, and not fed.
            smoothed: Whether motion is finished for display: borders mended, smoothed and
                limited, as `finish(..., causal=True)` does to the whole. It comes four frames
                later. False: motion as it was decoded.
        """
        if len(self.open_streams) == self.slots.capacity:
            raise UserError(f"{self.slots.capacity} streams are open already; close one or give a larger capacity")
        if tracks not in (1, 2) or tracks < self.program.people:
            raise UserError(f"tracks must be {self.program.people} to 2, got {tracks}")
        sampling = sampling or self.sampling
        check_sampling(self.program, sampling)
        people, window = self.program.people, self.program.window
        style, prev = (clip_of(name, clip, people, window) for name, clip in (("style", style), ("prev", prev)))
        settings = _Settings(sampling, seed, style, prev, num_tracks=tracks, smoothed=smoothed)
        stream = Stream(self, self.slots.admit(style, prev), settings)
        self.open_streams.add(stream)
        return stream

    def step(self) -> int:
        """Decodes a chunk of each stream whose turn it is; returns the number of chunks."""
        chosen = [self.queue.popleft() for _ in range(min(self.program.slots, len(self.queue)))]
        if not chosen:
            return 0
        turns, latencies = zip(*(stream._take_turn() for stream in chosen), strict=True)
        self.num_runs += 1
        motion, encode_s, decode_s = self._decode(turns)
        for stream, window, latency in zip(chosen, motion, latencies, strict=False):
            stream._take_motion(window, replace(latency, encode_s=encode_s, decode_s=decode_s))
        return len(chosen)

    def run(self) -> int:
        """Steps until nothing is ready; returns the number of chunks."""
        total = 0
        while served := self.step():
            total += served
        return total

    def _decode(self, turns: tuple[Turn, ...]) -> tuple[np.ndarray, float, float]:
        """Returns the turns' motion, and the seconds spent in the encoder and in the rest."""
        begun = encoded = self.clock()
        features = None
        if self._timed:
            features = jax.block_until_ready(self.program.encode(self.slots.window(turns)))
            encoded = self.clock()
        motion = np.asarray(self.slots.decode(turns, features).motion)
        return motion, encoded - begun, self.clock() - encoded
