"""The process: uvicorn around the application, signals, and a stop that loses nothing."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from unils_jax.errors import UserError
from unils_jax.inference.program import Program
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.outputs.serving.access import Access
from unils_jax.outputs.serving.app import House, make_app
from unils_jax.outputs.serving.engine import Engine
from unils_jax.outputs.serving.limits import Limits
from unils_jax.outputs.serving.metrics import Metrics

OPENING_S = 10.0  # from a connection to the end of its first request's head
LINGER_S = 5.0  # for a client to take the last bytes after its connection was closed
# Of a socket's buffers in the kernel: seconds of audio and of motion wait there, not minutes.
RECEIVE_BYTES = SEND_BYTES = 1 << 17

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """uvicorn's own settings of TLS; without a certificate, connections are not encrypted."""

    certfile: str | None = None
    keyfile: str | None = None


class _Http(H11Protocol):
    """HTTP whose connections must send a request soon: half-open ones are not kept."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(OPENING_S, self._check_opened)

    def _check_opened(self) -> None:
        if self.cycle is None and self.transport.get_protocol() is self:
            self.transport.abort()


class _WebSocket(WebSocketsSansIOProtocol):
    """WebSocket whose connection ends with its session, also where the client reads nothing."""

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(LINGER_S, self.transport.abort)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own handling of signals, which would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone; `Server.run` sets its handlers."""
        yield


class Server:
    """A server that is bound to its port; `run` serves until it is stopped."""

    def __init__(  # noqa: PLR0913 (every part of a server has its name)
        self,
        program: Program,
        expression_basis: str,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        access: Access,
        limits: Limits,
        port: int = 8765,
        page: Mapping[str, tuple[str, str]] | None = None,
        tls: Tls | None = None,
    ):
        metrics = Metrics()
        self.engine = Engine(program, expression_basis, limits.capacity, metrics, sampling)
        self.house = House(self.engine, metrics, limits, access)
        self._socket = _bound(access.host, port)
        self.port: int = self._socket.getsockname()[1]
        tls = tls or Tls()
        config = uvicorn.Config(
            make_app(self.house, page),
            http=_Http,
            ws=_WebSocket,
            ws_max_size=limits.max_message_kib << 10,
            ws_ping_interval=None,  # a paused client's answers would wait behind its audio
            ws_per_message_deflate=False,  # small messages cannot become large ones
            proxy_headers=False,
            server_header=False,
            log_config=None,
            access_log=False,
            lifespan="off",
            ssl_certfile=tls.certfile,
            ssl_keyfile=tls.keyfile,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = _Uvicorn(config)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, *, handle_signals: bool = True) -> None:
        """Serves until SIGTERM, SIGINT or `stop`; open streams get their motion first."""
        self.engine.start()
        try:
            asyncio.run(self._serve(handle_signals))
        finally:
            self.engine.stop()
            self._socket.close()

    def stop(self) -> None:
        """Asks from another thread for what SIGTERM does; nothing, where it has stopped."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it closed meanwhile
                self._loop.call_soon_threadsafe(self._stop)

    async def _serve(self, handle_signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop)
        await self._uvicorn.serve(sockets=[self._socket])

    def _stop(self) -> None:
        if self.house.is_draining:
            self._uvicorn.should_exit = True  # asked twice: at once
            return
        log.info("stopping: %d streams get their motion first", len(self.house.sessions))
        self.house.drain()
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        end = time.monotonic() + self.house.limits.grace_s
        while self.house.sessions and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if left := len(self.house.sessions):
            log.warning("%d streams did not end within %g s and are cut", left, self.house.limits.grace_s)
        self._uvicorn.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to a host's port; 0 takes any that is free."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        bound.bind(address)
        bound.listen(1024)  # connections wait from now on until the loop runs
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from None
    return bound
