"""What the runner does to its own process, and to processes that the agent left behind.

Linux only where it matters; elsewhere the calls that do not exist are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOOKS: Final = 20
_LOOK_PAUSE_S: Final = 0.005
_REAP_ROUNDS: Final = 200
_REAP_PAUSE_S: Final = 0.01
_HANG_UP_ROUNDS: Final = 20
"""For a shell to write down its history, and an editor its file, before they are killed."""


def harden() -> None:
    """Close what the agent, which may run as the same user, could use to reach into this process.

    Not dumpable: no tracing, and `/proc/<pid>/fd` and `/mem` are shut. Standard output is pointed
    at standard error, so that a stray print reaches no protocol. What only this interpreter needed
    to find its packages is forgotten: the agent's own Python would find them too.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        os.environ.pop(name, None)
    os.umask(0o022)
    os.dup2(2, 1)


def children() -> set[int]:
    """Pids of this process's children, adopted ones too; empty where the system cannot tell."""
    pids: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids.update(int(pid) for pid in listing.read_text().split())
    return pids


def is_open(program: str, argument: str = "--version") -> bool:
    """Whether a process of this program would be open to others of its user; starts one to see.

    Blocks for a tenth of a second: a process is shut for an instant while it becomes the program.
    """
    null = subprocess.DEVNULL
    with subprocess.Popen([program, argument], stdin=null, stdout=null, stderr=null) as child:
        try:
            for _ in range(_LOOKS):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child.pid}/environ").read_bytes():
                        return True
                time.sleep(_LOOK_PAUSE_S)
        finally:
            child.kill()
    return False


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process (SIGSTOP, or tracing it); False where that cannot be told."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in {"T", "t"}


def reap(keep: Collection[int] = ()) -> None:
    """Take away ended children, except those that somebody else waits for."""
    for pid in children() - set(keep):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_leftovers(spared: Callable[[], Collection[int]] = tuple) -> None:
    """Kill every child and whatever is adopted from them, for two seconds at most.

    Blocks. Only for when no driver owns a process. `spared` are leaders of kernel sessions that stay.
    """
    for _ in range(_REAP_ROUNDS):
        leaders = set(spared())
        reap(leaders)
        leftovers = children() - leaders
        if leaders:
            known = _processes()
            leftovers = {pid for pid in leftovers if pid in known and known[pid].session not in leaders}
        if not leftovers:
            return
        for pid in leftovers:
            _signal(pid, signal.SIGKILL)
        time.sleep(_REAP_PAUSE_S)


def end_session(leader: int) -> None:
    """Hang up on a kernel session and on what was started in it; kill what does not go. Blocks.

    Idempotent. What is killed may be forking, so it is looked for until nothing is found.
    """
    family: dict[int, _Process] = {}
    for attempt in range(_REAP_ROUNDS):
        known = _processes()
        family = _grown(family, leader, known)
        if not family:
            return
        for pid in family:
            if attempt >= _HANG_UP_ROUNDS:
                _signal(pid, signal.SIGKILL)
            elif attempt == 0:
                _signal(pid, signal.SIGHUP)
                _signal(pid, signal.SIGCONT)
        time.sleep(_REAP_PAUSE_S)


class _Process(NamedTuple):
    """A living process; `began` tells it from another that gets its pid later."""

    parent: int
    session: int
    began: int


def _grown(family: dict[int, _Process], leader: int, known: dict[int, _Process]) -> dict[int, _Process]:
    """Those of a family that live, with the leader's session and all their descendants."""
    members = {pid for pid, each in family.items() if pid in known and known[pid].began == each.began}
    members |= {pid for pid, each in known.items() if each.session == leader}
    while more := {pid for pid, each in known.items() if each.parent in members} - members:
        members |= more
    return {pid: known[pid] for pid in members}


def _processes() -> dict[int, _Process]:
    """Every process that can be seen and is more than its exit code."""
    found: dict[int, _Process] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name in parentheses may hold anything, parentheses too.
                state, *fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if state not in {"Z", "X"}:
                    found[int(entry.name)] = _Process(int(fields[0]), int(fields[2]), int(fields[18]))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
