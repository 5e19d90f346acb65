"""Says what was decided about one session's way out: each time in the metric, and in the log.

The log is written by whoever is inside, in effect: what a host's name can hold is bounded and escaped, and
a flood of refusals covers nothing of what was granted (`log_lines`). The metric counts all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Counter

from agent_runtime.log_lines import LogLines

_LONGEST: Final = 260

_EGRESS: Final = Counter(
    "agent_runtime_egress_decisions", "Tunnels that sandboxes asked for, by what came of it.", ["decision"]
)

_log = structlog.get_logger("agent_runtime.gateway")


class Decisions:
    """Of one session; `session_id` may change where an endpoint is given to another one."""

    def __init__(self, session_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.session_id = session_id
        self._lines = LogLines(clock)

    def tunnel(self, decision: str, wanted: str) -> None:
        """A tunnel to `wanted` (whatever the client wrote) was granted or refused."""
        _EGRESS.labels(decision).inc()
        self._say(decision, "egress_decided", decision=decision, host=harmless(wanted))

    def refusal(self, vendor: str, status: int, why: str) -> None:
        """A request for a model's API was refused."""
        self._say("model", "model_request_refused", vendor=vendor, status=status, why=why)

    def _say(self, kind: str, event: str, **facts: object) -> None:
        self._lines.say(kind, _log.info, event, session_id=self.session_id, **facts)


def harmless(text: str) -> str:
    """Printable ASCII of bounded length; everything else is escaped."""
    return ascii(text[:_LONGEST])[1:-1]
