"""Many byte streams over one pair of pipes, each with a bound on what waits.

Both ends of a trunk use it: inside a sandbox (`trunk`) and the provider that started that process
there. A frame is a header (kind, stream, number) and, for data, so many bytes. Either end opens
streams; the numbers of one are odd, of the other even. A sender has so much credit for a stream as
its receiver has room: a stream that nobody reads stops its sender and no other stream. What breaks
the rules breaks the trunk. Standard library only; knows neither sockets nor sandboxes.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from enum import IntEnum
from typing import Final

WINDOW_BYTES: Final = 512 * 1024
"""How much of one stream may be on its way or wait for its reader, each way."""
PIECE_BYTES: Final = 128 * 1024
"""The most that one frame carries."""
MAX_STREAMS: Final = 128
"""Of each end's making at a time: neither can take the other's places."""
MAX_WAITING_FRAMES: Final = 64 * 1024
"""An end that makes us answer and takes no answers is not to fill our memory."""
BATCH_BYTES: Final = 1024 * 1024
"""About how much is written at once."""

_HEADER: Final = struct.Struct(">BII")


class Kind(IntEnum):
    """What a frame is; in brackets what its number means."""

    READY = 1
    """The end inside is there [the version]. The first frame of all, on stream 0."""
    OPEN = 2
    """A new stream [what it is for, a `Purpose`]."""
    OPENED = 3
    """It has somebody behind it now [0]."""
    DATA = 4
    """Bytes [how many follow]."""
    CREDIT = 5
    """So many more bytes may be sent [how many]."""
    END = 6
    """No more bytes will come this way [0]."""
    RESET = 7
    """The stream is over, both ways [0]."""
    BEAT = 8
    """Somebody is there, on stream 0 [0]."""
    TERMINATE = 9
    """The runner is to end its agent and itself, on stream 0 [0]."""
    TAKEN_OVER = 10
    """Another trunk serves the gateway from now on, on stream 0 [0]. This one ends."""


class Purpose(IntEnum):
    """What a stream leads to."""

    RUNNER = 1
    """From outside to the runner's socket."""
    GATEWAY = 2
    """From inside to the model gateway."""


VERSION: Final = 1
_KINDS: Final = frozenset(Kind)


class Broken(Exception):
    """The stream is over before its end, or the trunk is."""


