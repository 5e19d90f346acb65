"""Viewers in numbers, and whoever makes the events: the load of `fanout`, in the process that measures.

Every event carries the time at which it was asked for; every viewer counts what it gets and how old it
was. The client is picows, which costs a few microseconds a frame. Time is from the line that asks the
server for an event until a viewer has its frame: loopback twice, the server's work, and what waits here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    _awaited: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def empty(self) -> None:
        """Count from nothing again."""
        self.ages = []

    def take(self, asked_at: int) -> None:
        """One more delivery."""
        self.ages.append(time.perf_counter_ns() - asked_at)
        if len(self.ages) == self._awaited:
            self._reached.set()

    async def reach(self, count: int) -> None:
        """Return when so many deliveries have come; one may wait at a time."""
        if len(self.ages) < count:
            self._awaited = count
            self._reached.clear()
            await self._reached.wait()


class Viewer(picows.WSListener):
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

    async def paced(self, name: str, events: int, interval_s: float) -> list[int]:
        """Have events made at an even pace; the ages of all deliveries, every one of which has come."""
        async with self._counted(name, events) as (arrivals, wanted):
            begin = time.perf_counter()
            for number in range(events):
                await asyncio.sleep(max(0.0, begin + number * interval_s - time.perf_counter()))
                self.ask(name)
            await arrivals.reach(wanted)
        return arrivals.ages

    async def rushed(self, name: str, events: int, window: int) -> list[int]:
        """The same as fast as they are delivered: at most `window` events are on their way at a time.

        A window is counted in deliveries, so that one viewer who lags behind the others holds up nobody.
        """
        viewers = len(self.viewers[name])
        async with self._counted(name, events) as (arrivals, wanted):
            for number in range(events):
                await arrivals.reach((number + 1 - window) * viewers)
                self.ask(name)
            await arrivals.reach(wanted)
        return arrivals.ages

    @asynccontextmanager
    async def _counted(self, name: str, events: int) -> AsyncIterator[tuple[Arrivals, int]]:
        """Every delivery of so many events has to come in time, and none twice."""
        arrivals, wanted = self.arrivals[name], events * len(self.viewers[name])
        arrivals.empty()
        try:
            async with asyncio.timeout(WITHIN_S):
                yield arrivals, wanted
        except TimeoutError:
            raise SystemExit(f"{len(arrivals.ages)} of {wanted} deliveries came") from None
        if len(arrivals.ages) != wanted:
            raise SystemExit(f"{len(arrivals.ages)} deliveries came of {wanted}")
