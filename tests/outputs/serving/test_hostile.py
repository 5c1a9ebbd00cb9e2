"""A thousand hostile connections, a stop under load, and the load generator, against a server of a tiny model."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install '.[serve]'")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import (
    address,
    audio_message,
    connected,
    one_shot,
    open_message,
    opened,
    program,
    received,
    serving,
    until,
)
from tiny_models import noise
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from unils_jax.inference.sampling import Sampling
from unils_jax.outputs.serving.access import Access
from unils_jax.outputs.serving.load import Load, Outcome, _growth, compared, run_load, table
from unils_jax.outputs.serving.protocol import StreamError, parse_control, parse_open, read_samples, read_style

pytestmark = [pytest.mark.usefixtures("unoptimised"), pytest.mark.slow]

ROOT = Path(__file__).parents[3]
CONNECTIONS = 1000
TOKEN = "a-token-of-twenty-bytes"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
MAX_GROWTH_MIB = 64  # of the process, server and clients, over the later four fifths of the connections
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = ("type", "version", "people", "tracks", "sample_rate", "format", "seed", "smoothed", "tau", "top_p", "style")
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), JSON).map(json.dumps)
NEARLY = st.dictionaries(st.sampled_from(FIELDS[2:]), JSON).map(lambda more: open_message(**more))


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text() | OBJECTS | NEARLY, st.binary(max_size=64))
def test_any_message_is_read_or_refused_in_one_line(text, payload):
    for read in (
        lambda: parse_open(text),
        lambda: parse_control(text),
        lambda: read_style(text),
        lambda: read_samples(payload, "f32le"),
        lambda: read_samples(payload, "s16le"),
    ):
        try:
            read()
        except StreamError as error:
            assert len(str(error).splitlines()) == 1 and str(error).isprintable()


async def attack(server, rng: np.random.Generator, kind: int) -> None:
    """One hostile connection."""
    if kind in (0, 1, 12):  # half a request, random bytes, or nothing at all, straight into the socket
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        if kind != 12:
            writer.write(rng.bytes(int(rng.integers(1, 5000))) if kind else b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.1)
        writer.close()
        return
    wrong = {
        2: {**RIGHT, "Origin": "https://evil.example"},
        3: {"Authorization": "Bearer \x7f\xff"},
        13: {"Authorization": "Bearer another-token-of-bytes"},
        14: {},
    }
    headers = wrong.get(kind, RIGHT)
    compression = "deflate" if kind == 4 else None  # a bomb, were it agreed on
    async with connect(
        address(server), compression=compression, additional_headers=headers, proxy=None, open_timeout=30
    ) as client:
        if kind in wrong:
            server.let_in.append(kind)
        if kind == 5:
            await client.send(rng.bytes(100))
        if kind == 15:  # a stream that is never opened
            await asyncio.sleep(0.2)
            client.transport.abort()
            return
        await client.send(open_message(tracks=1) if kind != 6 else "\u2028{\n\x1b[31m stream 1: forged")
        if kind == 4:
            await client.send(bytes(1 << 20))
        elif kind == 7:
            await client.send(audio_message(0, np.array([np.nan, np.inf, 1.0])))
        elif kind == 8:
            client.transport.abort()
        elif kind == 9:
            await client.send(audio_message(0, noise(20_000)))
            client.transport.pause_reading()
            await asyncio.sleep(0.05)
            client.transport.abort()
        else:
            await client.send(rng.bytes(int(rng.integers(0, 2000))))
        await asyncio.wait_for(client.wait_closed() if kind in (4, 7) else client.recv(), 5)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, on Linux")
def test_a_thousand_hostile_connections_change_no_bit_of_another_stream(caplog):
    own, other = noise(160_000, 1), noise(160_000, 2)
    access = Access("127.0.0.1", (TOKEN,))
    with serving(access, capacity=8, max_ahead_s=5.0) as server, caplog.at_level(logging.INFO):
        failed: list[BaseException] = []
        server.let_in = []
        memory, sessions = [], []

        def speak() -> None:
            try:
                with opened(server, RIGHT, seed=5) as client:
                    for start in range(0, len(own), 1600):
                        client.send(audio_message(0, own[start : start + 1600]))
                        client.send(audio_message(1, other[start : start + 1600]))
                        time.sleep(0.05)
                    client.send('{"type": "flush"}')
                    motion = received(client)
                    assert motion.shape == (2, 250, 108)
                    np.testing.assert_array_equal(motion, one_shot(own, other, seed=5))
            except BaseException as error:
                failed.append(error)

        witness = threading.Thread(target=speak)
        witness.start()

        async def all_of_them() -> None:
            gate = asyncio.Semaphore(8)

            async def one(number: int) -> None:
                async with gate:
                    with contextlib.suppress(WebSocketException, OSError, TimeoutError, EOFError, ValueError):
                        await attack(server, np.random.default_rng(number), number % 16)
                    sessions.append(len(server.house.sessions))
                    memory.append(resident_mib())

            await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))

        asyncio.run(all_of_them())
        witness.join(120)
        assert not failed and not server.engine.failure
        with opened(server, RIGHT, tracks=1):
            pass
        until(lambda: not server.house.sessions)
        assert not server.let_in, "kinds of clients without the token or from a wrong page"
        assert len(sessions) == CONNECTIONS and max(sessions) <= 8 + 1 + 8, "clients at a time, and those that close"
        assert max(memory[CONNECTIONS // 5 :]) - memory[CONNECTIONS // 5] < MAX_GROWTH_MIB
        print(
            f"memory {memory[0]:.0f}, {memory[CONNECTIONS // 5]:.0f}, {max(memory):.0f} MiB; {max(sessions)} sessions"
        )
    assert not [record for record in caplog.records if not record.getMessage().isprintable()]
    assert not [record for record in caplog.records if record.exc_info]


STOPPED = """
import sys
sys.path[:0] = [{support!r}]
from served import program
from unils_jax.outputs.serving.access import Access
from unils_jax.outputs.serving.limits import Limits
from unils_jax.outputs.serving.server import Server
server = Server(program(), "standin", access=Access("127.0.0.1"), limits=Limits(capacity=4), port=0)
print(server.port, flush=True)
server.run()
"""


class _There:
    """A server in another process, as the helpers take it."""

    def __init__(self, port: int):
        self.port = port


def rest_of(client) -> Iterator[str | bytes]:
    """Yields all messages up to the close."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield client.recv(timeout=60)


