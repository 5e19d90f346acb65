"""A store and a log with faults on demand: thin layers over real ones."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agent_runtime.errors import PersistenceFault
from agent_runtime.events import Event, LogEntry
from agent_runtime_adapters.logs.memory import MemoryEventLog

UNWRAPPED = {"open", "close"}


class FaultyPersistence:
    """Hands every call on to `inner`, unless a fault is in the way.

    `down`: calls raise `PersistenceFault`. `deaf`: the call is performed, and then the fault is
    raised all the same. `held`: calls wait until it is set again (`hold`, `let_go`). Each may be
    limited to some methods by `only`. `calls` are the names of all calls, in order; `most_at_once`
    is how many writes of one session ever overlapped.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.down = False
        self.deaf = False
        self.only: set[str] | None = None
        self.breaks: Exception | None = None
        self.calls: list[str] = []
        self.refused = 0
        self.most_at_once = 0
        self._writing = 0
        self._may_go = asyncio.Event()
        self._may_go.set()

    def hold(self) -> None:
        self._may_go.clear()

    def let_go(self) -> None:
        self._may_go.set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return method if name in UNWRAPPED else self._wrapped(name, method)

    def _wrapped(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            is_write = name.startswith(("save", "append", "update", "delete_files"))
            self._writing += is_write
            self.most_at_once = max(self.most_at_once, self._writing)
            try:
                await asyncio.sleep(0)
                return await self._faulty(name, lambda: method(*arguments, **named))
            finally:
                self._writing -= is_write

        return call

    async def _faulty(self, name: str, perform: Callable[[], Awaitable[Any]]) -> Any:
        if self.only is not None and name not in self.only:
            return await perform()
        await self._may_go.wait()
        if self.breaks is not None:
            raise self.breaks
        if self.down:
            self.refused += 1
            raise PersistenceFault("The store is down.")
        result = await perform()
        if self.deaf:
            raise PersistenceFault("The store took it and did not say so.")
        return result


class SlowLog(MemoryEventLog):
    """A log that lets others run before and after it appends, as one behind a network does.

    Asked to append at once, it does so every other time. `breaks_at`: the next append that holds an event of
    this type raises what no log should raise.
    """

    breaks_at: str | None = None
    at_once = False

    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        for _ in range(3):
            await asyncio.sleep(0)
        if any(event.type == self.breaks_at for event in events):
            self.breaks_at = None
            raise ZeroDivisionError
        entries = super().append_at_once(session_id, events)
        for _ in range(3):
            await asyncio.sleep(0)
        return entries

    def append_at_once(  # type: ignore[override]  # as a log may that is not always near
        self, session_id: str, events: Sequence[Event]
    ) -> tuple[LogEntry, ...] | None:
        self.at_once = not self.at_once
        if not self.at_once or any(event.type == self.breaks_at for event in events):
            return None
        return super().append_at_once(session_id, events)
