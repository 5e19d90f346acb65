"""How long a story may stand still: its bound follows progress, so that a busy machine is only slow.

What counts as progress there is only so much of in a story: messages that were answered for, turns that
began and ended, blocks. One that goes round in circles makes none.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Unwell(Exception):
    """The story did not come to its end: what was waited for, and how things stood."""


class Progress:
    """`longest_s` is the longest time without any, `waits_for` says what is being waited for."""

    def __init__(self, patience_s: float) -> None:
        self.longest_s = 0.0
        self.waits_for = "nothing"
        self._patience_s = patience_s
        self._most: dict[str, int] = {}
        self._last = "the beginning"
        self._at = time.monotonic()
        self._bound: asyncio.Timeout | None = None

    @asynccontextmanager
    async def wanted(self) -> AsyncIterator[None]:
        """Raises `Unwell` where nothing new is reached for as long as the patience lasts."""
        self._at = time.monotonic()
        try:
            async with asyncio.timeout(self._patience_s) as self._bound:
                yield
        except TimeoutError as error:
            if self._bound is None or not self._bound.expired():
                raise
            raise Unwell(f"not at rest, and nothing new for {self._patience_s:g} s") from error
        finally:
            self._bound = None

    def reached(self, what: str, count: int) -> bool:
        """So many there are by now; whether that is more than ever before."""
        if count <= self._most.get(what, 0):
            return False
        self._most[what] = count
        present = time.monotonic()
        self.longest_s, self._at = max(self.longest_s, present - self._at), present
        self._last = f"{count} {what}"
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time() + self._patience_s)
        return True

    @property
    def ends_at(self) -> float | None:
        """The loop's time at which the patience is over, where any progress is wanted."""
        return None if self._bound is None else self._bound.when()

    def stand(self) -> str:
        """What was reached last and when, and what is waited for."""
        ago = time.monotonic() - self._at
        return f"no progress for {ago:.1f} s, since {self._last}; waits for {self.waits_for}"
