"""What the Claude agent left running in the background, as its lines tell it. Only bookkeeping.

Subagents, commands and whatever else goes on beside the turn. The driver (`claude`) needs it to
stop everything, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

_ENDED_BY_INTERRUPT: Final = frozenset({"local_agent", "local_workflow"})
"""Kinds of tasks that the agent ends itself when it is interrupted, without a word to the model."""


class BackgroundTasks:
    """Follows the agent's own list of them."""

    def __init__(self) -> None:
        self._kinds: dict[str, object] = {}
        self._changed = asyncio.Event()

    @property
    def all(self) -> list[str]:
        """The ids of all that run."""
        return list(self._kinds)

    @property
    def outliving(self) -> list[str]:
        """The ids of those that an interrupt of the agent leaves running."""
        return [task_id for task_id, kind in self._kinds.items() if kind not in _ENDED_BY_INTERRUPT]

    def heard(self, line: Mapping[str, Any]) -> None:
        """Read a native line; the agent tells the whole list whenever it changes."""
        if line.get("type") != "system" or line.get("subtype") != "background_tasks_changed":
            return
        tasks = line.get("tasks")
        listed = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
        self._kinds = {str(task["task_id"]): task.get("task_type") for task in listed if "task_id" in task}
        self._changed.set()

    async def over(self, bound_s: float) -> bool:
        """Wait until none runs, so long at most; whether that is so."""
        try:
            async with asyncio.timeout(bound_s):
                while self._kinds:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
