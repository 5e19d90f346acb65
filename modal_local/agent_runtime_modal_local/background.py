"""Who owns what goes on in the background: one task group; what fails in it harms nobody else."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Spawns into a task group that the server awaits.

    Args:
        group: entered by whoever made it.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something; what it raises is printed on stderr and goes no further."""
        return self._kept(self._group.create_task(_harmless(work)))

    def outcome(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | Exception]:
        """Run something whose result, or error, several may want to see."""
        return self._kept(self._group.create_task(_outcome(work)))

    def cancel(self) -> None:
        """Cancel all that goes on; whoever made the group awaits it."""
        for task in self._running:
            task.cancel()

    def _kept(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def _harmless(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        traceback.print_exc(file=sys.stderr)


async def _outcome(work: Coroutine[Any, Any, T]) -> T | Exception:
    try:
        return await work
    except Exception as error:
        return error
