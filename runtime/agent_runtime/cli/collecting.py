"""Collecting: when the garbage collector looks at everything that is there.

By itself Python looks whenever a quarter of all objects is new. A thousand sessions at work are a million
objects: each look stops the loop for half a second and finds nothing, because events and blocks have no
cycles. Only sessions and connections that end leave some. So young objects are looked at as ever, and
everything when the loop has time, or when as much was made as was there. `serve` runs it; an application
that mounts a runtime into a process of its own keeps its own collector.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agent_runtime.tasks import Tasks

_YOUNG: Final = 2_000
"""New objects until the next look at them; Python's own 700 took a fifth of a loop busy with events."""
_YOUNG_LOOKS: Final = 10
"""Of these until the next look at what was left by them."""
_NEVER: Final = 1_000_000_000
_LOOK_S: Final = 1.0
FEWEST: Final = 5 * _YOUNG * _YOUNG_LOOKS
"""New objects that are worth a look at everything, where there are few."""
CALM: Final = 0.25
"""The share of one core up to which the loop has time for a look."""


@asynccontextmanager
async def sparing_the_loop() -> AsyncIterator[None]:
    """Collect in this way while it lasts. What was imported until now is never looked at again (80 ms).

    To be entered before there are sessions: those would never be freed.
    """
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _YOUNG_LOOKS, _NEVER)
    tasks = Tasks()
    await tasks.open()
    tasks.spawn(_look_now_and_then())
    try:
        yield
    finally:
        await tasks.close()
        gc.set_threshold(*before)


def is_due(*, made: int, there: int, busy: float) -> bool:
    """Whether to look at everything.

    Args:
        made: objects since the last look, less those that went by themselves; about (a sixth more, at most).
        there: objects after it.
        busy: the share of one core that the loop takes.
    """
    return made >= max(FEWEST, there // 4 if busy < CALM else there)


async def _look_now_and_then() -> None:
    there, looked, spent = 0, time.monotonic(), time.thread_time()
    while True:
        await asyncio.sleep(_LOOK_S)
        (since, spent_then), (looked, spent) = (looked, spent), (time.monotonic(), time.thread_time())
        made = gc.get_count()[2] * _YOUNG * _YOUNG_LOOKS
        if is_due(made=made, there=there, busy=(spent - spent_then) / (looked - since)):
            gc.collect()
            there = len(gc.get_objects())
