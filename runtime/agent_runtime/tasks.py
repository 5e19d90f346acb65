"""Tasks: the owner of everything that a part with a beginning and an end does in the background.

One task group lives from `open` to `close`. What is spawned into it is cancelled
and awaited at the end; an exception in one task is logged and harms no other. It knows nothing of
sessions or sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

_log = structlog.get_logger(__name__)


T = TypeVar("T")


async def unhindered(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end even when cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()


class Tasks:
    """A task group whose beginning and end are two calls, as aiohttp's lifespan wants them."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._root: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Begin. Until then nothing can be spawned."""
        opened = asyncio.Event()
        # The one task without a group: `close` awaits it, and it is the group's only home.
        self._root = asyncio.get_running_loop().create_task(self._live(opened))
        await opened.wait()

    async def close(self) -> None:
        """Cancel what still runs and wait for it. Idempotent."""
        root, self._root = self._root, None
        if root is None:
            return
        self._ended.set()
        await root

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in the background; what it raises is logged here and goes no further."""
        if self._group is None:
            work.close()
            raise RuntimeError("not open")
        task = self._group.create_task(self._contained(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began, nobody awaited it
        return task

    async def _live(self, opened: asyncio.Event) -> None:
        self._ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            self._group = group
            opened.set()
            await self._ended.wait()
            while self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.wait(self._running)
            self._group = None

    @staticmethod
    async def _contained(work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except Exception:
            _log.exception("background_task_failed")
