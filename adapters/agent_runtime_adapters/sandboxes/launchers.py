"""Processes of `launch.py`: each waits for one plan, and one may wait before there is a plan.

A launcher's own start (a fork of this process, an interpreter, its imports) is a third of a sandbox's. One
that waits has that behind it. It knows nothing of any session, and ends when this process does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from agent_runtime.tasks import Tasks
from agent_runtime_adapters.sandboxes import launch as launch_program

CALM_S: Final = 2.0
"""After a sandbox's start, before the next launcher is made ready: its agent needs the processors first."""
_BURIED_WITHIN_S: Final = 2.0


class _Launcher(NamedTuple):
    process: Process
    way: socket.socket


class Launchers:
    """Starts launchers as they are needed; from `make_ready` on has one wait. Then it must be closed."""

    def __init__(self, calm_s: float = CALM_S) -> None:
        self._calm_s = calm_s
        self._spare: _Launcher | None = None
        self._beginning = asyncio.Lock()
        self._tasks: Tasks | None = None
        self._replacement: asyncio.Task[None] | None = None
        self._closed = False

    async def hand_over(self, descriptors: Sequence[int]) -> Process:
        """Give a launcher these descriptors, the first of which reads as the plan. Raises `OSError`."""
        spare, self._spare = self._spare, None
        self._replace_later()
        if spare is not None:
            with suppress(OSError):  # somebody ended it while it waited
                return await _give(spare, descriptors)
        return await _give(await _begin(), descriptors)

    async def make_ready(self) -> None:
        """Have a launcher wait from now on. Raises `OSError`; may be called again then, and else too."""
        async with self._beginning:
            if self._closed:
                return
            if self._tasks is None:
                tasks = Tasks()
                await tasks.open()
                self._tasks = tasks
            if self._spare is None:
                self._spare = await _begin()

    async def close(self) -> None:
        """End the one that waits; from now on none does. Idempotent."""
        self._closed = True
        async with self._beginning:
            tasks, self._tasks = self._tasks, None
            if tasks is not None:
                await tasks.close()
            spare, self._spare = self._spare, None
            if spare is not None:
                spare.way.close()
                await end(spare.process)

    def _replace_later(self) -> None:
        """Each time: one that failed is made up for by the next."""
        if self._tasks is not None and (self._replacement is None or self._replacement.done()):
            self._replacement = self._tasks.spawn(self._replace())

    async def _replace(self) -> None:
        await asyncio.sleep(self._calm_s)
        await self.make_ready()


async def end(launcher: Process) -> None:
    """Kill it, unless it has ended, and bury it: one that somebody stopped does not end by itself.

    Returns after a moment also where the system holds it: then whoever reaps children buries it later.
    """
    with suppress(ProcessLookupError):
        launcher.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(_BURIED_WITHIN_S):
            await launcher.wait()


async def _begin() -> _Launcher:
    here, there = socket.socketpair()
    with there:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", launch_program.__file__, str(there.fileno())),
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                pass_fds=(there.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            here.close()
            raise
    return _Launcher(process, here)


async def _give(launcher: _Launcher, descriptors: Sequence[int]) -> Process:
    """Raises `OSError` where it is gone; then it is ended."""
    try:
        with launcher.way:
            launcher.process.send_signal(signal.SIGCONT)  # somebody may have stopped it while it waited
            socket.send_fds(launcher.way, [b"p"], list(descriptors))
    except OSError:
        await end(launcher.process)
        raise
    return launcher.process
