"""A runtime in a process of its own that kills itself at one step of what it does: every step has a number.

A step is something that the process does to the world (a file, a folder, a process, a signal, a socket;
Python's audit events tell of each just before it happens), or, in the other way of counting, a turn of its
event loop: a place where an `await` may come back. The process is forked, so what is counted begins with
everything imported.
"""

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_DEEDS = frozenset(
    {
        "fcntl.flock",
        "os.chmod",
        "os.chown",
        "os.fork",
        "os.kill",
        "os.link",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.truncate",
        "signal.pidfd_send_signal",
        "socket.bind",
        "socket.connect",
        "sqlite3.connect",
        "subprocess.Popen",
    }
)

Life = Callable[["Steps"], Coroutine[Any, Any, None]]


class Steps:
    """Counts from `begin` on, and kills the process at step `last`. `taken` is what was counted."""

    def __init__(self, last: int | None) -> None:
        self.taken: list[str] = []
        self._last = last
        self._counts = False

    def begin(self) -> None:
        """What comes now counts."""
        self._counts = True

    def end(self) -> None:
        """What comes now does not count any more."""
        self._counts = False

    def step(self, name: str) -> None:
        """Count one, or die."""
        if not self._counts:
            return
        if len(self.taken) == self._last:
            self._counts = False  # what is about to happen is an event too
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken.append(name)

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit event."""
        if not self._counts:
            return
        if event in _DEEDS or (event == "open" and isinstance(given[2], int) and given[2] & _WRITES):
            self.step(event)


class CountingLoop(asyncio.SelectorEventLoop):
    """Each of its turns is a step."""

    steps: Steps

    def _run_once(self) -> None:
        self.steps.step("turn of the loop")
        super()._run_once()  # type: ignore[misc]


def lived(life: Life, log: Path, *, dies_at: int | None, counts_turns: bool = False) -> list[str] | None:
    """Live in a child of this process until the end, or until it kills itself.

    Returns the steps that it took, None where it was killed at one. Anything else fails.
    """
    hears, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hears)
        _be_born(life, log, Steps(dies_at), says, counts_turns=counts_turns)
    os.close(says)
    with os.fdopen(hears) as heard:
        told = heard.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return None
    assert code == 0, log.read_text()
    return told.splitlines()


def _be_born(life: Life, log: Path, steps: Steps, says: int, *, counts_turns: bool) -> None:
    """In the child; never returns."""
    code = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(written, standard)
        loop = CountingLoop() if counts_turns else asyncio.SelectorEventLoop()
        if isinstance(loop, CountingLoop):
            loop.steps = steps
        else:
            sys.addaudithook(steps.heard)
        asyncio.set_event_loop(loop)
        loop.run_until_complete(life(steps))
        steps.end()
        os.write(says, "\n".join(steps.taken).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
