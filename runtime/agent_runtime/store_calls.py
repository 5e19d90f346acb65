"""StoreCalls: one session's calls to the store, one at a time, and what happens while it does not answer.

A write is repeated until the store takes it, so that nothing is dropped but what can never be written; a
read waits for so long. What is written, and when, is the `recorder`'s; how the store does it, an adapter's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from agent_runtime.errors import InvalidRequest, NotFound, PersistenceFault

_log = structlog.get_logger(__name__)

_RETRY_FIRST_S: Final = 0.1
_RETRY_MOST_S: Final = 5.0
"""Back-off while the store does not answer: soon enough to go on, rare enough not to add to its load."""
_READ_AGAIN_S: Final = 1.0
"""The longest pause between two reads: somebody waits for what is read."""

T = TypeVar("T")


class StoreCalls:
    """The calls of one session. All methods run on the session's loop.

    `fault` says why while a write is being repeated because the store does not take it.

    Args:
        session_id: named in what is logged.
        settled: called whenever a write is over, also one that was given up.
    """

    def __init__(self, session_id: str, *, settled: Callable[[], None]) -> None:
        self.fault: PersistenceFault | None = None
        self._session_id = session_id
        self._settled = settled
        self._calling = asyncio.Lock()
        self._again = asyncio.Event()

    @property
    def failing(self) -> bool:
        """Whether the store does not take what there is to save."""
        return self.fault is not None

    @property
    def is_hopeless(self) -> bool:
        """Whether no patience will help: the store is damaged, and nobody should wait for it."""
        return self.fault is not None and not self.fault.retryable

    def try_again(self) -> None:
        """Somebody saw the store answer, or wants it to: a write that is to be repeated waits no longer."""
        self._again.set()

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call, after those under way. Raises what it raises."""
        async with self._calling:
            return await call()

    async def read(self, call: Callable[[], Awaitable[T]], within_s: float) -> T:
        """Read patiently, beside the writes: a store that is away for a moment fails nobody's turn.

        Raises `PersistenceFault` where it does not answer within so many seconds, or never will.
        """
        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + within_s, _RETRY_FIRST_S
        while True:
            try:
                return await call()
            except PersistenceFault as fault:
                if not fault.retryable or loop.time() + delay > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, _READ_AGAIN_S)

    async def until_saved(self, write: Callable[[], Awaitable[None]]) -> bool:
        """Repeat a write until the store takes it; False where it never will.

        A session deleted meanwhile needs no saving.
        """
        delay = _RETRY_FIRST_S / 2
        try:
            while True:
                try:
                    await self.once(write)
                except NotFound:
                    return True
                except InvalidRequest as fault:  # repeating it would hold up all that follows
                    _log.error("not_stored", session_id=self._session_id, code=fault.code)
                    return False
                except PersistenceFault as fault:
                    self.fault = fault
                    delay = self._next_delay(delay, fault)
                else:
                    return True
                await self._pause(delay)
        finally:
            self.fault = None  # also when given up: whoever writes next finds out for himself
            self._settled()

    def _next_delay(self, delay: float, fault: PersistenceFault) -> float:
        """Twice as long each time; what no patience heals is tried rarely, and said louder."""
        tell = _log.warning if fault.retryable else _log.error
        tell("persistence_retry", session_id=self._session_id, code=fault.code, reason=fault.detail)
        return min(delay * 2, _RETRY_MOST_S) if fault.retryable else _RETRY_MOST_S

    async def _pause(self, delay: float) -> None:
        """Wait so long, or until `try_again`; never so short that many who ask are a load."""
        await asyncio.sleep(_RETRY_FIRST_S)
        self._again.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay - _RETRY_FIRST_S):
                await self._again.wait()
