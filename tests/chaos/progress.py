"""How long a story may stand still: its bound follows progress, so that a busy machine is only slow.

What counts as progress there is only so much of in a story: messages that were answered for, turns that
began and ended, blocks. One that goes round in circles makes none. Time in which we ourselves had to wait
for a processor does not count: who knows what else had to.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LOOK_S = 0.05
MOST_OF_A_LOOK_S = 2 * LOOK_S
"""What a look counts for that came later than it should."""


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
        self._still_s = 0.0
        self._bound: asyncio.Timeout | None = None

    @asynccontextmanager
    async def wanted(self) -> AsyncIterator[None]:
        """Raises `Unwell` where nothing new is reached for as long as the patience lasts."""
        self._at, self._still_s = time.monotonic(), 0.0
        try:
            async with asyncio.timeout(None) as self._bound:
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
        self._at, self._still_s = time.monotonic(), 0.0
        self._last = f"{count} {what}"
        return True

    def passed(self, seconds: float) -> None:
        """So long after the last look this one came, `LOOK_S` where the machine has time for us."""
        self._still_s += min(seconds, MOST_OF_A_LOOK_S)
        self.longest_s = max(self.longest_s, self._still_s)
        if self._still_s > self._patience_s and self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time())

    def stand(self) -> str:
        """What was reached last and when, and what is waited for."""
        ago_s = time.monotonic() - self._at
        late = f"{self._still_s:.1f} s without our own delays"
        return f"no progress for {ago_s:.1f} s ({late}), since {self._last}; waits for {self.waits_for}"
