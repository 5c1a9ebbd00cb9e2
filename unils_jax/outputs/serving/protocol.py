"""Version 1 of a stream's messages: what a client may send, and the bytes that it gets.

docs/serving.md describes it for authors of clients. Nothing here touches a socket or JAX.
"""

import base64
import binascii
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NoReturn

import numpy as np
from jaxtyping import Float

from unils_jax.audio import MAX_AMPLITUDE
from unils_jax.errors import UserError
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.inference.streaming import Streams
from unils_jax.motion import MOTION_DIM, channel_names

VERSION = 1
SUBPROTOCOL = "unils.v1"
MIN_RATE, MAX_RATE, RATE_STEP = 8_000, 48_000, 25  # with other steps the resampler's delay would be 0.1 s and more
FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
HEADER = struct.Struct("<QHH")  # of motion: first frame, people, frames

# Kinds of errors, and the WebSocket close code that follows each of them.
CLOSE_CODES = {
    "bad_message": 1007,  # not as the protocol says
    "bad_audio": 1007,  # NaN, infinite or far too loud samples
    "bad_order": 1002,  # audio before `open` or after `flush`, a second `open`
    "too_far_apart": 1008,  # one track is fed and the other is not
    "full": 1013,  # all places are taken
    "too_many": 1013,  # streams of one address
    "going_away": 1001,  # the server stops
    "failed": 1011,  # the server's own mistake
    "idle": 4408,
    "too_long": 4409,  # the stream's life time
    "slow_reader": 4410,
}


class StreamError(Exception):
    """An error that ends a stream: `code` is one of `CLOSE_CODES`, the text one sentence."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Open:
    """A client's first message."""

    version: int
    people: int = 2  # whose motion is sent: 1 is the first person alone
    tracks: int = 2  # tracks that are sent; with 1 the other one is silent
    sample_rate: int = 16_000  # Hz
    format: str = "s16le"  # of samples, a key of `FORMATS`
    seed: int = 0  # of all random draws
    smoothed: bool = False  # True: finished for display, four frames later
    tau: float | None = None  # this and the next two, None: the checkpoint's own
    cfg: float | None = None
    top_p: float | None = None
    style: str | None = None  # base64 of float32 [frames, 108]; None: zero motion

    def sampling(self, own: Sampling = DEFAULT_SAMPLING) -> Sampling:
        """Returns how bits are chosen: `own`, the checkpoint's, but for what the client gives."""
        return own.but(self.tau, self.cfg, self.top_p)


@dataclass(frozen=True)
class Control:
    """Any later message in text: `type` is "flush", "reset", "close" or "style"."""

    type: str
    style: str | None = None  # of "style": as in `Open`


_NUMBERS = ("tau", "cfg", "top_p")
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "version": (lambda v: v == VERSION and type(v) is int, f"{VERSION}"),
    "people": (lambda v: v in (1, 2) and type(v) is int, "1 or 2"),
    "tracks": (lambda v: v in (1, 2) and type(v) is int, "1 or 2"),
    "sample_rate": (
        lambda v: type(v) is int and MIN_RATE <= v <= MAX_RATE and v % RATE_STEP == 0,
        f"a multiple of {RATE_STEP} from {MIN_RATE} to {MAX_RATE}",
    ),
    "format": (lambda v: isinstance(v, str) and v in FORMATS, " or ".join(FORMATS)),
    "seed": (lambda v: type(v) is int and 0 <= v < 1 << 32, "a whole number from 0 to 4294967295"),
    "smoothed": (lambda v: type(v) is bool, "true or false"),
    **dict.fromkeys(_NUMBERS, (lambda v: type(v) in (int, float) and abs(v) < 1e6, "a number")),
    "style": (lambda v: v is None or isinstance(v, str), "null or base64"),
}


def parse_open(text: str) -> Open:
    """Reads a client's first message; a StreamError says what of it is wrong."""
    values = _object(text)
    if values.pop("type", None) != "open":
        raise StreamError("bad_order", 'the first message must be {"type": "open", "version": 1, ...}')
    known = {field.name for field in fields(Open)}
    if unknown := sorted(values.keys() - known):
        _refuse("open", f"unknown field {escaped(unknown[0])}; known are {', '.join(sorted(known))}")
    values.setdefault("version", None)
    for name, value in values.items():
        is_right, rule = _CHECKS[name]
        if not is_right(value):
            _refuse("open", f"{name} must be {rule}, got {escaped(value)}")
    # JSON writes 1.0 as 1.
    opened = Open(**{name: float(value) if name in _NUMBERS else value for name, value in values.items()})
    try:
        opened.sampling()  # it checks the values
    except UserError as error:
        _refuse("open", str(error))
    return opened