class Stream:
    """One stream. One reader and one writer at a time."""

    def __init__(self, number: int, purpose: int, trunk: Multiplex) -> None:
        self.number = number
        self.purpose = purpose
        self._trunk = trunk
        self._credit = WINDOW_BYTES
        self._inbox: deque[bytearray] = deque()
        self._waiting = 0
        self._changed = asyncio.Event()
        self._opened = False
        self._ended_here = self._ended_there = self._broken = False

    async def opened(self) -> None:
        """Return when the other end has somebody behind it. Raises `Broken`."""
        await self._until(lambda: self._opened)

    async def receive(self, most: int = PIECE_BYTES) -> bytes:
        """The next bytes; empty at the end. Raises `Broken`."""
        await self._until(lambda: bool(self._inbox) or self._ended_there)
        if not self._inbox:
            return b""
        first = self._inbox[0]
        data = bytes(first[:most])
        if len(first) > most:
            del first[:most]
        else:
            self._inbox.popleft()
        self._waiting -= len(data)
        if not self._ended_there:
            self._trunk.queue(Kind.CREDIT, self.number, len(data))
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it, as the other end makes room. Raises `Broken`."""
        view = memoryview(data)
        while view:
            await self._until(lambda: self._credit > 0)
            await self._trunk.room()
            if self._broken or self._ended_here:
                raise Broken
            piece = view[: min(self._credit, PIECE_BYTES)]
            self._credit -= len(piece)
            self._trunk.queue(Kind.DATA, self.number, len(piece), bytes(piece))
            view = view[len(piece) :]

    def accept(self) -> None:
        """Tell the other end that somebody is behind this one."""
        self._opened = True
        self._trunk.queue(Kind.OPENED, self.number, 0)

    def end(self) -> None:
        """Send no more. Idempotent."""
        if not self._ended_here and not self._broken:
            self._ended_here = True
            self._trunk.queue(Kind.END, self.number, 0)
            self._forget_if_over()

    def reset(self) -> None:
        """Be done with it, both ways, at once. Idempotent."""
        if not self._broken:
            if not (self._ended_here and self._ended_there):
                self._trunk.queue(Kind.RESET, self.number, 0)
            self.break_off()

    def break_off(self) -> None:
        """It is over; whoever waits is told, and what was not read is gone."""
        self._broken = True
        self._inbox.clear()
        self._changed.set()
        self._trunk.forget(self.number)

    def take(self, kind: int, number: int, data: bytes) -> None:
        """A frame of this stream has come. Raises `Broken` where it breaks the rules."""
        match kind:
            case Kind.OPENED:
                self._opened = True
            case Kind.DATA:
                self._waiting += len(data)
                if not data or self._ended_there or self._waiting > WINDOW_BYTES:
                    raise Broken
                self._keep(data)
            case Kind.CREDIT:
                self._credit += number
                if self._credit > WINDOW_BYTES:
                    raise Broken
            case Kind.END:
                self._ended_there = True
                self._forget_if_over()
            case Kind.RESET:
                self.break_off()
            case _:
                raise Broken
        self._changed.set()

    def _keep(self, data: bytes) -> None:
        """Small pieces are put together: each of its own would take forty times its size."""
        if self._inbox and len(self._inbox[-1]) + len(data) <= PIECE_BYTES:
            self._inbox[-1] += data
        else:
            self._inbox.append(bytearray(data))

    def _forget_if_over(self) -> None:
        if self._ended_here and self._ended_there:
            self._trunk.forget(self.number)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self._broken:
                raise Broken
            self._changed.clear()
            await self._changed.wait()
        if self._broken:
            raise Broken


class Multiplex:
    """One end of a trunk: `feed` takes what came in, `pump` sends what is to go out.

    Args:
        outside: whether this is the provider's end; the two ends number their streams differently.
        accept: told of each stream that the other end opens; None where it may open none.
    """

    def __init__(self, *, outside: bool, accept: Callable[[Stream], None] | None = None) -> None:
        self._accept = accept
        self._next = 1 if outside else 2
        self._streams: dict[int, Stream] = {}
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._to_send = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._rest = b""
        self.broken = False
        self.taken_over = False
        self.beats = 0
        self.ready = asyncio.Event()
        self.asked_to_end = asyncio.Event()

    def open(self, purpose: Purpose) -> Stream:
        """Begin a stream. Raises `Broken` where there are too many, or the trunk is broken."""
        if self.broken or self._count(self._next) >= MAX_STREAMS:
            raise Broken
        stream = Stream(self._next, purpose, self)
        self._next += 2
        self._streams[stream.number] = stream
        self.queue(Kind.OPEN, stream.number, purpose)
        return stream

    def feed(self, data: bytes) -> None:
        """Take what came from the other end. Raises `Broken` where it makes no sense."""
        for kind, number, value, payload in self._frames(data):
            self.beats += 1
            if number == 0:
                self._take_own(kind, value)
            elif kind == Kind.OPEN:
                self._take_new(number, value)
            elif (stream := self._streams.get(number)) is not None:
                stream.take(kind, value, payload)
            if len(self._out) > MAX_WAITING_FRAMES:
                raise Broken

    def queue(self, kind: Kind, number: int, value: int, data: bytes = b"") -> None:
        """Have a frame sent."""
        if self.broken:
            return
        self._out.append(_HEADER.pack(kind, number, value) + data)
        self._out_bytes += _HEADER.size + len(data)
        if self._out_bytes > BATCH_BYTES:
            self._room.clear()
        self._to_send.set()

    async def room(self) -> None:
        """Return when not too much waits to be sent."""
        await self._room.wait()

    async def pump(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send until cancelled, one `write` at a time; what it raises is raised."""
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._out:
                batch = bytearray()
                while self._out and len(batch) < BATCH_BYTES:
                    batch += self._out.popleft()
                self._out_bytes -= len(batch)
                self._room.set()
                await write(bytes(batch))

    def forget(self, number: int) -> None:
        """A stream is over."""
        self._streams.pop(number, None)

    def break_off(self) -> None:
        """The trunk is over, and all its streams are. Idempotent."""
        self.broken = True
        self._out.clear()
        self._room.set()
        for stream in list(self._streams.values()):
            stream.break_off()

    def _take_own(self, kind: int, value: int) -> None:
        match kind:
            case Kind.READY if value == VERSION:
                self.ready.set()
            case Kind.BEAT:
                pass
            case Kind.TERMINATE:
                self.asked_to_end.set()
            case Kind.TAKEN_OVER:
                self.taken_over = True
            case _:
                raise Broken

    def _take_new(self, number: int, purpose: int) -> None:
        theirs = number % 2 != self._next % 2
        if self._accept is None or not theirs or number in self._streams:
            raise Broken
        stream = Stream(number, purpose, self)
        self._streams[number] = stream
        if self._count(number) > MAX_STREAMS:
            stream.reset()
        else:
            self._accept(stream)

    def _count(self, number: int) -> int:
        """How many streams are open that were made by the end which made this one."""
        return sum(1 for other in self._streams if other % 2 == number % 2)

    def _frames(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The whole frames so far; less than one frame is kept for the next time."""
        data, at = self._rest + data, 0
        while len(data) - at >= _HEADER.size:
            kind, number, value = _HEADER.unpack_from(data, at)
            size = value if kind == Kind.DATA else 0
            if size > PIECE_BYTES or kind not in _KINDS:
                raise Broken
            start = at + _HEADER.size
            if len(data) - start < size:
                break
            at = start + size
            yield kind, number, value, data[start:at]
        self._rest = data[at:]


async def splice(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Join a stream and a connection until both directions have ended; then both are over.

    Never raises but when cancelled.
    """
    writer.transport.set_write_buffer_limits(high=0)  # what is drained is with the system, and survives
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_outward(stream, reader))
            both.create_task(_inward(stream, writer))
    except* (Broken, OSError):
        pass
    finally:
        stream.reset()
        writer.transport.abort()


async def _outward(stream: Stream, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(PIECE_BYTES):
        await stream.send(data)
    stream.end()


async def _inward(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.receive():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
