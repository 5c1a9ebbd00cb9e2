"""A server of a tiny live model in this process, and a client that waits for its answers."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from tiny_models import live_config, random_model
from websockets.sync.client import ClientConnection, connect

from unils_jax.inference.conversations import Request, decode_many
from unils_jax.inference.program import Program, make_program
from unils_jax.outputs.serving.access import Access
from unils_jax.outputs.serving.limits import Limits
from unils_jax.outputs.serving.protocol import unpack_motion
from unils_jax.outputs.serving.server import Server

SLOTS = 2
WINDOW, AHEAD = 10, 3


@cache
def program() -> Program:
    """Of two people, windows of 0.4 s."""
    return make_program(random_model(live_config(WINDOW, 3, 15, AHEAD), 0), slots=SLOTS, people=2)


@contextlib.contextmanager
def serving(
    access: Access | None = None, page: Mapping | None = None, model: Program | None = None, **limits: float
) -> Iterator[Server]:
    """A server on a free port of this machine; it is stopped, and its streams drained, at the end."""
    access = access or Access("127.0.0.1")
    chosen = Limits(**{"capacity": 4, "grace_s": 30.0, "streams_per_address": 100, **limits})
    server = Server(model or program(), "standin", access=access, limits=chosen, port=0, page=page)
    thread = threading.Thread(target=server.run, kwargs={"handle_signals": False})
    thread.start()
    try:
        assert server.engine.is_ready.wait(300), server.engine.failure
        yield server
    finally:
        server.stop()
        thread.join(300)
        assert not thread.is_alive()


def address(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}/v1/stream"


def connected(server: Server, **options) -> connect:
    # No pings: a paused client's answers wait, on a busy machine for long.
    return connect(address(server), compression=None, proxy=None, ping_interval=None, **options)


def open_message(**fields) -> str:
    return json.dumps({"type": "open", "version": 1, "format": "f32le", **fields})


@contextlib.contextmanager
def opened(server: Server, headers: Mapping[str, str] | None = None, **fields) -> Iterator[ClientConnection]:
    """A connection whose stream is ready."""
    with connected(server, additional_headers=headers) as client:
        client.send(open_message(**fields))
        answer = json.loads(client.recv(timeout=60))
        assert answer["type"] == "ready", answer
        yield client


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def audio_message(track: int, samples: np.ndarray) -> bytes:
    return bytes([track]) + np.asarray(samples, "<f4").tobytes()


def received(client: ClientConnection) -> np.ndarray:
    """The motion up to the end message, whose frames follow each other without a gap."""
    parts, frames = [], 0
    while True:
        message = client.recv(timeout=60)
        if isinstance(message, str):
            assert json.loads(message) == {"type": "end", "frames": frames}
            return np.concatenate(parts, axis=1)
        first, motion = unpack_motion(message)
        assert first == frames
        frames += motion.shape[1]
        parts.append(motion)


def error_of(client: ClientConnection) -> tuple[str, int]:
    """The code of the error message that comes next but for motion, and the close code after it."""
    while True:
        message = client.recv(timeout=60)
        if isinstance(message, str) and (values := json.loads(message))["type"] == "error":
            break
    with contextlib.suppress(Exception):
        client.recv(timeout=60)
    return values["code"], client.close_code


def one_shot(*tracks: np.ndarray, **settings) -> np.ndarray:
    """The motion of the same program without a server."""
    return next(decode_many(program(), [Request(*tracks, **settings)]))[1]
