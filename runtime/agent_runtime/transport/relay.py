"""relay: carries a session's log to the connections that joined it.

One relay per session with viewers, one task each. It reads the log from its own place on, encodes
every event once and hands it on for all viewers, in the call that appends it where the log offers that
(`_take`); it admits a viewer between two reads, after sending it alone what it lacks, so that nothing is
missing and nothing comes twice. It knows no Socket.IO:
`deliver` brings encoded events to connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from agent_runtime.errors import NotFound
from agent_runtime.events import Gap, LogEntry, Position
from agent_runtime.ports import EventLog
from agent_runtime.tasks import Tasks
from agent_runtime.transport import wire


class Followed(Protocol):
    """Where the events are, and who has to know that somebody follows them."""

    @property
    def log(self) -> EventLog:
        """The log."""
        ...

    def viewing(self, session_id: str) -> AbstractContextManager[None]:
        """Entered while a session is followed."""
        ...


Deliver = Callable[[Sequence[str], Iterable[tuple[str, bytes]]], None]
"""(connections, events by name with their encoded envelopes) -> on the way to each."""
Cut = Callable[[str, str], None]
"""(connection, reason) -> it is closed; its client joins again."""
Check = Callable[[], Awaitable[object]]
"""Raises `NotFound` when the session is no more."""

_ON_THE_HEELS_S: Final = 0.0001
"""An event so soon after one was sent is of the same turn of the loop, or nearly."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """A connection that was told the state as of `after` and now wants what follows."""

    sid: str
    after: Position


class OutOfReach(Exception):
    """The log has run past everything it could show; only joining again helps."""


class Relay:
    """Follows one session's log for its viewers. `run` ends when the last one has left."""

    def __init__(
        self, log: EventLog, session_id: str, start: Position, deliver: Deliver, check: Check
    ) -> None:
        self._log = log
        self._session_id = session_id
        self._position = start
        self._deliver = deliver
        self._check = check
        self._viewers: dict[str, None] = {}
        self._waiting: list[Admission] = []
        self._until_poked: asyncio.Timeout | None = None
        self._broken: Exception | None = None
        self._took_at = 0.0

    @property
    def viewers(self) -> tuple[str, ...]:
        """Everyone who is in, or on the way in."""
        return (*self._viewers, *(admission.sid for admission in self._waiting))

    def _is_watched(self) -> bool:
        return bool(self._viewers or self._waiting)

    def admit(self, admission: Admission) -> None:
        """Let a connection in at the next pause between two events."""
        self._waiting.append(admission)
        self._poke()

    def remove(self, sid: str) -> None:
        """From now on this connection gets nothing more."""
        self._viewers.pop(sid, None)
        self._waiting = [admission for admission in self._waiting if admission.sid != sid]
        self._poke()

    async def run(self) -> None:
        """Relay until nobody is left or the session is gone."""
        while self._is_watched():
            # Only who stood here before we looked is surely not ahead of what we find.
            due = tuple(self._waiting)
            await self._advance()
            for admission in due:
                await self._let_in(admission)
            if self._is_watched() and not self._waiting:
                await self._follow()

    async def _advance(self) -> None:
        """Send everyone what came since."""
        if self._broken is not None:
            raise self._broken
        found = await self._log.since(self._session_id, self._position)
        if isinstance(found, Gap):
            await self._jump(found.head)
            return
        self._send(tuple(self._viewers), found.entries)
        self._position = found.head

    async def _jump(self, head: Position) -> None:
        """The log no longer reaches our place: go to its end, and show the hole to everyone.

        The newest event is sent even so: its number tells clients that they have to join again.
        """
        await self._check()
        newest = await self._newest(head)
        self._send(tuple(self._viewers), newest)
        self._position = newest[-1].position if newest else head

    async def _let_in(self, admission: Admission) -> None:
        missing = await self._between(admission.after)
        if admission not in self._waiting:
            return  # it left, or joined anew, while we looked
        self._waiting.remove(admission)
        self._send((admission.sid,), missing)
        self._viewers[admission.sid] = None

    async def _between(self, after: Position) -> tuple[LogEntry, ...]:
        """What a newcomer lacks up to our own place; the newest alone where the log cannot tell."""
        if after == self._position:
            return ()
        found = await self._log.since(self._session_id, after)
        entries = await self._newest(self._position) if isinstance(found, Gap) else found.entries
        return tuple(entry for entry in entries if entry.position.seq <= self._position.seq)

    async def _newest(self, head: Position) -> tuple[LogEntry, ...]:
        if head.seq == 0:
            return ()
        found = await self._log.since(self._session_id, Position(head.epoch, head.seq - 1))
        if isinstance(found, Gap):
            raise OutOfReach
        return found.entries

    async def _follow(self) -> None:
        """Send everyone what comes, until there is news of the viewers.

        Such news may break off a look at the log; nothing is sent then, and the next one finds the same.
        """
        try:
            async with asyncio.timeout(None) as self._until_poked:
                while True:
                    await self._log.wait(self._session_id, self._position, self._take)
                    await self._advance()
        except TimeoutError:
            pass  # poked
        finally:
            self._until_poked = None

    def _take(self, entries: tuple[LogEntry, ...]) -> bool:
        """Send what was appended at once, where it is what comes next and nobody is to be let in first.

        To be woken for it took a seventh of what a lone event costs. What follows on the heels of another
        is left to be found, and sent with what comes meanwhile: in a rush of events to a hundred viewers
        that is a seventh of the work.
        """
        first = entries[0].position
        if self._waiting or first.seq != self._position.seq + 1 or first.epoch != self._position.epoch:
            return False
        if time.monotonic() - self._took_at < _ON_THE_HEELS_S:
            return False
        try:
            self._send(tuple(self._viewers), entries)
        except Exception as error:
            self._broken = error  # whoever appends is not to suffer from it
            return False
        self._position = entries[-1].position
        self._took_at = time.monotonic()
        return True

    def _poke(self) -> None:
        scope, self._until_poked = self._until_poked, None
        if scope is not None:
            scope.reschedule(0)

    def _send(self, sids: Sequence[str], entries: Sequence[LogEntry]) -> None:
        if sids and entries:
            self._deliver(
                sids, ((entry.event.type, wire.encoded(self._session_id, entry)) for entry in entries)
            )


