"""engine: the Socket.IO server as we need it: hardened against its clients, bounded, with owned tasks.

python-socketio trusts its peers more than we can. What is changed here, each for a failure that the
tests show: a client may name an event `disconnect` and run the server's own handler; binary
attachments pile up without bound; a malformed frame leaves a dead connection behind; a body that
arrives in pieces over long polling is cut off; what waits for a slow client is unbounded; tasks
belong to nobody; each packet, the one with the token too, is in the log of a host that logs INFO.
It knows nothing of sessions: `socket` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from io import BytesIO
from typing import Any, Final

import engineio  # type: ignore[import-untyped]
import socketio
from aiohttp import web
from engineio.async_drivers.aiohttp import WebSocket, translate_request  # type: ignore[import-untyped]
from engineio.packet import MESSAGE  # type: ignore[import-untyped]
from engineio.payload import Payload  # type: ignore[import-untyped]
from socketio import packet as sio_packet

from agent_runtime.errors import InvalidRequest
from agent_runtime.tasks import Tasks
from agent_runtime.transport import wire
from agent_runtime.transport.frames import WRITE_BYTES, Backlog, Batch, Told, framed, header

MALFORMED: Final = "malformed"
"""The event that stands for whatever could not be read; it reaches the catch-all handler."""

_RESERVED: Final = frozenset({"connect", "disconnect", "*"})
_NAMESPACE: Final = "/"
_DIGITS: Final = tuple("0123456")
_CONTROL_CHARS: Final = 16
_ANSWER_CHARS: Final = WRITE_BYTES // 4
"""Of an answer that is written past the queue: no more bytes than of events, whatever letters it has."""
_FAREWELL_S: Final = 2.0
_POLLED_FRAMES: Final = 1000
"""A page that flushes what it buffered sends all of it in one body; the library drops all over 16."""


ReadBody = Callable[[web.Request], Awaitable[bytes]]


class FastJson:
    """The JSON module of our packets: fast, and never at a loss for an encoding."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        """JSON on one line."""
        return wire.dump(value).decode()

    @staticmethod
    def loads(text: str) -> Any:
        """Read JSON. Raises ValueError."""
        return wire.load(text)


class StrictPacket(sio_packet.Packet):  # type: ignore[misc]
    """A packet whose reading never fails: what is not an ordinary one becomes the event `malformed`."""

    packet_type: int
    uses_binary_events = False
    json = FastJson

    def __init__(self, *arguments: Any, encoded_packet: Any = None, **named: Any) -> None:
        super().__init__(*arguments, encoded_packet=encoded_packet, **named)
        if encoded_packet is not None and not encoded_packet:
            self.data = [MALFORMED]  # the library takes an empty one for none

    def decode(self, encoded_packet: Any) -> int:
        """Read a packet of a client; there are never attachments."""
        try:
            super().decode(encoded_packet)
        except (ValueError, TypeError, RecursionError, InvalidRequest):
            self.data = [MALFORMED]  # an id that was read stays: its sender is waiting for an answer
        if self.packet_type not in (sio_packet.CONNECT, sio_packet.DISCONNECT, sio_packet.EVENT):
            # We ask for no acks and take no binary: neither has a reader here.
            self.packet_type, self.id, self.data = sio_packet.EVENT, None, [MALFORMED]
        if self.packet_type == sio_packet.EVENT and not self._is_event():
            self.data = [MALFORMED]
        return 0

    def _is_event(self) -> bool:
        data: Any = self.data
        if not (isinstance(data, list) and data and isinstance(data[0], str)):
            return False
        return data[0] not in _RESERVED


class GuardedWebSocket(WebSocket):  # type: ignore[misc]
    """A websocket that ends on frames that are no Engine.IO packets, and can be cut from outside.

    Live events and small answers may be written to it past the connection's queue (`pass_by`), so it is never
    compressed.
    """

    _transport: asyncio.Transport
    _is_sending = False

    async def __call__(self, environ: dict[str, Any]) -> Any:
        """Serve the connection until it ends."""
        queue = self.handler.__self__.queue
        self.environ, request = environ, environ["aiohttp.request"]
        self._sock = web.WebSocketResponse(max_msg_size=self.server.max_http_buffer_size, compress=False)
        self._transport = request.transport  # none where it is gone already: then it cannot be prepared
        await self._sock.prepare(request)
        queue.socket = self
        try:
            await self.handler(self)
        finally:
            if queue.socket is self:
                queue.socket = None
        return self._sock

    @property
    def unsent_bytes(self) -> int:
        """What was written and the system has not taken yet."""
        return self._transport.get_write_buffer_size()

    def pass_by(self, frames: bytes) -> bool:
        """Write frames at once where the queue's own writer is not in the middle of something.

        Returns False, and writes nothing, where they have to wait.
        """
        transport = self._transport
        if self._is_sending or self._sock.closed or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > WRITE_BYTES:
            return False
        transport.write(frames)
        return True

    async def send(self, message: str | bytes) -> None:
        """Write what the queue's writer took; it may have to wait until the other side reads."""
        self._is_sending = True
        try:
            await super().send(message)
        finally:
            self._is_sending = False

    async def cut(self, reason: str) -> None:
        """Say why and end, whether the other side reads or not."""
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._sock.close(code=wire.CUT_CODE, message=reason.encode())
        except (TimeoutError, ConnectionError):
            pass  # it does not even take that
        self._transport.abort()

    async def wait(self) -> Any:
        """The next frame. Raises OSError where the connection is over or nonsense came."""
        data = await super().wait()
        if isinstance(data, str) and not _is_frame(data):
            raise OSError("not an Engine.IO packet")
        return data


