"""A load generator: clients that speak in real time, late, haltingly or not to the end."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from unils_jax.errors import UserError
from unils_jax.inference.conversations import Request, decode_many
from unils_jax.inference.program import Program
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.motion import SAMPLE_RATE, SAMPLES_PER_FRAME
from unils_jax.outputs.serving.access import TOKEN_PREFIX
from unils_jax.outputs.serving.protocol import SUBPROTOCOL, unpack_motion

MESSAGE_SAMPLES = 640  # 40 ms
STALL_S = 2.0
START_S = 180.0  # for a server to compile


@dataclass(frozen=True)
class Load:
    """What the clients do."""

    clients: int = 8
    seconds: float = 30.0  # of audio that each sends
    jitter_s: float = 0.02  # each message is late by up to so much
    stall: float = 0.0  # share of clients that pause for `STALL_S` in the middle
    disconnect: float = 0.0  # share of clients that vanish half way
    token: str | None = None
    seed: int = 0
    check: bool = False  # True: audio and motion are kept, to be compared with the one-shot decode


@dataclass
class Outcome:
    """What one client saw."""

    latencies: list[float] = field(default_factory=list)  # s, a frame's last sample sent to the frame's arrival
    frames: int = 0
    seconds: float = 0.0  # from open to end
    ended: bool = False  # whether all motion came
    closed: str = ""  # code of the server's error; "": none
    audio: list[np.ndarray] = field(default_factory=list)  # pieces [2, samples], int16, where they are kept
    motion: list[np.ndarray] = field(default_factory=list)  # [people, frames, 108], what came


class _Client:
    """One conversation of noise bursts, sent in real time."""

    def __init__(self, load: Load, number: int):
        self.load, self.number = load, number
        self.rng = np.random.default_rng([load.seed, number])
        self.outcome = Outcome()
        self.sent_at: list[float] = []  # of each frame of audio
        share = (number + 0.5) / load.clients
        self.vanishes, self.stalls = share < load.disconnect, 1 - share < load.stall

    async def run(self, url: str) -> Outcome:
        """Talks to the end; returns what was seen."""
        await asyncio.sleep(float(self.rng.uniform(0, 1)))  # windows of the clients are not complete at once
        protocols = [SUBPROTOCOL] + ([TOKEN_PREFIX + self.load.token] if self.load.token else [])
        try:
            # No pings: while the server pauses a client, its pong waits, and nothing is wrong.
            options = {
                "compression": None,
                "proxy": None,
                "ping_interval": None,
                "open_timeout": 60,
            }
            async with connect(url, subprotocols=protocols, **options) as socket:
                await socket.send(json.dumps({"type": "open", "version": 1, "seed": self.number}))
                answer = json.loads(await socket.recv())
                if answer["type"] == "error":
                    self.outcome.closed = answer["code"]
                    return self.outcome
                await self._talk(socket)
        except InvalidStatus as error:
            self.outcome.closed = f"refused with {error.response.status_code}"
        except (ConnectionClosed, OSError, TimeoutError) as error:
            self.outcome.closed = self.outcome.closed or type(error).__name__
        return self.outcome

    async def _talk(self, socket: ClientConnection) -> None:
        begun = time.perf_counter()
        listener = asyncio.create_task(self._listen(socket))
        num_messages = int(self.load.seconds * SAMPLE_RATE / MESSAGE_SAMPLES)
        for i in range(num_messages):
            if self.stalls and i == num_messages // 2:
                begun += STALL_S
            due = begun + (i + 1) * MESSAGE_SAMPLES / SAMPLE_RATE + float(self.rng.uniform(0, self.load.jitter_s))
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            if self.vanishes and i == num_messages // 2:
                listener.cancel()
                socket.transport.abort()
                self.outcome.closed = "vanished, as it was meant to"
                return
            speaks = (i // 50) % 2
            scales = [[3000 if speaks else 30], [30 if speaks else 3000]]
            piece = self.rng.normal(0, scales, (2, MESSAGE_SAMPLES)).astype("<i2")
            if self.load.check:
                self.outcome.audio.append(piece)
            for track in (0, 1):
                await socket.send(bytes([track]) + piece[track].tobytes())
            self.sent_at += [time.perf_counter()] * (MESSAGE_SAMPLES // SAMPLES_PER_FRAME)
        await socket.send('{"type": "flush"}')
        await listener
        self.outcome.seconds = time.perf_counter() - begun

    async def _listen(self, socket: ClientConnection) -> None:
        async for message in socket:
            now = time.perf_counter()
            if isinstance(message, bytes):
                first, motion = unpack_motion(message)
                last = first + motion.shape[1]
                self.outcome.latencies += [now - sent for sent in self.sent_at[first:last]]
                self.outcome.frames = last
                if self.load.check:
                    self.outcome.motion.append(motion)
            elif (answer := json.loads(message))["type"] == "error":
                self.outcome.closed = answer["code"]
            elif answer["type"] == "end":
                self.outcome.ended = True
                return


@dataclass(frozen=True)
class Started:
    """The server that is started where none is named."""

    checkpoint: str | None = None  # None: the package's live demo model
    slots: int | None = None  # None: as `unils serve` chooses
    capacity: int | None = None  # None: a place for each client


def run_load(
    load: Load,
    url: str | None,
    started: Started = Started(),
    program: Program | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> dict:
    """Runs all clients against a server, or one that is started; returns every figure.

    `program` and `sampling` are the server's, for a load with `check`: what each client got is
    compared with the one-shot decode of what it sent, once the clients are done.
    """
    if url is not None:
        outcomes, memory = _run(load, url, None)
    else:
        with _server(started, load.clients) as (url, process):
            outcomes, memory = _run(load, url, process)
    result = _figures(load, outcomes, memory)
    if program is not None:
        result |= dict(
            zip(("streams_compared", "streams_that_differ"), compared(program, outcomes, sampling), strict=True)
        )
    return result


def compared(program: Program, outcomes: Sequence[Outcome], sampling: Sampling = DEFAULT_SAMPLING) -> tuple[int, int]:
    """Counts the streams that are compared with their one-shot decode, and those that differ.

    A stream that ended must have all frames, one that was cut as many as came; each bit counts.
    """
    numbers = [number for number, outcome in enumerate(outcomes) if outcome.motion]
    audio = [np.concatenate(outcomes[number].audio, axis=1).astype(np.float32) / 32768 for number in numbers]
    requests = [Request(*tracks, sampling=sampling, seed=i) for i, tracks in zip(numbers, audio, strict=True)]
    wrong = 0
    for request, expected in decode_many(program, requests):
        outcome = outcomes[request.seed]
        motion = np.concatenate(outcome.motion, axis=1)
        frames = expected.shape[1] if outcome.ended else motion.shape[1]
        wrong += not np.array_equal(motion, expected[:, :frames])
    return len(numbers), wrong


def _run(load: Load, url: str, process: subprocess.Popen | None) -> tuple[list[Outcome], list[float]]:
    return asyncio.run(_run_clients(load, url.rstrip("/") + "/v1/stream", process))


def _figures(load: Load, outcomes: Sequence[Outcome], memory: Sequence[float]) -> dict[str, Any]:
    latencies = np.array([latency for outcome in outcomes for latency in outcome.latencies] or [np.nan])
    closed = [outcome.closed for outcome in outcomes if outcome.closed]
    result = {
        "bench": "serve",
        "load": {name: value for name, value in asdict(load).items() if name != "token"},
        "latency_s": {f"p{p}": float(np.percentile(latencies, p)) for p in (50, 95, 99)},
        "frames": sum(outcome.frames for outcome in outcomes),
        "complete": sum(outcome.ended for outcome in outcomes),
        "closed": {reason: closed.count(reason) for reason in sorted(set(closed))},
        "memory_mib": max(memory) if memory else None,
        "memory_growth": _growth(memory),
    }
    spoken = [outcome for outcome in outcomes if outcome.ended]
    # Above 1 a stream's motion falls behind its audio.
    result["real_time_factor"] = max((o.seconds / load.seconds for o in spoken), default=None)
    return result


def _growth(memory: Sequence[float]) -> float | None:
    """Returns by how much the last quarter's peak is above that of the quarter before it.

    Peaks, because what one run of the program takes comes and goes. None: too few readings.
    """
    third, last = (memory[len(memory) * part // 4 : len(memory) * (part + 1) // 4] for part in (2, 3))
    return max(last) / max(third) - 1 if third and last else None


async def _run_clients(load: Load, url: str, process: subprocess.Popen | None) -> tuple[list[Outcome], list[float]]:
    clients = [asyncio.create_task(_Client(load, i).run(url)) for i in range(load.clients)]
    memory: list[float] = []
    while not all(client.done() for client in clients):
        if process is not None and (now := _resident_mib(process.pid)):
            memory.append(now)
        await asyncio.wait(clients, timeout=0.5)
    return [client.result() for client in clients], memory


def _resident_mib(pid: int) -> float | None:
    """Returns the memory of a process; None where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def _server(started: Started, clients: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """Starts `unils serve` on a free port and waits until it is ready; stops it at the end."""
    checkpoint, slots = started.checkpoint, started.slots
    limits = ["--capacity", str(started.capacity or clients), "--streams_per_address", str(clients + 1)]
    command = [sys.executable, "-m", "unils_jax.cli.main", "serve", "--port", "0", *limits]
    command += (["--checkpoint", checkpoint] if checkpoint else []) + (["--slots", str(slots)] if slots else [])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if address := re.search(r"serving http://([\d.]+:\d+)", line):
                break
        else:
            raise UserError(f"the server did not start: {lines[-1].strip() if lines else 'it said nothing'}")
        # A full pipe would stop the server.
        _drain(process)
        _wait_until_ready(address[1])
        yield f"ws://{address[1]}", process
    finally:
        process.terminate()
        process.wait(60)


def _drain(process: subprocess.Popen) -> None:
    threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()


def _wait_until_ready(address: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return
        time.sleep(0.1)
    raise UserError(f"the server at {address} was not ready within {START_S:g} s")


def table(result: dict[str, Any]) -> str:
    """Returns the figures for a terminal."""
    load, latency = result["load"], result["latency_s"]
    lines = [
        f"{load['clients']} clients, {load['seconds']:g} s of audio each: {result['complete']} got all of their motion",
        "sample sent to frame arrived: " + ", ".join(f"{name} {value:.3f} s" for name, value in latency.items()),
    ]
    if result["real_time_factor"] is not None:
        lines.append(f"slowest stream: {result['real_time_factor']:.3f} of its audio's time")
    if result["memory_mib"] is not None:
        growth = result["memory_growth"]
        lines.append(f"memory {result['memory_mib']:.0f} MiB" + (f", second half {growth:+.2%}" if growth else ""))
    if "streams_compared" in result:
        lines.append(
            f"not their one-shot decode: {result['streams_that_differ']} of {result['streams_compared']} streams"
        )
    lines += [f"closed: {count} {reason}" for reason, count in result["closed"].items()]
    return "\n".join(lines)
