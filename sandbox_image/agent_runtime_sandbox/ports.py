"""Ports: connections to what listens inside the sandbox, one of them per connection to the runner.

After the runner's one line of answer the connection is the plain stream of bytes, both ways. It ends
when either side ends. What a port speaks (HTTP, WebSocket, anything) is nobody's business here.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.leaving import gone

MAX_OPEN: Final = 128
"""Connections to ports at a time; a browser opens six to one host, and more for WebSockets."""
CONNECT_S: Final = 5.0
PIECE_BYTES: Final = 128 * 1024
_ADDRESSES: Final = ("127.0.0.1", "::1")
_LAST_PORT: Final = 65535


class Ports:
    """Serves connections that began with `port`."""

    def __init__(self) -> None:
        self._open = 0

    async def serve(
        self, frame: frames.Frame, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect, answer, and pass bytes until one side is done. Raises `FrameError`, `OSError`."""
        port = frame.get("port")
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= _LAST_PORT:
            raise frames.FrameError("no such port")
        if self._open >= MAX_OPEN:
            return await frames.refuse(writer, "too_many_connections", f"{MAX_OPEN} are open already")
        self._open += 1
        try:
            await self._pass(port, reader, writer)
        finally:
            self._open -= 1

    async def _pass(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await _connect(port)
        except OSError:
            return await frames.refuse(writer, "port_closed", f"nothing takes connections at port {port}")
        try:
            # Whatever `drain` returned from has left this process: nothing is lost when we are done.
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(frames.encode({"k": "opened"}))
            await writer.drain()
            async with asyncio.TaskGroup() as both:
                copies = [
                    both.create_task(_copy(inner_reader, writer), name="outward"),
                    both.create_task(_copy(reader, inner_writer), name="inward"),
                    both.create_task(gone(writer), name="leaving"),
                ]
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
                for copy in copies:
                    copy.cancel()
        finally:
            inner_writer.transport.abort()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To this machine alone, by either of its names. Raises `OSError`."""
    refusal: OSError = ConnectionRefusedError()
    for address in _ADDRESSES:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(address, port, limit=PIECE_BYTES)
        except OSError as error:  # a timeout is one, too
            refusal = error
    raise refusal


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, or until somebody is gone: then there is nothing more to be passed on."""
    try:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
