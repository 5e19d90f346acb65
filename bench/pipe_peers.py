"""What `pipeline` runs beside: programs that carry lines from pipes to websockets without us.

`python pipe_peers.py minimal PIPE ...`: a line is framed and written to its viewer's websocket, and no more:
nothing is read, numbered, kept or stored (aiohttp, uvloop).

`python pipe_peers.py naive PIPE ...`: a line is read as JSON and emitted to its room by stock
python-socketio, as its documentation shows it (aiohttp, asyncio's own loop).
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, cast

import socketio
import uvloop
from aiohttp import web

PIPE_BYTES = 128 * 1024
_SHORT, _LONG = 126, 65536


def opened(path: str) -> IO[bytes]:
    """For both directions, so that it never ends."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r+b", buffering=0)


def framed(payload: bytes) -> bytes:
    """A text message of a server."""
    size = len(payload)
    if size < _SHORT:
        return struct.pack("!BB", 0x81, size) + payload
    if size < _LONG:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


class PipeToSocket(asyncio.Protocol):
    """Whole lines of a pipe, one frame and one write each."""

    def __init__(self) -> None:
        self.viewer: asyncio.Transport | None = None
        self._torn = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._torn = (self._torn + data).split(b"\n")
        if self.viewer is not None:
            for line in lines:
                self.viewer.write(framed(line))


async def minimal(paths: list[str]) -> web.Application:
    loop, ends = asyncio.get_running_loop(), []
    for path in paths:
        end = PipeToSocket()
        await loop.connect_read_pipe(lambda end=end: end, opened(path))  # type: ignore[misc]
        ends.append(end)

    async def view(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        ends[int(request.match_info["number"])].viewer = cast("asyncio.Transport", request.transport)
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get("/{number}", view)
    return app


async def naive(paths: list[str]) -> web.Application:
    server = socketio.AsyncServer(async_mode="aiohttp")
    app = web.Application()
    server.attach(app)

    @server.on("join")  # type: ignore[untyped-decorator]
    async def join(sid: str, room: str) -> bool:
        await server.enter_room(sid, room)
        return True

    async def follow(path: str, room: str) -> None:
        reader = asyncio.StreamReader(limit=PIPE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, opened(path))
        while line := await reader.readline():
            await server.emit("line", json.loads(line), room=room)

    @asynccontextmanager
    async def following(_: web.Application) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for number, path in enumerate(paths):
                tasks.create_task(follow(path, str(number)))
            yield

    app.cleanup_ctx.append(following)
    return app


async def serve(kind: str, paths: list[str]) -> None:
    app = await (minimal if kind == "minimal" else naive)(paths)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    kind, *paths = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if kind == "minimal" else None) as runner:
        runner.run(serve(kind, paths))


if __name__ == "__main__":
    main()
