"""Says what was decided about one session's way out: each time in the metric, and in the log.

The log is written by whoever is inside, in effect: what a host's name can hold is bounded and
escaped, and a flood of decisions is a few lines and a number. A flood of one kind hides none of
another, so refusals cannot cover what was granted. The metric counts all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter

_BURST: Final = 100
"""Lines of one kind that a session may have at once; one more for each second that passes."""
_LONGEST: Final = 260

_EGRESS: Final = Counter(
    "agent_runtime_egress_decisions", "Tunnels that sandboxes asked for, by what came of it.", ["decision"]
)

_log = structlog.get_logger("agent_runtime.gateway")


@dataclass(slots=True)
class _Lines:
    """Of one kind: how many may still be written, as of when, and how many were not."""

    left: float
    counted_at: float
    unsaid: int = 0


class Decisions:
    """Of one session; `session_id` may change where an endpoint is given to another one."""

    def __init__(self, session_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.session_id = session_id
        self._clock = clock
        self._lines: dict[str, _Lines] = {}

    def tunnel(self, decision: str, wanted: str) -> None:
        """A tunnel to `wanted` (whatever the client wrote) was granted or refused."""
        _EGRESS.labels(decision).inc()
        self._say(decision, "egress_decided", decision=decision, host=harmless(wanted))

    def refusal(self, vendor: str, status: int, why: str) -> None:
        """A request for a model's API was refused."""
        self._say("model", "model_request_refused", vendor=vendor, status=status, why=why)

    def _say(self, kind: str, event: str, **facts: object) -> None:
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
        _log.info(event, session_id=self.session_id, **facts)


def harmless(text: str) -> str:
    """Printable ASCII of bounded length; everything else is escaped."""
    return ascii(text[:_LONGEST])[1:-1]