class Engine(engineio.AsyncServer):  # type: ignore[misc]
    """The connections below Socket.IO."""

    def __init__(self, tasks: Tasks, read_body: ReadBody, **options: Any) -> None:
        super().__init__(async_mode="aiohttp", **options)
        driver: dict[str, Any] = self._async  # type: ignore[has-type]
        self._async = driver | {"websocket": GuardedWebSocket, "translate_request": self._whole_request}
        self._read_body = read_body
        self._tasks = tasks

    def create_queue(self, *_: Any, **__: Any) -> Backlog:
        """Every connection's queue counts its bytes."""
        return Backlog()

    def start_background_task(self, target: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """Every task of the library is owned."""
        return self._tasks.spawn(target(*args))

    async def _whole_request(self, request: web.Request) -> dict[str, Any]:
        """The request as the library wants it, its body whole.

        The library reads once, which gives only what has arrived so far.
        """
        environ: dict[str, Any] = translate_request(request)
        if request.method == "POST":
            body = await self._read_body(request)
            _check_polled(body)
            environ["wsgi.input"] = _Body(body)
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ


class SocketServer(socketio.AsyncServer):  # type: ignore[misc]
    """Socket.IO with bounded, synchronous delivery.

    Args:
        tasks: the owner of whatever runs in the background.
        max_packet_bytes: the largest packet that is read; a larger one ends its connection.
        read_body: reads the body of a long-polling request within its bounds.
        backlog_bytes: how many bytes of live events may wait for one connection.
        connect_within_s: a connection without credentials by then is ended.
        origins: foreign origins that may connect; the server's own always may.
        on_slow: told the connection that was closed because it did not take what it was sent.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        max_packet_bytes: int,
        read_body: ReadBody,
        backlog_bytes: int,
        connect_within_s: float,
        origins: tuple[str, ...],
        on_slow: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._backlog_bytes = backlog_bytes
        self._connect_within_s = connect_within_s
        self._on_slow = on_slow
        Payload.max_decode_packets = _POLLED_FRAMES
        super().__init__(
            serializer=StrictPacket,
            logger=_logger,
            engineio_logger=_logger,
            max_http_buffer_size=max_packet_bytes,
            cors_allowed_origins=list(origins) or None,
            cors_credentials=False,
            tasks=tasks,
            read_body=read_body,
        )

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    def start_background_task(self, target: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """Every task of the library is owned."""
        return self._tasks.spawn(target(*args))

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        await super()._handle_eio_connect(eio_sid, environ)
        asyncio.get_running_loop().call_later(self._connect_within_s, self._expect_connected, eio_sid)

    def _expect_connected(self, eio_sid: str) -> None:
        connection = self.eio.sockets.get(eio_sid)
        if connection is None or connection.closed:
            return
        if self.manager.sid_from_eio_sid(eio_sid, _NAMESPACE) is None:
            self._tasks.spawn(self._cut(connection, "not_connected"))

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        await super()._handle_eio_disconnect(eio_sid, reason)
        connection = self.eio.sockets.get(eio_sid)
        if connection is not None:
            connection.queue.put_nowait(None)  # else a poll that waits is held until the next ping

    def deliver(self, sids: Sequence[str], events: Iterable[Told]) -> None:
        """Send events to these connections, framed once; cut those that are over their bound.

        A socket that takes it is written to here and now; else, and over polling, they are queued.
        """
        for batch in framed(events):
            for sid in sids:
                connection = self._connection(sid)
                if connection is None or connection.closed:
                    continue
                if not (connection.queue.is_doomed or self._pass_by(connection, batch.written)):
                    self._queue(sid, connection, batch)

    @staticmethod
    def _pass_by(connection: Any, frames: bytes) -> bool:
        """Past the queue only where nothing in it has to come before; over polling never."""
        queue = connection.queue
        socket = queue.socket if connection.upgraded and queue.is_passable else None
        return socket is not None and bool(socket.pass_by(frames))

    async def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        """An answer goes the way of live events; a large one is queued, so that a socket holds little.

        Through the queue and its task it came later, and so did all events that were told meanwhile.
        """
        packet, connection = pkt.encode(), self.eio.sockets.get(eio_sid)
        is_lost = connection is None or connection.closed or connection.queue.is_doomed
        if not is_lost and len(packet) <= _ANSWER_CHARS:
            answer = b"%d%b" % (MESSAGE, packet.encode())
            if self._pass_by(connection, header(len(answer)) + answer):
                return
        await self.eio.send(eio_sid, packet)

    def _queue(self, sid: str, connection: Any, batch: Batch) -> None:
        queue = connection.queue
        # Of what a socket holds no more than this came past the queue; the rest is an answer, a large one.
        held = 0 if queue.socket is None else min(queue.socket.unsent_bytes, WRITE_BYTES)
        for packet in batch.queued:
            queue.put_nowait(packet)
            if queue.live_bytes + held > self._backlog_bytes:
                self._on_slow()
                self.cut(sid, wire.SLOW_CONSUMER)
                return

    async def drained(self, sid: str, bound: int | None = None) -> None:
        """Return once no more than the bound waits for this connection, answers included."""
        connection, most = self._connection(sid), self._backlog_bytes if bound is None else bound
        while connection is not None and connection.queue.total_bytes > most:
            connection.queue.taken.clear()
            await connection.queue.taken.wait()

    def cut(self, sid: str, reason: str) -> None:
        """End a connection now, without its help. Its client connects anew by itself."""
        connection = self._connection(sid)
        if connection is not None and not connection.queue.is_doomed:
            connection.queue.is_doomed = True
            self._tasks.spawn(self._cut(connection, reason))

    async def close_all(self) -> None:
        """Let every connection write what it has, then end it; clients connect anew by themselves."""
        for connection in tuple(self.eio.sockets.values()):
            await connection.close(wait=False, reason=self.reason.SERVER_DISCONNECT)
            connection.queue.put_nowait(None)
        await self.shutdown()

    def _connection(self, sid: str) -> Any:
        return self.eio.sockets.get(self.manager.eio_sid_from_sid(sid, _NAMESPACE))

    async def _cut(self, connection: Any, reason: str) -> None:
        await connection.close(wait=False, abort=True, reason=reason)
        while not connection.queue.empty():
            connection.queue.get_nowait()
        connection.queue.put_nowait(None)
        socket = connection.queue.socket
        if socket is not None:
            await socket.cut(reason)


def _is_no_traffic(record: logging.LogRecord) -> bool:
    """Below a warning the libraries write every packet down: tokens, messages, files."""
    return record.levelno >= logging.WARNING


_logger = logging.getLogger(__name__)
_logger.addFilter(_is_no_traffic)


def _is_frame(text: str) -> bool:
    """Whether the library can read it without failing: a message holds a packet, the rest is short."""
    if text[:1] == "4":
        return text[1:2] in _DIGITS
    return text[:1] in _DIGITS and len(text) <= _CONTROL_CHARS


def _check_polled(body: bytes) -> None:
    """Raise `InvalidRequest` for a body of long polling that is not frames all through."""
    try:
        frames = body.decode().split("\x1e")
    except UnicodeDecodeError:
        frames = []
    if not 0 < len(frames) <= _POLLED_FRAMES or not all(map(_is_frame, frames)):
        raise InvalidRequest("The body is not Engine.IO packets.", code="malformed_request")


class _Body:
    """A body that is already here, to be read as if it were not."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)

    async def read(self, size: int) -> bytes:
        return self._data.read(size)
