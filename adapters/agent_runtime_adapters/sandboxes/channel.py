"""The stream to a runner that listens on a unix socket of this machine.

Used by every provider whose runner is on the same machine. The socket lies in the sandbox's folder
on the host and has no name inside. It is reached through the folder's descriptor, because a path
in a deep folder is longer than a socket's address may be.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import ByteTaker

SOCKET_NAME: Final = "control.sock"
RECEIVE_BYTES: Final = 64 * 1024
"""Of one `receive`. What a larger one holds is read as JSON at once, and so much that lives together is
looked at by the garbage collector: with 256 KiB a line of many took half as long again."""
_LITTLE_BYTES: Final = 16 * 1024
"""What may be offered to a taker in the loop's own callback."""
BACKLOG: Final = 512
"""A page opens many connections at once, and one more than fits here is not told so by the kernel."""
FLUSH_WITHIN_S: Final = 1.0


class UnixChannel(asyncio.Protocol):
    """A `ports.Channel` over a connected unix socket.

    A protocol of its own and no `StreamReader`: bytes go from the loop's callback to whoever takes them.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._take: ByteTaker | None = None
        self._is_full = False
        self._rest: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._over = asyncio.Event()

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        """The next bytes; empty at the end. Raises `SandboxFault`."""
        while not self._pieces:
            if self._error is not None:
                raise _broken() from self._error
            if self._ended:
                return b""
            self._waiting, self._take = asyncio.get_running_loop().create_future(), take
            try:
                await self._waiting
            finally:
                self._waiting = self._take = None
        data = self._pieces.popleft()
        self._size -= len(data)
        if self._is_full and self._size <= RECEIVE_BYTES:
            self._is_full = False
            self._read_on()
        return data

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises `SandboxFault`."""
        if self._error is not None or self._transport.is_closing():
            raise _broken()
        self._transport.write(data)
        await self._writable.wait()
        if self._over.is_set():
            raise _broken() from self._error

    async def close(self) -> None:
        """Close both directions; what was sent still arrives, unless the other side does not read."""
        self._transport.close()
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                await self._over.wait()
        except TimeoutError:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, and no subclass

    def data_received(self, data: bytes) -> None:
        """Of `asyncio.Protocol`: a little goes to whoever takes it, the rest waits for `receive`."""
        waits = self._waiting is not None and not self._waiting.done()
        if self._take is not None and waits and len(data) <= _LITTLE_BYTES:
            pause_s = self._take(data)
            if pause_s:
                self._transport.pause_reading()
                self._rest = asyncio.get_running_loop().call_later(pause_s, self._rested)
            if pause_s is not None:
                return
        self._pieces.extend(data[at : at + RECEIVE_BYTES] for at in range(0, len(data), RECEIVE_BYTES))
        self._size += len(data)
        if self._size > 2 * RECEIVE_BYTES and not self._is_full:
            self._is_full = True
            self._transport.pause_reading()
        self._wake()

    def _rested(self) -> None:
        self._rest = None
        self._read_on()

    def _read_on(self) -> None:
        if not (self._is_full or self._rest or self._transport.is_closing()):
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Of `asyncio.Protocol`: what we were to say can still be said."""
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Of `asyncio.Protocol`."""
        self._ended, self._error = True, error
        if self._rest is not None:
            self._rest.cancel()
        self._wake()
        self._writable.set()
        self._over.set()

    def pause_writing(self) -> None:
        """Of `asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Of `asyncio.Protocol`."""
        self._writable.set()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def listen(folder: Path) -> socket.socket:
    """A listening socket in the folder, for a runner to inherit. Raises `OSError`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(folder) as path:
            listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect(folder: Path) -> UnixChannel:
    """Connect to the runner that listens in the folder. Raises `SandboxFault` (`sandbox_lost`)."""
    try:
        with _short_path(folder) as path:
            _, channel = await asyncio.get_running_loop().create_unix_connection(UnixChannel, path)
            return channel
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost") from error
    except OSError as error:
        raise SandboxFault("The sandbox cannot be reached.") from error


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """The socket's path through a descriptor of its folder, which is open meanwhile."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def _broken() -> SandboxFault:
    return SandboxFault("The connection to the sandbox broke.")
