"""An agent's process that is started before the rest of the runner is even imported.

A runner that has just begun and is connected to already finds there what it will be asked to do: to
start an agent, mostly. What is to be started is the agent's own library to say, so that is imported
first and asked; the process then sets itself up (some 400 ms) while the runner imports what is left
(some 130 ms, asyncio most of all). When the driver comes to start its agent and asks for the very same
process, it gets this one, and else one of its own. Nothing here needs an event loop.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from typing import Any, Final, NamedTuple

from agent_runtime_sandbox import frames

_LOOK_BYTES: Final = 256 * 1024
"""What is longer is started in the usual way."""


class Asked(NamedTuple):
    """What a driver's library asks for: a command, and how it is to be started (`subprocess.Popen`)."""

    command: list[str]
    how: dict[str, Any]


class Wanted(NamedTuple):
    """An agent that is going to be asked for."""

    driver: str
    options: dict[str, Any]


class EarlyAgent:
    """A process that waits for its driver. It is given out once, or ended; any thread may do either.

    `wanted` is for whom it was started, `folders` are those that were made for it.
    """

    def __init__(self, wanted: Wanted, asked: Asked, folders: Any) -> None:
        """Start it. Raises what `subprocess.Popen` does."""
        self.wanted = wanted
        self.folders = folders
        self._asked = asked
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(asked.command, **asked.how)
        self._ending = False
        self._deciding = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether it can still be had."""
        return self._process is not None and not self._ending

    @property
    def pids(self) -> tuple[int, ...]:
        """The process, until it was given out or has ended: so long it is waited for here."""
        process = self._process
        return () if process is None else (process.pid,)

    def take(self, asked: Asked) -> subprocess.Popen[bytes] | None:
        """The process, if it is what is asked for and can still be had."""
        with self._deciding:
            if not self.waits or asked != self._asked:
                return None
            process, self._process = self._process, None
            return process

    def drop(self) -> None:
        """End it, unless somebody took it; return when it has ended. Idempotent, and blocks for a moment.

        Its pipes are not read to their ends: something that it started may hold them for ever.
        """
        with self._deciding:
            self._ending, process = True, self._process
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self._process = None


def look_who_waits(listener: socket.socket) -> tuple[socket.socket | None, Wanted | None]:
    """Accept who is connected, if anybody is; look at what was sent, and leave it there to be read."""
    listener.setblocking(False)
    try:
        connection, _ = listener.accept()
    except OSError:
        return None, None
    connection.setblocking(False)
    try:
        sent = connection.recv(_LOOK_BYTES, socket.MSG_PEEK)
        first, second = (frames.decode(line) for line in sent.split(b"\n")[:2])
    except (OSError, ValueError):
        return connection, None  # the runner finds out what is wrong
    driver, options = second.get("driver"), second.get("options")
    starts = first["k"] == "attach" and second["k"] == "start"
    if starts and isinstance(driver, str) and isinstance(options, dict):
        return connection, Wanted(driver, options)
    return connection, None
