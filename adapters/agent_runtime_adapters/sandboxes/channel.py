"""The stream to a runner that listens on a unix socket of this machine.

Used by every provider whose runner is on the same machine. The socket lies in the sandbox's folder
on the host and has no name inside. It is reached through the folder's descriptor, because a path
in a deep folder is longer than a socket's address may be.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault

SOCKET_NAME: Final = "control.sock"
RECEIVE_BYTES: Final = 64 * 1024
"""Of one read. What a larger one holds is read as JSON at once, and so much that lives together is looked at
by the garbage collector: with 256 KiB a line of many took half as long again."""
BACKLOG: Final = 512
"""A page opens many connections at once, and one more than fits here is not told so by the kernel."""
FLUSH_WITHIN_S: Final = 1.0


class UnixChannel:
    """A `ports.Channel` over a connected unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """The next bytes; empty at the end. Raises `SandboxFault`."""
        try:
            return await self._reader.read(RECEIVE_BYTES)
        except OSError as error:
            raise _broken() from error

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises `SandboxFault`."""
        if self._writer.is_closing():
            raise _broken()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise _broken() from error

    async def close(self) -> None:
        """Close both directions; what was sent still arrives, unless the other side does not read."""
        self._writer.close()
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


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
            return UnixChannel(*await asyncio.open_unix_connection(path, limit=RECEIVE_BYTES))
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
