"""One client's connection in the event loop: it moves bytes between a socket and the engine.

Audio that comes faster than real time, or than it is decoded, is not read from the socket; so the
client waits, and the server keeps no more of it than a limit says.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketState

from unils_jax.outputs.serving.engine import Conversation, Delivery, Engine
from unils_jax.outputs.serving.limits import Limits
from unils_jax.outputs.serving.protocol import (
    CLOSE_CODES,
    FORMATS,
    Open,
    StreamError,
    error_message,
    parse_control,
    parse_open,
)

LEAST_MESSAGE_S = 0.002  # what even the smallest message counts as, so that many of them are no attack
POLL_S = 0.02  # between two looks whether a paused client may go on
CLOSE_S = 2.0  # for the last messages to leave

# Opens a conversation, if there is a place, for the engine's sink; a StreamError says why not.
Admit = Callable[[Open, Callable[[Delivery | StreamError], None]], None]


class Session:
    """A connection, from its first message to its close."""

    def __init__(self, socket: WebSocket, number: int, engine: Engine, limits: Limits):
        self.number = number
        self._socket, self._engine, self._limits = socket, engine, limits
        self._opened: Open | None = None
        self._is_flushed = self._is_draining = self._has_ended = False
        self._begun = time.monotonic()
        self._clear_audio()
        self._outbox: deque[Delivery] = deque()
        self._unread_frames = 0
        self._error: StreamError | None = None  # what ends the stream once the outbox is empty
        self._changed = asyncio.Event()
        self._is_stuck = asyncio.Event()  # nothing can be written: the client does not read
        self._loop = asyncio.get_running_loop()

    def _clear_audio(self) -> None:
        self._received_s = [0.0, 0.0]  # audio of each track
        self._paced_s = 0.0  # as much, or more where messages are tiny, of the track that is ahead
        self._decoded_frames = 0
        self._first_audio: float | None = None  # when it came

    async def run(self, admit: Admit) -> StreamError | None:
        """Serves the connection to its end; returns the error that the server closed it with."""
        reader = asyncio.create_task(self._read(admit))
        writer = asyncio.create_task(self._write())
        stuck = asyncio.create_task(self._is_stuck.wait())
        try:
            await asyncio.wait({reader, writer, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                await self._finish(reader, writer)
            elif stuck.done():
                await asyncio.wait({writer}, timeout=CLOSE_S)
        finally:
            self._engine.close(self.number)
            for task in (reader, writer, stuck):
                task.cancel()
            await asyncio.gather(reader, writer, stuck, return_exceptions=True)
        return self._error

    async def _finish(self, reader: asyncio.Task[bool], writer: asyncio.Task[None]) -> None:
        """Lets the writer say why the reader stopped; unless the client is gone."""
        try:
            if is_gone := reader.result():
                return
        except StreamError as error:
            is_gone = False
            self._fail(error)
        if not is_gone:
            await asyncio.wait({writer}, timeout=CLOSE_S)

    def drain(self) -> None:
        """Flushes the stream for a server that stops; it is closed after its last frame."""
        self._is_draining = True
        if self._opened is None or self._has_ended:
            self._fail(StreamError("going_away", "the server stops; connect again later"))
        elif not self._is_flushed:
            self._is_flushed = True
            self._engine.post(self.number, Conversation.flush)

    def sink(self, delivery: Delivery | StreamError) -> None:
        """Takes what the engine's thread has to say."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, delivery)
        except RuntimeError:
            pass  # the loop is closed: the server has stopped

    def _deliver(self, delivery: Delivery | StreamError) -> None:
        if isinstance(delivery, StreamError):
            self._fail(delivery)
            return
        self._outbox.append(delivery)
        self._decoded_frames += delivery.frames
        self._unread_frames += delivery.frames
        self._has_ended = self._has_ended or delivery.is_end
        if delivery.is_end and self._is_draining:
            self._error = StreamError("going_away", "the server stops; this was all of your stream")
        if self._unread_frames > self._limits.max_unread_s * self._engine.streams.fps:
            self._outbox.clear()
            self._fail(StreamError("slow_reader", f"more than {self._limits.max_unread_s:g} s of motion were not read"))
            self._is_stuck.set()
        self._changed.set()

    def _fail(self, error: StreamError) -> None:
        self._error = self._error or error
        self._changed.set()

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._outbox:
                delivery = self._outbox.popleft()
                if isinstance(delivery.message, bytes):
                    await self._socket.send_bytes(delivery.message)
                else:
                    await self._socket.send_text(delivery.message)
                self._unread_frames -= delivery.frames
            if self._error is not None:
                await self._socket.send_text(error_message(self._error))
                await self._socket.close(CLOSE_CODES[self._error.code], self._error.code)
                return

    async def _read(self, admit: Admit) -> bool:
        """Reads messages until the client leaves (True) or asks to be closed."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return True
            if self._is_draining:
                continue
            text = message.get("text")
            if self._opened is None:
                if text is None:
                    raise StreamError("bad_order", "send an open message before audio")
                opened = parse_open(text)
                admit(opened, self.sink)
                self._opened = opened
            elif text is None:
                self._take_audio(message["bytes"])
            elif not await self._control(text):
                return False
            await self._pace()

    async def _receive(self) -> dict:
        limits, now = self._limits, time.monotonic()
        patience = limits.open_s if self._opened is None else limits.idle_s
        left = self._begun + limits.life_s - now
        try:
            return await asyncio.wait_for(self._socket.receive(), min(patience, max(left, 0)))
        except TimeoutError:
            if left <= patience:
                raise StreamError("too_long", f"a connection lives {limits.life_s:g} s; connect again") from None
            raise StreamError("idle", f"no message for {patience:g} s") from None

    def _take_audio(self, payload: bytes) -> None:
        if self._is_flushed:
            raise StreamError("bad_order", "the stream was flushed; send reset before more audio")
        now, opened = time.monotonic(), self._opened
        assert opened is not None
        if self._first_audio is None:
            self._first_audio = now
        seconds = max(len(payload) - 1, 0) / FORMATS[opened.format].itemsize / opened.sample_rate
        if payload and payload[0] < opened.tracks:
            self._received_s[payload[0]] += seconds
        self._paced_s += max(LEAST_MESSAGE_S, seconds) / opened.tracks
        apart = abs(self._received_s[0] - self._received_s[1]) if opened.tracks == 2 else 0.0
        if apart > self._limits.max_ahead_s + seconds:
            raise StreamError(
                "too_far_apart",
                f"the tracks are {apart:.1f} s apart, at most {self._limits.max_ahead_s:g}; send silence for silence",
            )
        self._engine.post(self.number, lambda conversation: conversation.feed(payload))

    async def _control(self, text: str) -> bool:
        """Obeys a message in text; False where it closes the stream."""
        control, engine = parse_control(text), self._engine
        if control.type == "close":
            await self._socket.close(1000)
            return False
        if control.type == "flush":
            if self._is_flushed:
                raise StreamError("bad_order", "the stream was flushed already; send reset or close")
            self._is_flushed = True
            engine.post(self.number, Conversation.flush)
        elif control.type == "reset":
            self._is_flushed = self._has_ended = False
            self._clear_audio()
            engine.post(self.number, Conversation.reset)
        else:
            engine.post(self.number, lambda conversation: conversation.set_style(control.style))
        await asyncio.sleep(LEAST_MESSAGE_S)
        return True

    async def _pace(self) -> None:
        """Waits while the client is ahead; what it sends meanwhile stays in its socket."""
        while self._error is None and not self._is_draining and not self._is_flushed and self._is_ahead():
            await asyncio.sleep(POLL_S)

    def _is_ahead(self) -> bool:
        if self._first_audio is None:
            return False
        streams, allowed = self._engine.streams, self._limits.max_ahead_s
        elapsed = time.monotonic() - self._first_audio
        # A window, its look-ahead and the smoother's four frames are there before their motion is.
        # A chunk needs both tracks; how far they may be apart is limited where they are taken.
        complete = min(self._received_s[: self._opened.tracks]) if self._opened else 0.0
        undecoded = complete - self._decoded_frames / streams.fps
        inherent = (streams.window_frames + streams.lookahead_frames + 4) / streams.fps
        return self._paced_s - elapsed > allowed or undecoded - inherent > allowed

    @property
    def is_connected(self) -> bool:
        """Whether its socket still takes messages."""
        return self._socket.application_state == WebSocketState.CONNECTED
