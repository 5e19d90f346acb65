"""Viewers that do nothing but note what came and when; one connection a session, read when all is over.

A frame is kept with the time of its arrival. `Received` finds the deltas in it afterwards: each tells when it
was written and its number, so that lateness, loss, doubles and disorder all show. Websockets are read by
`picows`, because a viewer must not be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

WITHIN_S = 60.0
_DELTA = re.compile(rb"@(\d{16}):(\d{7,})")
_WHOLE = (b'42["block_complete"', b'42["line",{"type":"assistant"', b'{"type":"assistant"')
"""What holds once more the text that came in deltas."""


@dataclass
class Received:
    """What one viewer got in one turn."""

    frames: list[tuple[int, bytes]] = field(default_factory=list)

    def deltas(self) -> list[tuple[int, int, int]]:
        """Number, microseconds from its writing to its arrival, and its arrival (ns), as they came."""
        return [
            (int(number), arrived // 1000 - int(written), arrived)
            for arrived, frame in self.frames
            if not frame.startswith(_WHOLE)
            for written, number in _DELTA.findall(frame)
        ]


class Viewer(WSListener):
    """One connection. With `join` it speaks Socket.IO, and joins with that event and payload."""

    def __init__(self, auth: Any = None, join: tuple[str, Any] | None = None) -> None:
        self._auth, self._join = auth, join
        self._acks: dict[bytes, asyncio.Future[bytes]] = {}
        self._ended = asyncio.Event()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = Received()
        self.closed = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if self._join is None:
            self.ready.set_result(None)

    def on_ws_disconnected(self, _: WSTransport) -> None:
        self.closed = True
        self._ended.set()

    def on_ws_frame(self, _: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        data = frame.get_payload_as_bytes()
        if self._join is None or data.startswith(b"42"):
            self.received.frames.append((time.monotonic_ns(), data))
            if data.startswith(b'42["turn_end"') or b'"type":"result"' in data:
                self._ended.set()
        elif data == b"2":
            self._say("3")
        elif data.startswith(b"0"):
            self._say("40" + json.dumps(self._auth))
        elif data.startswith(b"40"):
            event, payload = self._join
            self._say(f"420{json.dumps([event, payload])}")
        elif data.startswith(b"430"):
            self.ready.set_result(None)
        elif data.startswith(b"431"):
            self._acks.pop(b"1").set_result(data[3:])

    async def call(self, event: str, payload: Any) -> Any:
        """An event that is answered; the answer."""
        self._acks[b"1"] = answer = asyncio.get_running_loop().create_future()
        self._say(f"421{json.dumps([event, payload])}")
        async with asyncio.timeout(WITHIN_S):
            return json.loads(await answer)[0]

    def begin(self) -> None:
        """A turn is to come; what came before is forgotten."""
        self.received = Received()
        self._ended.clear()

    async def end(self) -> Received:
        """Return when the turn is over, with what came."""
        async with asyncio.timeout(WITHIN_S):
            await self._ended.wait()
        if self.closed:
            raise SystemExit("a viewer was cut")
        return self.received

    def _say(self, text: str) -> None:
        self._transport.send(WSMsgType.TEXT, text.encode())

    def close(self) -> None:
        self._transport.disconnect()


async def viewer(url: str, auth: Any = None, join: tuple[str, Any] | None = None) -> Viewer:
    """Connect, and join where there is something to be joined."""
    made = Viewer(auth, join)
    await ws_connect(lambda: made, url)
    async with asyncio.timeout(WITHIN_S):
        await made.ready
    return made
