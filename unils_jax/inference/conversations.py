"""Decodes audio to motion: one conversation, or many at a time, chunk by chunk.

`program` computes a chunk; here conversations enter and leave the slots of one compiled program.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.inference.program import Chunk, Program, make_program
from unils_jax.inference.sampling import Sampling
from unils_jax.inference.slots import Slots, Turn, check_sampling, clip_of
from unils_jax.models.unils import UniLS
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME, Window

__all__ = ["Chunk", "Program", "Request", "Sampling", "decode", "decode_many", "decode_prior", "make_program"]


@dataclass(frozen=True)
class Request:
    """One conversation to decode, and how."""

    audio: np.ndarray | None  # own track, 16 kHz mono; None for a prior
    other: np.ndarray | None = None  # other track, None: silence; the shorter one is padded
    # Clips [1 or P, F, 108] of the window's `context_frames`, one for each person or for all; None:
    # zero motion. A prior's style is also the previous motion of both branches at first.
    style: np.ndarray | None = None
    prev: np.ndarray | None = None
    sampling: Sampling = Sampling()
    seed: int = 0
    num_chunks: int | None = None  # windows; for a prior, where no audio says it
    name: str = ""  # for error messages

    def num_frames(self, window: Window) -> int:
        """Returns the frames of motion: ceil(samples / 640) of the longer track.

        For a prior they are those of whole windows.
        """
        if self.audio is None:
            return self.num_chunks * window.frames
        return -(-max(len(self.audio), 0 if self.other is None else len(self.other)) // SAMPLES_PER_FRAME)

    def window(self, index: int, window: Window) -> Float[np.ndarray, "2 N"] | None:
        """Returns the audio of both tracks that conditions a chunk; None for a prior.

        It is silent before the conversation and behind its end.
        """
        if self.audio is None:
            return None
        first, last = window.audio_span(index * window.frames)
        heard = np.zeros((2, last - first), np.float32)
        for row, track in zip(heard, (self.audio, self.other), strict=True):
            if track is not None:
                part = track[max(first, 0) : last]
                row[max(-first, 0) :][: len(part)] = part
        return heard


def decode(  # noqa: PLR0913 - the one public call: each parameter is a keyword that a user may give
    model: UniLS,
    audio: Float[np.ndarray, " N"],
    other_audio: Float[np.ndarray, " N2"] | None = None,
    *,
    style: Float[np.ndarray, "S F 108"] | None = None,
    prev: Float[np.ndarray, "R F2 108"] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    people: int | None = None,
    dtype: str = "float32",
) -> Float[np.ndarray, "P T 108"]:
    """Decodes the motion of one person or of both; T = ceil(samples / 640) frames.

    The same seed gives the same motion. For many conversations see `decode_many`. Raises UserError
    where the model has no audio encoder, or the arguments do not fit it.

    Args:
        model: A dialogue.
        audio: The first person's track, 16 kHz mono; the shorter track is padded.
        other_audio: The other person's track; None: silence, and one person is decoded.
        style: Clips of the model's `window.context_frames` (100 of the release), one for each
            person or for all; None: zero motion.
        prev: Clips before the first chunk, in the same form; None: zero motion.
        sampling: How bits are chosen; None: the defaults of `Sampling`.
        seed: Of all random draws.
        people: 1 decodes the first person alone of two tracks; None: as many as tracks are given.
        dtype: Compute dtype, see `make_program`.
    """
    check_decodes_audio(model)
    sampling = sampling or Sampling()
    people = people or (1 if other_audio is None else 2)
    program = make_program(model, people=people, guided=sampling.guided, dtype=dtype)
    request = Request(audio, other_audio, style, prev, sampling, seed)
    return next(decode_many(program, [request]))[1]


def decode_prior(
    model: UniLS,
    style: Float[np.ndarray, "P F 108"],
    num_chunks: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "P T 108"]:
    """Decodes motion without audio, `num_chunks` windows.

    The style clip is also the first previous motion.
    """
    sampling = sampling or Sampling()
    program = make_program(model, people=len(style), guided=sampling.guided)
    request = Request(None, None, style, style, sampling, seed, num_chunks)
    return next(decode_many(program, [request]))[1]


def check_decodes_audio(model: UniLS) -> None:
    """Raises UserError where the model has no audio encoder."""
    if model.encoder is None:
        raise UserError("the model has no audio encoder: decode needs a dialogue checkpoint, not a codec or a prior")


def decode_many(
    program: Program, requests: Iterable[Request]
) -> Iterator[tuple[Request, Float[np.ndarray, "P T 108"]]]:
    """Decodes any number of conversations in the program's slots; yields each as it ends.

    A conversation enters when a slot is free, so `requests` may read files lazily. A chunk's motion
    is fetched while the next one is computed. Raises UserError for a conversation that the program
    cannot decode.
    """
    slots = Slots(program, program.slots)
    waiting = iter(requests)
    active: list[_Decoding] = []
    under_way: tuple[list[_Decoding], Array] | None = None
    while True:
        while len(active) < program.slots and (request := next(waiting, None)) is not None:
            active.append(_begin(slots, request))
        if active:
            chunk = slots.decode([decoding.next_turn() for decoding in active])
        # Fetching waits for the device, so the next chunk is already under way by then.
        if under_way is not None:
            yield from _fetch(*under_way)
        if not active:
            return
        under_way = (list(active), chunk.motion)
        for decoding in active:
            if decoding.has_ended:
                slots.release(decoding.row)
        active = [decoding for decoding in active if not decoding.has_ended]


@dataclass
class _Decoding:
    """One conversation under way."""

    request: Request
    row: int  # in `Slots`
    window: Window
    motion: np.ndarray  # [P, T, 108], filled chunk by chunk
    begun: int = 0  # chunks that were given to the program
    fetched: int = 0  # chunks whose motion has arrived

    def next_turn(self) -> Turn:
        request, index = self.request, self.begun
        self.begun += 1
        return Turn(self.row, request.window(index, self.window), request.sampling, request.seed, index)

    @property
    def has_ended(self) -> bool:
        return self.begun * self.window.frames >= self.motion.shape[1]


def _begin(slots: Slots, request: Request) -> _Decoding:
    program, window = slots.program, slots.program.window
    if (request.audio is None) == program.takes_audio:  # one of both, never the other
        raise UserError("a dialogue decodes audio and a prior a number of chunks; give the program's own kind")
    if request.audio is not None and program.people == 2 and request.other is None:
        raise UserError("two people need two tracks; give the other one, or decode one person")
    frames = request.num_frames(window)
    if frames == 0:
        raise UserError(f"{request.name or 'audio'} holds no samples; at least one is needed")
    check_sampling(program, request.sampling)
    style, prev = (clip_of(name, getattr(request, name), program.people, window) for name in ("style", "prev"))
    row = slots.admit(style, prev, style if request.audio is None else None)
    motion = np.empty((program.people, frames, MOTION_DIM), np.float32)
    return _Decoding(request, row, window, motion)


def _fetch(batch: list[_Decoding], motion: Array) -> Iterator[tuple[Request, np.ndarray]]:
    """Waits for a chunk and copies it into place; yields the conversations that are complete."""
    frames = np.asarray(motion)
    for decoding, decoded in zip(batch, frames, strict=False):
        size = decoding.window.frames
        part = decoding.motion[:, decoding.fetched * size :][:, :size]
        part[:] = decoded[:, : part.shape[1]]
        decoding.fetched += 1
        if decoding.fetched * size >= decoding.motion.shape[1]:
            yield decoding.request, decoding.motion
