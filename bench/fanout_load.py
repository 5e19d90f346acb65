"""Viewers in numbers, and whoever makes the events: the load of `fanout`, in the process that measures.

Every event carries the time at which it was asked for; every viewer counts what it gets and how old it
was. The client is picows, which costs a few microseconds a frame. Time is from the line that asks the
server for an event until a viewer has its frame: loopback twice, the server's work, and what waits here.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

import picows

DELTA_BYTES: Final = 200
_MARK: Final = b'"@'
_DIGITS: Final = 19
WITHIN_S: Final = 30.0


@dataclass
class Arrivals:
    """What the viewers of a room got since it was emptied: ages in nanoseconds."""

    ages: list[int] = field(default_factory=list)
    wanted: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def expect(self, count: int) -> None:
        """From now on so many deliveries have to come."""
        self.ages, self.wanted = [], count
        self.complete.clear()

    def take(self, asked_at: int) -> None:
        """One more delivery."""
        self.ages.append(time.perf_counter_ns() - asked_at)
        if len(self.ages) == self.wanted:
            self.complete.set()


class Viewer(picows.WSListener):  # type: ignore[misc]
    """Joins a room, of Socket.IO or in the path, and counts."""

    def __init__(self, rooms: list[str], arrivals: Arrivals, *, speaks: bool) -> None:
        super().__init__()
        self._joins = list(rooms) if speaks else []
        self._arrivals = arrivals
        self.joined = asyncio.Event()
        self.is_over = False

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """An event, or a step of joining."""
        if frame.msg_type is not picows.WSMsgType.TEXT:
            return
        text = frame.get_payload_as_bytes()
        at = text.find(_MARK) + len(_MARK)
        if text.startswith(b"42"):
            self._arrivals.take(int(text[at : at + _DIGITS]))
        elif text.startswith(b"2"):
            transport.send(picows.WSMsgType.TEXT, b"3")
        elif text.startswith(b"0"):
            transport.send(picows.WSMsgType.TEXT, b"40")
        elif self._joins:
            join = json.dumps(["session:join", self._joins.pop(0)])
            transport.send(picows.WSMsgType.TEXT, b"420" + join.encode())
        else:
            self.joined.set()

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        """The server let go."""
        self.is_over = True


@dataclass
class Server:
    """A server that runs: where it is, and what its viewers got by room."""

    pid: int
    said: dict[str, Any]
    speaks: bool
    control: asyncio.StreamWriter
    arrivals: dict[str, Arrivals] = field(default_factory=dict)
    viewers: dict[str, list[picows.WSTransport]] = field(default_factory=dict)

    def room(self, name: str) -> str:
        """As the server calls it."""
        return str(self.said["rooms"][name])

    async def join(self, *names: str) -> tuple[picows.WSTransport, Viewer]:
        """One more viewer, of these rooms; it counts for the first."""
        arrivals = self.arrivals.setdefault(names[0], Arrivals())
        rooms = [self.room(name) for name in names]
        path = "socket.io/?EIO=4&transport=websocket" if self.speaks else rooms[0]
        url = f"ws://127.0.0.1:{self.said['port']}/{path}"
        viewer = Viewer(rooms, arrivals, speaks=self.speaks)
        transport, _ = await picows.ws_connect(lambda: viewer, url)
        async with asyncio.timeout(WITHIN_S):
            await viewer.joined.wait()
        self.viewers.setdefault(names[0], []).append(transport)
        return transport, viewer

    def ask(self, name: str, size: int = DELTA_BYTES) -> None:
        """Have one event made, of a delta of `size` bytes."""
        stamp = f"@{time.perf_counter_ns():0{_DIGITS}d}"
        self.control.write(f"{self.room(name)} {stamp.ljust(size, 'x')}\n".encode())

    async def stream(self, name: str, events: int, interval_s: float) -> list[int]:
        """Have events made at an even pace; the ages of all deliveries, every one of which has come."""
        arrivals = self.arrivals[name]
        arrivals.expect(events * len(self.viewers[name]))
        begin = time.perf_counter()
        for number in range(events):
            await asyncio.sleep(max(0.0, begin + number * interval_s - time.perf_counter()))
            self.ask(name)
        try:
            async with asyncio.timeout(WITHIN_S):
                await arrivals.complete.wait()
        except TimeoutError:
            raise SystemExit(f"{len(arrivals.ages)} of {arrivals.wanted} deliveries came") from None
        return arrivals.ages
