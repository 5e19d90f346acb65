"""The outbox: gives each kept frame its offset and time, and puts it into the journal.

It is the one place where frames get their order. It holds producers back (`room`) while the
journal is over its bound or its disk is full, so that an agent that nobody listens to stalls and
loses nothing. Sending the frames to somebody is next door, in `attachment`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.journal import Journal

JOURNAL_BYTES: Final = 256 * 1024 * 1024
"""With so much unacknowledged, the agent and the watcher wait."""
_RETRY_S: Final = 0.25


class Outbox:
    """Frames on their way out. `changed` is called whenever there may be more to read."""

    def __init__(self, journal: Journal, *, limit: int = JOURNAL_BYTES) -> None:
        self._journal = journal
        self._limit = limit
        self._head = 0
        self._backlog: list[bytes] = []
        self._retry: asyncio.TimerHandle | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.changed: Callable[[], None] = lambda: None

    @property
    def head(self) -> int:
        """The offset of the newest frame."""
        return self._head

    @property
    def oldest(self) -> int:
        """The smallest offset that can still be read."""
        return self._journal.oldest

    def emit(self, kind: str, **fields: Any) -> int:
        """Keep one frame; return its offset."""
        return self.emit_all(kind, [fields])

    def emit_all(self, kind: str, many: Iterable[dict[str, Any]]) -> int:
        """Keep frames of one kind, in order and in one write; return the last one's offset."""
        now = time.time_ns() // 1_000_000 / 1000
        for fields in many:
            self._head += 1
            line = frames.encode({"o": self._head, "t": now, "k": kind, **fields})
            if not frames.is_bounded(line):
                message = f"a frame `{kind}` of {len(line)} bytes was left out"
                fault = {"k": "fault", "code": "line_too_long", "message": message}
                line = frames.encode({"o": self._head, "t": now, **fault})
            self._backlog.append(line)
        self._flush()
        return self._head

    @property
    def has_room(self) -> bool:
        """Whether another frame is welcome."""
        return self._has_room.is_set()

    async def room(self) -> None:
        """Wait until another frame is welcome. Whoever can produce without end waits here first."""
        if not self._has_room.is_set():
            await self._has_room.wait()

    def ack(self, offset: int) -> None:
        """Forget frames up to `offset`."""
        self._journal.ack(offset)
        self._flush()

    def read(self, after: int, limit: int) -> tuple[bytes, int]:
        """Lines of kept frames, as `Journal.read`."""
        return self._journal.read(after, limit)

    def _flush(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._backlog:
            try:
                self._journal.append(self._backlog)
            except OSError:
                self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._flush)
            else:
                self._backlog = []
        if self._backlog or self._journal.live_bytes > self._limit:
            self._has_room.clear()
        else:
            self._has_room.set()
        self.changed()
