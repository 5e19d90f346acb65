"""Processes of this machine, named so that a recycled pid is never taken for the one that was meant.

A mark is a pid together with the moment the process began, in clock ticks since the machine
started; `boot_id` tells one start of the machine from the next. Signals go through a pidfd. Which
processes belong to a sandbox is not known here: see `records`, and `unsafe_subprocess` for trees.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from agent_runtime.frozen import Frozen
from agent_runtime_adapters.sandboxes.descriptors import readable

PROC = Path("/proc")


class ProcessMark(Frozen):
    """One process, for as long as this start of the machine lasts. All methods may raise `OSError`."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Mark a process that runs now; None where there is none."""
        fields = _stat(pid)
        return None if fields is None else cls(pid=pid, started=_started(fields))

    def running(self) -> bool:
        """Whether this very process still runs. A zombie does not run."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and _started(fields) == self.started

    def kill(self) -> None:
        """End it with SIGKILL. A process that has ended already, or another with its pid, is left alone."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end with SIGTERM, with the same care."""
        self._signal(signal.SIGTERM)

    async def halt(self) -> None:
        """Stop it in its tracks; from then on it has no new children. The caller bounds the wait."""
        self._signal(signal.SIGSTOP)
        while (fields := _stat(self.pid)) is not None and self.running() and fields[0] not in "tT":  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # nothing tells of it

    def children(self) -> list[ProcessMark]:
        """Those that it started and that run now; none where it does not run itself."""
        pids = [pid for pid in all_pids() if (found := parent_and_session(pid)) and found[0] == self.pid]
        marks = [mark for pid in pids if (mark := ProcessMark.of(pid)) is not None]
        return [mark for mark in marks if mark.running()] if self.running() else []

    async def gone(self) -> None:
        """Wait until it has ended, and reap it if it became ours. The caller bounds the wait."""
        handle = self._open()
        if handle is not None:
            try:
                await readable(handle)
            finally:
                os.close(handle)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait

    def _signal(self, number: signal.Signals) -> None:
        handle = self._open()
        if handle is None:
            return
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)

    def _open(self) -> int | None:
        """A pidfd. The check comes after the opening: from then on the pid cannot change hands."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.running():
            return handle
        os.close(handle)
        return None


@cache
def boot_id() -> str:
    """What tells this start of the machine from all others."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def all_pids() -> Iterator[int]:
    """Every process that can be seen from here."""
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            yield int(entry.name)


def parent_and_session(pid: int) -> tuple[int, int] | None:
    """Pid of the parent and id of the (kernel) session of a process; None where there is none."""
    fields = _stat(pid)
    return None if fields is None else (int(fields[1]), int(fields[3]))


def environment(pid: int) -> list[bytes]:
    """The environment a process began with; empty where it may not be read."""
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def owners() -> set[int]:
    """The uids that have at least one process."""
    found = set()
    for pid in all_pids():
        with suppress(OSError):
            found.add((PROC / str(pid)).stat().st_uid)
    return found


def owned_by(uid: int) -> set[int]:
    """The processes of a uid."""
    found = set()
    for pid in all_pids():
        with suppress(OSError):
            if (PROC / str(pid)).stat().st_uid == uid:
                found.add(pid)
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name (which may hold blanks and brackets)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # any other error says nothing of the process
        return None
    return text.rpartition(")")[2].split()


def _started(fields: list[str]) -> int:
    return int(fields[19])
