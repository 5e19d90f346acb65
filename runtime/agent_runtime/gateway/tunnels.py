"""Tunnels out of one session's sandbox: `CONNECT host:port`, for the hosts that its profile allows.

A name is compared with the allow-list, resolved here, and each of its addresses must be public; the
connection goes to the very address that was checked, so a name that changes its mind changes
nothing. What passes afterwards is the client's own (TLS, mostly) and is not looked at, only
bounded: tunnels at a time, silence, duration, and bytes of the session. Every decision is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from agent_runtime.gateway import hosts
from agent_runtime.gateway.decisions import Decisions
from agent_runtime.gateway.hosts import Authority
from agent_runtime.gateway.network import Network
from agent_runtime.needs import Egress
from agent_runtime.tasks import Tasks

METHOD: Final = b"CONNECT "
"""How a connection begins that is to be a tunnel."""
_HEAD_BYTES: Final = 8192
_PIECE: Final = 64 * 1024
_ADDRESSES: Final = 4
"""So many of a name's addresses are tried."""
_GIB: Final = 1024**3

_REASONS: Final = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 503: "Service Unavailable"}
_OPEN: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one session. Seconds; `session_bytes` counts both directions of all its tunnels."""

    tunnels: int = 32
    head_s: float = 10.0
    resolve_s: float = 10.0
    connect_s: float = 10.0
    idle_s: float = 300.0
    total_s: float = 4 * 3600.0
    session_bytes: int = 64 * _GIB


class Denied(Exception):
    """No tunnel. `decision` is for the log and the metric, `answer` for whoever asked."""

    def __init__(self, status: int, decision: str, message: str) -> None:
        super().__init__(message)
        self.decision = decision
        body = f"{message}\n"
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.answer = (head + body).encode("ascii")


class _Spent(Exception):
    """The session has had all the bytes that it may have."""


class _Stream(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Tunnels:
    """All tunnels of one session, between `open` and `close`."""

    def __init__(self, network: Network, bounds: Bounds, decisions: Decisions, egress: Egress) -> None:
        self._network = network
        self._bounds = bounds
        self._decisions = decisions
        self._egress = egress
        self._tasks = Tasks()
        self._running: set[asyncio.Task[None]] = set()
        self._admitted: dict[asyncio.Task[None], Authority] = {}
        self._bytes = 0

    async def open(self) -> None:
        """Get ready."""
        await self._tasks.open()

    async def close(self) -> None:
        """Cut all tunnels. Idempotent."""
        await self._tasks.close()

    def allow(self, egress: Egress) -> None:
        """From now on these hosts; tunnels to others are cut."""
        self._egress = egress
        for task, wanted in list(self._admitted.items()):
            if not hosts.is_admitted(egress.hosts, wanted):
                self._decisions.tunnel("withdrawn", str(wanted))
                task.cancel()

    def accept(self, transport: asyncio.Transport, first: bytes) -> None:
        """Take over a connection whose first bytes ask for a tunnel."""
        if len(self._running) >= self._bounds.tunnels:
            crowded = Denied(503, "too_many", "Too many tunnels are open at a time.")
            self._decisions.tunnel(crowded.decision, "")
            transport.write(crowded.answer)
            transport.close()
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_HEAD_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        reader.feed_data(first)
        inside = _Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        task = self._tasks.spawn(self._serve(inside))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve(self, inside: _Stream) -> None:
        wanted = ""
        task = asyncio.current_task()
        assert task is not None
        try:
            wanted = await self._wanted(inside.reader)
            self._admitted[task] = authority = self._admit(wanted)
            outside = await self._connect(authority)
            self._decisions.tunnel("allowed", wanted)
            try:
                await self._splice(inside, outside)
            finally:
                outside.writer.transport.abort()
        except Denied as denied:
            self._decisions.tunnel(denied.decision, wanted)
            inside.writer.write(denied.answer)
            await self._end(inside.writer)
        finally:
            self._admitted.pop(task, None)
            inside.writer.transport.abort()  # what was to arrive has arrived

    async def _wanted(self, reader: asyncio.StreamReader) -> str:
        """The target of the request, as it was written; its headers are of no interest."""
        try:
            async with asyncio.timeout(self._bounds.head_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError) as error:
            raise Denied(400, "malformed", "The request's head did not come whole.") from error
        target, _, version = head.split(b"\r\n", 1)[0].removeprefix(METHOD).decode("latin-1").partition(" ")
        if version not in {"HTTP/1.1", "HTTP/1.0"}:
            raise Denied(400, "malformed", "The request's first line is none of HTTP.")
        return target

    def _admit(self, wanted: str) -> Authority:
        asked = hosts.authority(wanted)
        if asked is None:
            raise Denied(403, "malformed", "Only a host's name with a port can be reached, never an address.")
        if not hosts.is_admitted(self._egress.hosts, asked):
            raise Denied(403, "not_allowed", f"{asked} is not among the hosts that may be reached from here.")
        if self._bytes >= self._bounds.session_bytes:
            raise Denied(403, "spent", "This session has moved as many bytes as it may.")
        return asked

    async def _connect(self, wanted: Authority) -> _Stream:
        for address in await self._addresses(wanted):
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._bounds.connect_s):
                    # An address, not a name: nothing is looked up a second time.
                    return _Stream(*await asyncio.open_connection(address, wanted.port, limit=_PIECE))
        raise Denied(502, "unreachable", f"{wanted} cannot be reached.")

    async def _addresses(self, wanted: Authority) -> list[str]:
        try:
            async with asyncio.timeout(self._bounds.resolve_s):
                found = await self._network.resolve(wanted.host, wanted.port)
        except (OSError, TimeoutError) as error:
            raise Denied(502, "unresolved", f"{wanted.host} has no address.") from error
        if not found:
            raise Denied(502, "unresolved", f"{wanted.host} has no address.")
        if not all(map(self._network.may_go_to, found)):
            raise Denied(403, "not_public", f"{wanted.host} points to an address that is not public.")
        return list(found[:_ADDRESSES])

    async def _splice(self, inside: _Stream, outside: _Stream) -> None:
        """Hand on bytes both ways until both ends are through, or a bound is met."""
        loop = asyncio.get_running_loop()
        last = loop.time() + self._bounds.total_s
        inside.writer.write(_OPEN)
        try:
            async with asyncio.timeout_at(last) as patience:

                def moved(size: int) -> None:
                    self._spend(size)
                    patience.reschedule(min(last, loop.time() + self._bounds.idle_s))

                moved(0)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(inside.reader, outside.writer, moved))
                    both.create_task(_pump(outside.reader, inside.writer, moved))
        except* (_Spent, OSError, TimeoutError):
            inside.writer.transport.abort()
        else:
            await self._end(inside.writer)
            await self._end(outside.writer)

    async def _end(self, writer: asyncio.StreamWriter) -> None:
        """Close it; what was written still arrives, unless the other side does not read."""
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._bounds.head_s):
                await writer.wait_closed()

    def _spend(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._bounds.session_bytes:
            raise _Spent


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moved: Callable[[int], None]
) -> None:
    while data := await reader.read(_PIECE):
        moved(len(data))
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
