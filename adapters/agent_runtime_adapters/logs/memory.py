"""MemoryEventLog: the newest events of each session, in this process, bounded in bytes.

What falls out of the bound, and everything after a restart, is answered by a `Gap`: an epoch is
random, so a position of an earlier process can never be mistaken for one of this one. A follower is a
future, and is asked first whether it takes what was appended there and then. Not here: how events are
folded or sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from agent_runtime.events import Event, Gap, LogEntry, Position, Replay
from agent_runtime.ports import Taker
from agent_runtime_adapters.logs.size import size_of

DEFAULT_MAX_BYTES: Final = 8 * 1024 * 1024


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Stream:
    """One session's log: the entries that are kept, their sizes, and the newest position.

    Two queues: a pair for each entry would be one more object that lives and is looked at by the collector.
    """

    head: Position
    entries: deque[LogEntry] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)
    size: int = 0
    followers: dict[asyncio.Future[None], Taker | None] = field(default_factory=dict)

    def append(self, event: Event, at: datetime) -> LogEntry:
        """Give the event the next place."""
        self.head = Position(self.head.epoch, self.head.seq + 1)
        entry = LogEntry(self.head, at, event)
        size = size_of(event)
        self.entries.append(entry)
        self.sizes.append(size)
        self.size += size
        return entry

    def trim(self, max_bytes: int) -> None:
        """Forget the oldest entries until the rest fits; all of them if need be."""
        while self.size > max_bytes:
            self.entries.popleft()
            self.size -= self.sizes.popleft()

    def since(self, after: Position) -> Replay | Gap:
        """What came after, in time proportional to the answer."""
        missed = self.head.seq - after.seq
        if after.epoch != self.head.epoch or not 0 <= missed <= len(self.entries):
            return Gap(self.head)
        newest_first = list(islice(reversed(self.entries), missed))
        return Replay(tuple(reversed(newest_first)), self.head)

    def tell(self, entries: tuple[LogEntry, ...]) -> None:
        """Let everybody who waits have these, or look for themselves."""
        for woken, take in tuple(self.followers.items()):
            if not (woken.done() or (take is not None and entries and take(entries))):
                woken.set_result(None)


class MemoryEventLog:
    """`ports.EventLog` in memory, for one process.

    Args:
        max_bytes_per_session: how much of a session is kept, as estimated by `size.size_of`. An
            event that is larger than that alone is published and then forgotten: followers get a
            `Gap` and take a snapshot.
        clock: gives the time of an append, in UTC.
    """

    def __init__(
        self,
        *,
        max_bytes_per_session: int = DEFAULT_MAX_BYTES,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._max_bytes = max_bytes_per_session
        self._clock = clock
        self._streams: dict[str, _Stream] = {}

    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        """Give each event its position and time, in order; wake all followers."""
        return self.append_at_once(session_id, events)

    def append_at_once(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        """The same: nothing here has to be waited for."""
        if not events:
            return ()
        stream = self._stream(session_id)
        at = self._clock()
        entries = tuple([stream.append(event, at) for event in events])
        stream.trim(self._max_bytes)
        stream.tell(entries)
        return entries

    async def head(self, session_id: str) -> Position:
        """The newest position; `seq` 0 in a log that holds nothing yet."""
        return self._stream(session_id).head

    async def since(self, session_id: str, after: Position) -> Replay | Gap:
        """All entries after a position, or a `Gap` where that cannot be told without a hole."""
        return self._stream(session_id).since(after)

    async def wait(self, session_id: str, after: Position, take: Taker | None = None) -> None:
        """Return as soon as the head differs from `after`; at once where it does already."""
        stream = self._stream(session_id)
        if stream.head != after:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.followers[woken] = take
        try:
            await woken
        finally:
            del stream.followers[woken]

    async def drop(self, session_id: str) -> None:
        """Forget a session's events; whoever waits or asks finds a new epoch."""
        stream = self._streams.pop(session_id, None)
        if stream is not None:
            stream.tell(())

    async def close(self) -> None:
        """Forget all sessions and wake whoever waits."""
        for session_id in tuple(self._streams):
            await self.drop(session_id)

    def _stream(self, session_id: str) -> _Stream:
        """The session's log, begun where there is none: from now on its epoch stays the same."""
        stream = self._streams.get(session_id)
        if stream is None:
            stream = self._streams[session_id] = _Stream(Position(secrets.token_urlsafe(9), 0))
        return stream
