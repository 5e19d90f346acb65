"""When to look at the workspace: soon after a hint, and now and then without one.

The operating system's notifications (watchfiles) are hints and no more: they are lost in floods
and in new directories, and a name that is no UTF-8 ends the watch. So hints only say where to look
soon, a directory that appeared is looked at twice, the whole tree is looked at slowly all the
time, and where no watch holds, only that is left, faster. Looks take a bounded share of a core.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from agent_runtime_sandbox.files import WorkspaceFiles
from agent_runtime_sandbox.manifest import WHOLE, Scope
from agent_runtime_sandbox.outbox import Outbox

COALESCE_MS: Final = 50
"""A flood of hints is one look in so long."""
WHOLE_LOOK_S: Final = 15.0
POLL_S: Final = 1.0
"""How often the whole tree is looked at where nothing can be watched."""
_STEP_MS: Final = 100
"""How often the library looks whether there is news: at 10 an idle runner took 0.4 % of a core, now 0.02."""
_AGAIN_S: Final = 0.25
_REST: Final = 4.0
_REST_MOST_S: Final = 0.5
"""Even after a long look: what is not told by then would be lost with the sandbox."""
_MANY_SCOPES: Final = 200
_WATCH_ATTEMPTS: Final = 5
_LASTING_S: Final = 5.0
"""A watch that ends sooner counts as one of the attempts."""


class Watching:
    """Asks `files` to look. `run` owns everything and returns never."""

    def __init__(self, path: Path, files: WorkspaceFiles, outbox: Outbox) -> None:
        self._path = path
        self._files = files
        self._outbox = outbox
        self._dirty: set[Scope] = {WHOLE}
        self._hinted = asyncio.Event()
        self._hinted.set()
        self._slow_look_s = WHOLE_LOOK_S

    async def run(self) -> None:
        """Take hints and look, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_hints(), name="hints")
            tasks.create_task(self._look(), name="looks")

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        took = 0.0
        while True:
            try:
                async with asyncio.timeout(max(self._slow_look_s, took * 50)):
                    await self._hinted.wait()
            except TimeoutError:
                self._dirty = {WHOLE}
            scopes, self._dirty = self._dirty, set()
            self._hinted.clear()
            began = clock()
            await self._files.look([WHOLE] if WHOLE in scopes or len(scopes) > _MANY_SCOPES else scopes)
            took = clock() - began
            await asyncio.sleep(min(took * _REST, _REST_MOST_S))

    async def _take_hints(self) -> None:
        clock = asyncio.get_running_loop().time
        failures, reason = 0, ""
        while failures < _WATCH_ATTEMPTS:
            began = clock()
            try:
                await self._watch()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            self._mark((WHOLE,))
            failures = failures + 1 if clock() - began < _LASTING_S else 1
            await asyncio.sleep(COALESCE_MS / 1000)
        self._slow_look_s = POLL_S
        self._outbox.emit("fault", code="watch_lost", message=f"files are polled now; {reason[:500]}")

    async def _watch(self) -> None:
        # Imported in a thread: the socket is to be served first.
        watchfiles = await asyncio.to_thread(importlib.import_module, "watchfiles")
        watch = watchfiles.awatch(
            self._path,
            watch_filter=self._is_of_interest,
            debounce=COALESCE_MS,
            step=_STEP_MS,
            ignore_permission_denied=True,
        )
        async with aclosing(watch) as batches:
            # The watch stands after the first step below: what came before it is found by this look.
            asyncio.get_running_loop().call_soon(self._mark, (WHOLE,))
            async for batch in batches:
                self._mark(scope for change, path in batch for scope in self._scopes(change, path))

    def _is_of_interest(self, _change: Any, path: str) -> bool:
        relative = self._relative(path)
        return relative is not None and not self._files.ignores(relative.rpartition(b"/")[0])

    def _relative(self, path: str) -> bytes | None:
        if not path.startswith(f"{self._path}/"):
            return None
        return os.fsencode(path[len(str(self._path)) + 1 :])

    def _scopes(self, _change: Any, path: str) -> list[Scope]:
        relative = self._relative(path)
        if relative is None:
            return []
        scopes = [Scope(relative.rpartition(b"/")[0], deep=False)]
        if self._files.ignores(relative):
            return scopes  # a file may well have the name of an ignored directory
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - a hint, in a hot loop
            tree = Scope(relative, deep=True)
            scopes.append(tree)
            # What was made in it before the library watched it gave no hint.
            asyncio.get_running_loop().call_later(_AGAIN_S, self._mark, (tree,))
        elif self._files.knows_directory(relative):
            scopes.append(Scope(relative, deep=True))
        return scopes

    def _mark(self, scopes: Iterable[Scope]) -> None:
        self._dirty.update(scopes)
        if self._dirty:
            self._hinted.set()
