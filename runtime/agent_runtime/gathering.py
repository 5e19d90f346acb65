"""Gathering: while the loop has much to do, sessions are read a little later, and more of them at once.

What an agent says in pieces costs by the event, not by the letter: pieces that are read together become
one event. While the loop has time nothing is gathered, and a lone stream is never delayed; when most of its
time is spent, each session waits after what it was given, up to a bound, before it is read again. What waits
meanwhile is in the runner's socket and journal. Who waits is `runner_feed`, or the channel for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_LOOK_S: Final = 0.2
"""How long the loop's time is watched before it is judged anew. A quarter of that took a moment in which
much came at once for a busy loop: with 250 sessions, six tenths of a core, p99 was 31 ms instead of 1.4."""
_BUSY_FROM: Final = 0.75
_BUSY_FULLY: Final = 0.95
"""Shares of one core: from the first on pauses grow, with the second they are as long as they may be."""


class Gathering:
    """One for all sessions of a loop.

    Args:
        most_s: the longest pause; 0: there is none.
        clock, spent: seconds of time, and of the processor's time that this thread took.
    """

    def __init__(
        self,
        most_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._most_s = most_s
        self._clock = clock
        self._spent = spent
        self._looked = (clock(), spent())
        self._pause_s = 0.0

    async def pause(self) -> None:
        """Wait before more is read, where that is worth it; a loop that has time returns at once."""
        if pause_s := self.pause_s():
            await asyncio.sleep(pause_s)

    def pause_s(self) -> float:
        """How long to wait after what was just read, before more is."""
        now, (looked, spent_then) = self._clock(), self._looked
        if now - looked >= _LOOK_S:
            spent = self._spent()
            busy = (spent - spent_then) / (now - looked)
            share = (busy - _BUSY_FROM) / (_BUSY_FULLY - _BUSY_FROM)
            self._pause_s = self._most_s * min(1.0, max(0.0, share))
            self._looked = (now, spent)
        return self._pause_s
