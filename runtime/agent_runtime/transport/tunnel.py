"""tunnel: a connection that became a WebSocket on both sides, passed on byte for byte.

The frames are the business of the two ends. Each side is read only as fast as the other one takes it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import deque
from typing import Any, Final, cast

from aiohttp import web

from agent_runtime.errors import RuntimeFault
from agent_runtime.passages import Passage
from agent_runtime.tasks import Tasks

_WAITING_BYTES: Final = 256 * 1024
_WEBSOCKET: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepts(key: str, answer: str | None) -> bool:
    """Whether an answer to a handshake is one to this key: whoever says so has read the request."""
    wanted = base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET, usedforsecurity=False).digest())
    return answer is not None and answer.encode() == wanted


class Inlet:
    """What a client sends once its connection is no HTTP any more; takes the place of the parser."""

    def __init__(self, request: web.Request) -> None:
        self._protocol = request.protocol
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._more = asyncio.Event()
        self._protocol.set_parser(cast("Any", self))

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Called by the connection with what came."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _WAITING_BYTES:
            self._protocol.pause_reading()
        self._more.set()
        return False, b""

    def feed_eof(self) -> None:
        """Called by the connection when it is lost."""
        self._over = True
        self._more.set()

    async def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        while not self._pieces:
            if self._over:
                return b""
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._size > _WAITING_BYTES:
            self._protocol.resume_reading()
        self._size = 0
        return data


async def tunnel(
    request: web.Request, response: web.StreamResponse, passage: Passage, early: bytes, tasks: Tasks
) -> None:
    """Pass bytes both ways until one side ends. `early` came from inside already."""
    inlet = Inlet(request)
    ways = (tasks.spawn(_inward(inlet, passage)), tasks.spawn(_outward(passage, response, early)))
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        if request.transport is not None:
            request.transport.close()


async def _inward(inlet: Inlet, passage: Passage) -> None:
    try:
        while data := await inlet.receive():
            await passage.send(data)
    except RuntimeFault:
        return


async def _outward(passage: Passage, response: web.StreamResponse, early: bytes) -> None:
    try:
        while data := early or await passage.receive():
            early = b""
            await response.write(data)
    except (RuntimeFault, ConnectionError):
        return