def test_sigterm_under_load_gives_open_streams_what_is_theirs():
    program = STOPPED.format(support=str(ROOT / "tests" / "support"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        server = _There(int(process.stdout.readline()))
        own = noise(30_000)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(opened(server, tracks=1, seed=i)) for i in range(4)]
            for client in clients:
                client.send(audio_message(0, own))
                client.recv(timeout=60)
            process.send_signal(signal.SIGTERM)
            ends = [message for client in clients for message in rest_of(client)]
            ended = [json.loads(message) for message in ends if isinstance(message, str)]
            assert [answer["frames"] for answer in ended if answer["type"] == "end"] == [47] * 4
            assert [answer["code"] for answer in ended if answer["type"] == "error"] == ["going_away"] * 4
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_load_generator_counts_what_clients_see():
    with serving(capacity=4) as server:
        load = Load(clients=6, seconds=2.0, stall=0.0, disconnect=0.2, check=True)
        result = run_load(load, f"ws://127.0.0.1:{server.port}", program=program())
    refused, vanished = result["closed"]["full"], sum("vanished" in reason for reason in result["closed"])
    assert refused >= 1 and vanished <= 1
    assert result["complete"] == 6 - sum(result["closed"].values()) and result["complete"] >= 3
    assert result["frames"] >= 50 * result["complete"]
    latency = result["latency_s"]
    assert 0.1 < latency["p50"] <= latency["p95"] <= latency["p99"] < 5
    assert "6 clients, 2 s of audio each" in table(result)
    assert result["streams_compared"] >= result["complete"] and result["streams_that_differ"] == 0


def test_a_stream_with_one_other_bit_is_counted():
    audio = np.random.default_rng(0).normal(0, 1000, (2, 16_000)).astype("<i2")
    motion = one_shot(*(audio.astype(np.float32) / 32768), seed=0)
    other = motion.copy()
    other.view(np.uint32)[1, 7, 3] ^= 1
    cut = Outcome(audio=[audio], motion=[motion[:, :10]])
    for came, ended, wrong in ((motion, True, 0), (other, True, 1), (motion[:, :-1], True, 1)):
        assert compared(program(), [Outcome(audio=[audio], motion=[came], ended=ended)]) == (1, wrong)
    assert compared(program(), [cut]) == (1, 0)
    # As a server with a sampling of its own decodes it, the same audio has another motion.
    assert compared(program(), [Outcome(audio=[audio], motion=[motion], ended=True)], Sampling(tau=3.0)) == (1, 1)


@pytest.mark.parametrize(
    ("memory", "growth"), [([], None), ([1.0, 2.0], None), ([9, 9, 4, 5, 4, 5, 5, 4], 0.0), ([9, 9, 4, 5, 4, 8], 0.6)]
)
def test_memory_grows_where_its_last_peak_is_higher(memory, growth):
    assert _growth([float(now) for now in memory]) == pytest.approx(growth)


def test_a_client_that_reads_nothing_is_closed(monkeypatch):
    # Small buffers on both sides, so that seconds of motion fill them.
    for name, value in (("server.SEND_BYTES", 4096), ("server.LINGER_S", 0.2), ("session.CLOSE_S", 0.2)):
        monkeypatch.setattr(f"unils_jax.outputs.serving.{name}", value)
    with serving(max_ahead_s=60.0, max_unread_s=0.5) as server, socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect(("127.0.0.1", server.port))
        # The client's library stops reading its socket once a few messages wait.
        options = {"max_queue": 1, "sock": small, "close_timeout": 0.5}
        with contextlib.suppress(ConnectionClosed, OSError), connected(server, **options) as client:
            client.send(open_message(tracks=1))
            for _ in range(20):
                client.send(audio_message(0, noise(16_000)))
            until(lambda: not server.house.sessions, 30)
        until(lambda: not server.house.sessions)
        assert b'unils_dropped_total{reason="slow_reader"} 1.0' in server.house.metrics.text()
