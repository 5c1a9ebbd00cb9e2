"""The server's addresses: the page, its state, its figures, and streams."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from unils_jax.outputs.serving.access import Access
from unils_jax.outputs.serving.engine import Delivery, Engine
from unils_jax.outputs.serving.limits import Limits
from unils_jax.outputs.serving.metrics import Metrics
from unils_jax.outputs.serving.protocol import SUBPROTOCOL, Open, StreamError
from unils_jax.outputs.serving.session import Session

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cache-Control": "no-cache",
}
_NO_PAGE = "The page is not built here: run `make viewer` (Node 20.19 or newer). Streams are served all the same.\n"

log = logging.getLogger(__name__)


class House:
    """All sessions of a server, and the rules of who gets a place."""

    def __init__(self, engine: Engine, metrics: Metrics, limits: Limits, access: Access):
        self.engine, self.metrics, self.limits, self.access = engine, metrics, limits, access
        self.sessions: dict[int, Session] = {}
        self.is_draining = False
        self._numbers = itertools.count(1)
        self._places: set[int] = set()  # numbers of the sessions that have one
        self._by_address: Counter[str] = Counter()

    async def stream(self, socket: WebSocket) -> None:
        """Serves one connection."""
        if status := self._refusal(socket):
            reason, code, text = status
            self.metrics.refused.labels(reason).inc()
            await socket.send_denial_response(PlainTextResponse(text, code))
            return
        protocol = SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None
        await socket.accept(subprotocol=protocol)
        number, address = next(self._numbers), _address(socket)
        session = self.sessions[number] = Session(socket, number, self.engine, self.limits)
        self._by_address[address] += 1
        begun, error = time.monotonic(), None
        log.info("stream %d: connection from %s", number, address)
        try:
            error = await session.run(lambda opened, sink: self._admit(number, address, opened, sink))
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client left while it was written to
        finally:
            del self.sessions[number]
            self._by_address[address] -= 1
            if number in self._places:
                self._places.remove(number)
                self.metrics.streams.dec()
                if error is not None:
                    self.metrics.dropped.labels(error.code).inc()
            elif error is not None:
                self.metrics.refused.labels(error.code).inc()
            reason = "closed by the client" if error is None else f"{error.code}, {error}"
            log.info("stream %d: ended after %.1f s: %s", number, time.monotonic() - begun, reason)

    def _refusal(self, socket: WebSocket) -> tuple[str, int, str] | None:
        """Returns reason, status and text for a connection that is not accepted at all."""
        if not self.access.origin_is_right(socket.headers):
            return "origin", 403, "this origin may not connect; see --allow-origin\n"
        if not self.access.token_is_right(socket.headers, socket.scope["subprotocols"]):
            return "token", 401, "the token is missing or wrong\n"
        # Connections without a place yet, or that are told that there is none, are few and short.
        if self.is_draining or len(self.sessions) >= 2 * self.limits.capacity + 16:
            return "full", 503, "no more connections are taken now\n"
        return None

    def _admit(self, number: int, address: str, opened: Open, sink: Callable[[Delivery | StreamError], None]) -> None:
        limits = self.limits
        if self.is_draining:
            raise StreamError("going_away", "the server stops; connect again later")
        if self.engine.failure:
            raise StreamError("failed", self.engine.failure)
        if self._by_address[address] > limits.streams_per_address:
            raise StreamError("too_many", f"an address may have {limits.streams_per_address} streams")
        if len(self._places) >= limits.capacity:
            raise StreamError("full", f"all {limits.capacity} places are taken; try again later")
        self._places.add(number)
        self.metrics.streams.inc()
        self.engine.open(number, opened, sink)

    def drain(self) -> None:
        """Takes no more streams and flushes the open ones."""
        self.is_draining = True
        for session in list(self.sessions.values()):
            session.drain()


def make_app(house: House, page: Mapping[str, tuple[str, str]] | None) -> Starlette:
    """Builds the application.

    `page` has media type and text of each of the page's files by its path, "/" for the page; None
    where the page was not built.
    """

    def health(request: Request) -> Response:
        if house.engine.failure:
            return PlainTextResponse(house.engine.failure + "\n", 500)
        return PlainTextResponse("ok\n")

    def ready(request: Request) -> Response:
        if house.engine.is_ready.is_set() and not house.is_draining:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("stopping\n" if house.is_draining else "not compiled yet\n", 503)

    def metrics(request: Request) -> Response:
        if not house.access.token_is_right(request.headers):
            return PlainTextResponse("the token is missing or wrong\n", 401)
        return Response(house.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def file(request: Request) -> Response:
        if page is None:
            return PlainTextResponse(_NO_PAGE, 503)
        media_type, text = page[request.url.path]
        return Response(text, media_type=media_type, headers={**_HEADERS, "Content-Security-Policy": POLICY})

    routes = [Route("/healthz", health), Route("/readyz", ready), Route("/metrics", metrics)]
    routes += [Route(path, file) for path in page or ("/",)]
    return Starlette(routes=[*routes, WebSocketRoute("/v1/stream", house.stream)])


def _address(socket: WebSocket) -> str:
    return socket.client.host if socket.client else "unknown"
