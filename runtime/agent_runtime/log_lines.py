"""LogLines: what somebody else can have us log, kept to so many lines.

Where a line is written for each thing that a sandbox says or asks for, the sandbox writes the log, in
effect. A flood of one kind is a few lines and a number, and hides none of another kind. How a line looks
is next door, in `logs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_BURST: Final = 100
"""Lines of one kind that may come at once; one more for each second that passes."""


@dataclass(slots=True)
class _Lines:
    """Of one kind: how many may still be written, as of when, and how many were not."""

    left: float
    counted_at: float
    unsaid: int = 0


class LogLines:
    """The lines of one sandbox or session. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, _Lines] = {}

    def say(self, kind: str, tell: Callable[..., object], event: str, /, **facts: object) -> None:
        """Have `tell` (a logger's method) write a line, if there may be one more of its kind.

        `kind` is one of few, never what a stranger wrote. The first line after some that were left out says
        how many (`unsaid_before`).
        """
        now = self._clock()
        lines = self._lines.setdefault(kind, _Lines(_BURST, now))
        lines.left = min(_BURST, lines.left + now - lines.counted_at)
        lines.counted_at = now
        if lines.left < 1:
            lines.unsaid += 1
            return
        lines.left -= 1
        if lines.unsaid:
            facts["unsaid_before"] = lines.unsaid
            lines.unsaid = 0
        tell(event, **facts)
