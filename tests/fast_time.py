"""A loop with a clock of its own: where nothing is ready, it is at once as late as the next sleeper wants.

So a story over hours takes milliseconds, and is the same each time. For stories without threads, processes
and sockets: nobody waits for those.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)
"""What `now` says when such a loop begins."""
_CLOCKS = (
    "agent_runtime.idle.now",
    "agent_runtime.takeover.now",
    "agent_runtime.testing.scripted_sandbox.now",
)


class _Selector(selectors.DefaultSelector):
    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "everybody waits, and nobody for a time"
        self.passed_s += timeout
        return []


class FastLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passing = _Selector()
        super().__init__(self._passing)

    def time(self) -> float:
        return self._passing.passed_s


def told_fast(story: Coroutine[Any, Any, None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a story; `now` follows the loop's clock where sandboxes, their ages and ends are concerned."""

    def now() -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())

    for clock in _CLOCKS:
        monkeypatch.setattr(clock, now)
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(story)
