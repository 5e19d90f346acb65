"""The time by which sandboxes end. It can be moved forward from outside, so that no test waits a day."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """Seconds since some beginning; never goes back."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        """The time, in seconds."""
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once. Whoever waits in `moved` looks again."""
        self._ahead += max(0.0, seconds)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    @property
    def moved(self) -> asyncio.Event:
        """Set when time is moved the next time."""
        return self._moved