def parse_control(text: str) -> Control:
    """Reads a later message in text; a StreamError says what of it is wrong."""
    values = _object(text)
    kind = values.pop("type", None)
    if kind == "open":
        raise StreamError("bad_order", "the stream is open already; send reset, or open another connection")
    if kind not in ("flush", "reset", "close", "style"):
        _refuse("message", f"type must be flush, reset, close or style, got {escaped(kind)}")
    if set(values) != ({"style"} if kind == "style" else set()):
        _refuse("message", f"{kind} has {'style and' if kind == 'style' else ''} no other fields")
    if not _CHECKS["style"][0](values.get("style")):
        _refuse("message", "style must be null or base64")
    return Control(kind, values.get("style"))


def read_samples(payload: bytes, format: str) -> tuple[int, Float[np.ndarray, " N"]]:
    """Returns the track of a binary message (0 own, 1 other) and its samples in -1..1."""
    kind = FORMATS[format]
    if not payload or (len(payload) - 1) % kind.itemsize:
        _refuse("audio", f"a message is one byte for the track and whole samples, got {len(payload)} bytes")
    samples = np.frombuffer(payload, kind, offset=1)
    if kind.kind == "i":
        return payload[0], samples.astype(np.float32) / 32768
    # Also true of NaN, which compares with nothing.
    if not (np.abs(samples) <= MAX_AMPLITUDE).all():
        raise StreamError("bad_audio", f"f32le samples must be finite and about -1 to 1, at most {MAX_AMPLITUDE:g}")
    return payload[0], samples.astype(np.float32)


def read_style(text: str | None) -> Float[np.ndarray, "1 F 108"] | None:
    """Reads a style clip of one person, base64 of little-endian float32 [frames, 108]."""
    if text is None:
        return None
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError):
        _refuse("style", "it is not base64 of float32 values")
    if not values.size or values.size % MOTION_DIM or not np.isfinite(values).all():
        _refuse("style", f"it must be finite values of [frames, {MOTION_DIM}], got {values.size}")
    return values.astype(np.float32).reshape(1, -1, MOTION_DIM)


def pack_motion(first_frame: int, motion: Float[np.ndarray, "P T 108"]) -> bytes:
    """Returns the binary message of some frames."""
    header = HEADER.pack(first_frame, motion.shape[0], motion.shape[1])
    return header + np.ascontiguousarray(motion, "<f4").tobytes()


def unpack_motion(message: bytes) -> tuple[int, Float[np.ndarray, "P T 108"]]:
    """Returns the first frame and the motion of a binary message."""
    first_frame, people, frames = HEADER.unpack_from(message)
    return first_frame, np.frombuffer(message, "<f4", offset=HEADER.size).reshape(people, frames, MOTION_DIM)


def ready_message(streams: Streams, people: int) -> str:
    """Returns what a stream is answered once it is open."""
    return json.dumps({
        "type": "ready",
        "version": VERSION,
        "fps": int(streams.fps),
        "window_frames": streams.window_frames,
        "lookahead_frames": streams.lookahead_frames,
        "people": people,
        "channels": channel_names(streams.expression_basis or "flame"),
        "expression_basis": streams.expression_basis,
    })  # fmt: skip


def end_message(frames: int) -> str:
    """Returns what follows the last frame of a stream that was flushed."""
    return json.dumps({"type": "end", "frames": frames})


def error_message(error: StreamError) -> str:
    """Returns what comes before the close of a stream that is wrong."""
    return json.dumps({"type": "error", "code": error.code, "message": str(error)})


def escaped(value: object) -> str:
    """Returns a client's value for an error or a log line: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _object(text: str) -> dict[str, object]:
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("message", "text must be a JSON object")
    if not isinstance(values, Mapping):
        _refuse("message", "text must be a JSON object")
    return dict(values)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse(what: str, why: str) -> NoReturn:
    raise StreamError("bad_message", f"bad {what}: {why}")
