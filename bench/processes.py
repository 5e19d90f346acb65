"""Processes: started until they say that they are ready, pinned, and weighed from outside.

    async with process(*argv, core=SERVER_CORE) as (child, told): ...

Linux only: processor time comes from a process's own clock, memory from /proc/<pid>/smaps_rollup.
Next door `served` starts our own server in this way.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

WITHIN_S = 90.0
COMPLAINT_BYTES = 4096
SERVER_CORE, LOAD_CORE = 0, 1
"""What is measured has a core for itself, and whoever loads it another one."""
TICKS = os.sysconf("SC_CLK_TCK")
KIB = 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
_PROCESS_CLOCK = 2
"""Of the bits that make a process's clock of its number: the scheduler's count, of all its threads."""
_refused: list[str] = []


@asynccontextmanager
async def process(
    *argv: str,
    env: dict[str, str] | None = None,
    core: int | None = None,
    ends_by: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[tuple[Process, Any]]:
    """Start a program that says on its first line, in JSON, that it is ready; end it politely.

    With `core` it is pinned once it is ready. What it complained about is printed only where the
    measurement fails.
    """
    with TemporaryFile() as complaints:
        child = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=complaints, env=env)
        try:
            assert child.stdout is not None
            async with asyncio.timeout(WITHIN_S):
                line = await child.stdout.readline()
            if not line:
                raise SystemExit(f"did not start: {' '.join(argv)}")
            if core is not None:
                pin(child.pid, core)
            yield child, json.loads(line)
        except BaseException:
            complaints.seek(0)
            sys.stderr.write(complaints.read()[-COMPLAINT_BYTES:].decode(errors="replace"))
            raise
        finally:
            if child.returncode is None:
                child.send_signal(ends_by)
            async with asyncio.timeout(WITHIN_S):
                await child.wait()


def pin(pid: int, core: int) -> bool:
    """Keep a process, with the threads it has and all that it starts from now on, on one core.

    False where the system does not let us; the result then says so (`pinning`).
    """
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})
    except OSError as reason:
        _refused.append(f"core {core}: {reason.strerror}")
        return False
    return True


@contextmanager
def cores_given_back() -> Iterator[None]:
    """What of this process is pinned meanwhile may run where it could before, once that is over.

    Children inherit a pin: without this, what comes after a benchmark that pins itself has one core.
    """
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread.name), before)


def pinning() -> str:
    """Whether all pins held, in words for the result."""
    return f"refused, {', '.join(sorted(set(_refused)))}" if _refused else "as wanted"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, user and system, of all threads that it has and had."""
    return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)


def cpu_seconds_of_tree(pid: int) -> float:
    """The same with all its children, those that live and those that it has waited for (10 ms exact)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    gone = (int(fields[13]) + int(fields[14])) / TICKS
    return cpu_seconds(pid) + gone + sum(cpu_seconds_of_tree(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """Processes that this one started and that live."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


class Memory(NamedTuple):
    """Bytes. PSS shares a page among those who map it and adds up; private is free when it ends."""

    pss: int
    private: int
    rss: int

    def __add__(self, other: object) -> Memory:
        assert isinstance(other, Memory)
        return Memory(self.pss + other.pss, self.private + other.private, self.rss + other.rss)


def memory(pid: int) -> Memory:
    """Of one process. Another user's is readable by root only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = Counter({line.split(":")[0]: int(line.split()[1]) for line in lines})
    return Memory(kib["Pss"] * KIB, (kib["Private_Clean"] + kib["Private_Dirty"]) * KIB, kib["Rss"] * KIB)


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use; 25 us, where `memory` of 100 MiB takes 1.7 ms."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
