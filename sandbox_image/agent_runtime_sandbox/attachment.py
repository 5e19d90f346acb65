"""The session's own connection to the runner: kept frames out of the journal, passing frames between them.

What the socket takes is written when it is kept. The pump reads the rest by cursor in bounded pieces, and
waits for the socket before each, so a reader that stalls holds one piece in memory. Replies are sent
when all frames that were written before them have been sent. What the lines inward mean is next door,
in `runner`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.outbox import Outbox

READ_BYTES: Final = 256 * 1024
PASSING_BYTES: Final = 2 * 1024 * 1024
"""With so much of replies and chunks waiting, `send` waits too."""


class Detached(Exception):
    """The connection is gone; there is nobody to send to."""


class Attachment:
    """A live connection. Frames flow once `follow` said from where."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outbox: Outbox) -> None:
        self._reader = reader
        self._writer = writer
        self._outbox = outbox
        self._splitter = frames.LineSplitter()
        self._cursor = 0
        self._passing: deque[tuple[int, bytes]] = deque()
        self._passing_bytes = 0
        self._has_more = asyncio.Event()
        self._drained = asyncio.Event()
        self._idle = asyncio.Event()
        self.closed = False

    async def receive(self) -> list[bytes]:
        """The next whole lines; raises `Detached` at the end and `FrameError` on an endless line."""
        while not self.closed:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as error:
                raise Detached from error
            if not data:
                break
            if lines := self._splitter.feed(data):
                return lines
        raise Detached

    def follow(self, after: int, hello: frames.Frame) -> None:
        """Begin with `hello`, then everything kept after this offset."""
        self._cursor = min(after, self._outbox.head)
        self._enqueue(0, frames.encode(hello))

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a passing frame after all that was kept until now; waits while too many wait.

        Raises `Detached` when the connection is gone.
        """
        self._enqueue(self._outbox.head, frames.encode({"k": kind, **fields}))
        while self._passing_bytes > PASSING_BYTES and not self.closed:
            self._drained.clear()
            await self._drained.wait()
        if self.closed:
            raise Detached

    def wake(self) -> None:
        """There may be more to send: a piece of it goes at once, where nothing waits for the socket.

        So a line that comes alone needs no other task and the loop comes round once less (a tenth of the
        runner's time for it). The rest is left to `pump`. Both write what `_next` gives before anybody else
        can ask it: that keeps the order.
        """
        transport = self._writer.transport
        try:
            if not self.closed and not transport.get_write_buffer_size() and (data := self._next()):
                transport.write(data)
        except OSError:
            pass  # the pump's to find out: whoever kept a frame is not to suffer from it
        if self._passing or self._cursor < self._outbox.head or transport.get_write_buffer_size():
            self._has_more.set()

    async def told(self) -> None:
        """Return when all that was kept until now is with the other side, or it is gone."""
        self._idle.clear()
        self._has_more.set()
        await self._idle.wait()
        while not self.closed and self._writer.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # nothing tells of an empty buffer

    async def pump(self) -> None:
        """Send until the connection ends; raises `Detached` then."""
        while not self.closed:
            self._has_more.clear()
            try:
                await self._writer.drain()
            except OSError as error:
                raise Detached from error
            if data := self._next():
                self._writer.write(data)
            else:
                self._idle.set()
                await self._has_more.wait()
        raise Detached

    def close(self) -> None:
        """Cut the connection at once. Idempotent; whoever waits on it gets `Detached`."""
        self.closed = True
        self._passing.clear()
        self._passing_bytes = 0
        self._has_more.set()
        self._idle.set()
        self._drained.set()
        self._writer.transport.abort()

    def _enqueue(self, barrier: int, line: bytes) -> None:
        if self.closed:
            raise Detached
        self._passing.append((barrier, line))
        self._passing_bytes += len(line)
        self.wake()

    def _next(self) -> bytes:
        if self._passing and self._passing[0][0] <= self._cursor:
            line = self._passing.popleft()[1]
            self._passing_bytes -= len(line)
            self._drained.set()
            return line
        data, self._cursor = self._outbox.read(self._cursor, READ_BYTES)
        return data
