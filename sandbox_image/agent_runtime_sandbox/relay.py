"""The relay: a TCP address inside the sandbox that leads to the gateway's unix socket, and nowhere else.

Agents and tools that speak HTTP to an address, or to a proxy, cannot speak to a unix socket. The
relay hands bytes on as they are; what passes, and where to, is decided outside by the gateway. It
listens on the sandbox's own loopback, so whatever runs inside may use it, and nobody else can: a
provider whose sandboxes share the host's network has none, or one at a port that is free.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent_runtime_sandbox.door import MAX_CONNECTIONS, Door

_PIECE: Final = 64 * 1024
_FLUSH_S: Final = 10.0
_PAUSE_S: Final = 0.2

_log = logging.getLogger(__name__)


class Relay:
    """Serves a door while `run` does.

    Args:
        door: where it listens already.
        gateway: the unix socket that all connections lead to; it may come and go.
    """

    def __init__(self, door: Door, gateway: Path) -> None:
        self._gateway = gateway
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._listener = door.listener

    async def run(self) -> None:
        """Serve until cancelled. Never raises: without it the agent still has its model."""
        loop = asyncio.get_running_loop()
        with self._listener:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._free.acquire()
                    try:
                        connection, _ = await loop.sock_accept(self._listener)
                    except OSError as error:
                        self._free.release()
                        _log.warning("the relay cannot accept: %s", error.strerror)
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    tasks.create_task(self._serve(connection), name="relayed")

    async def _serve(self, connection: socket.socket) -> None:
        """Join a connection and the gateway until both ends are through."""
        writers: list[asyncio.StreamWriter] = []
        try:
            inside_reader, inside = await asyncio.open_connection(sock=connection, limit=_PIECE)
            writers.append(inside)
            outside_reader, outside = await asyncio.open_unix_connection(self._gateway, limit=_PIECE)
            writers.append(outside)
            async with asyncio.TaskGroup() as both:
                both.create_task(_hand_on(inside_reader, outside))
                both.create_task(_hand_on(outside_reader, inside))
            for writer in writers:
                await _flush(writer)
        except* OSError as errors:
            _log.debug("a relayed connection broke: %r", errors.exceptions[0])
        finally:
            for writer in writers:
                writer.transport.abort()
            if not writers:
                connection.close()
            self._free.release()


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _flush(writer: asyncio.StreamWriter) -> None:
    """Close it; what was written still arrives, unless the other side does not read."""
    writer.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_S):
            await writer.wait_closed()