class Relays:
    """All relays of this process, and who has joined what.

    A join takes three steps: `begin` takes the connection out of the session's viewers, the caller
    works out its answer, and `admit` lets it in where that answer ended. Only the newest join of a
    connection counts.
    """

    def __init__(self, followed: Followed, tasks: Tasks, deliver: Deliver, cut: Cut) -> None:
        self._log = followed.log
        self._viewing = followed.viewing
        self._tasks = tasks
        self._deliver = deliver
        self._cut = cut
        self._relays: dict[str, Relay] = {}
        self._joined: dict[str, dict[str, object]] = {}

    def __len__(self) -> int:
        return len(self._relays)

    def joined(self, sid: str) -> int:
        """How many sessions a connection has joined."""
        return len(self._joined.get(sid, ()))

    def begin(self, sid: str, session_id: str) -> object:
        """A join begins; returns the ticket that `admit` asks for."""
        self.leave(sid, session_id)
        ticket = object()
        self._joined.setdefault(sid, {})[session_id] = ticket
        return ticket

    def admit(self, sid: str, session_id: str, ticket: object, after: Position, check: Check) -> None:
        """Let the connection in, unless it left or joined anew since `begin`."""
        if self._joined.get(sid, {}).get(session_id) is not ticket:
            return
        relay = self._relays.get(session_id)
        if relay is None:
            relay = Relay(self._log, session_id, after, self._deliver, check)
            self._relays[session_id] = relay
            relay.admit(Admission(sid, after))
            self._tasks.spawn(self._run(session_id, relay))
        else:
            relay.admit(Admission(sid, after))

    def leave(self, sid: str, session_id: str) -> None:
        """The connection wants no more of this session. Idempotent."""
        sessions = self._joined.get(sid, {})
        if sessions.pop(session_id, None) is not None and session_id in self._relays:
            self._relays[session_id].remove(sid)
        if not sessions:
            self._joined.pop(sid, None)

    def forget(self, sid: str) -> None:
        """The connection is gone."""
        for session_id in tuple(self._joined.get(sid, ())):
            self.leave(sid, session_id)

    async def _run(self, session_id: str, relay: Relay) -> None:
        try:
            with self._viewing(session_id):
                await relay.run()
        except NotFound:
            pass  # the session was deleted; there is nothing more to tell its viewers
        except OutOfReach:
            self._send_back(relay)
        except Exception:
            _log.exception("relay_failed", session_id=session_id)
            self._send_back(relay)
        finally:
            del self._relays[session_id]
            for sid in relay.viewers:
                self._joined.get(sid, {}).pop(session_id, None)

    def _send_back(self, relay: Relay) -> None:
        """Viewers whose stream broke find out by losing their connection, and join again."""
        for sid in relay.viewers:
            self._cut(sid, "relay_ended")
