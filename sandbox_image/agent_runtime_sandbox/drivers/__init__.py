"""One module per agent kind: start the agent, hand on its native lines untouched.

Here is what the runner asks of a driver. A driver lives for one agent process; it knows nothing of
frames, offsets or connections, and speaks through its `Output`. What is here is imported before an agent
can be started, hence no dataclasses: they take 10 ms more, most of it `inspect`.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, cast

from agent_runtime_sandbox.drivers.early import EarlyAgent, look_who_waits

Entries = Mapping[str, Sequence[dict[str, Any]]]
"""Transcript entries by key: `main`, or `subagents/agent-x`."""

_DRIVERS: Final = {
    "claude": ("agent_runtime_sandbox.drivers.claude", "ClaudeDriver"),
    "scripted": ("agent_runtime_sandbox.drivers.scripted", "ScriptedDriver"),
}


_EARLY: Final = {"claude": "agent_runtime_sandbox.drivers.claude_early"}
"""Where the drivers are that can start their agent early: `begin_early` there, which imports no asyncio."""


class DriverError(Exception):
    """The agent refused or could not. `code` is stable; the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentEnd(NamedTuple):
    """How an agent's process ended: its exit code where known, and what it said last."""

    code: int | None
    message: str | None = None


class Places(NamedTuple):
    """Where an agent works: absolute paths. `gateway` is the unix socket to its model.

    `binaries`: by the driver's name, what to start instead of the agent's own binary: a copy of it that
    can be run and not read, so that the kernel shuts its process to the tools it starts.
    `env`: variables for the agent and its tools, secrets among them; the runner itself has them not.
    `user`: every process that a driver starts must be started as this one (`identity`); None: as we are.
    `early`: an agent that was started before there was a driver for it; of no use once it no longer waits.
    """

    workspace: Path
    home: Path
    gateway: Path | None
    binaries: Mapping[str, Path] = MappingProxyType({})
    env: Mapping[str, str] = MappingProxyType({})
    user: str | None = None
    early: EarlyAgent | None = None

    def __repr__(self) -> str:
        """Without the variables: secrets are among them."""
        return f"Places(workspace={self.workspace!r}, user={self.user!r})"


class Output(Protocol):
    """Where a driver puts what the agent says."""

    async def line(self, line: dict[str, Any]) -> None:
        """One native line; waits while nobody takes them away."""

    async def lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Some that came at once, in order; no more than a pipe holds."""

    def take(self, lines: Sequence[dict[str, Any]]) -> bool:
        """The same at once; False where one has to wait, and nothing is taken."""
        ...

    def transcript(self, key: str, entries: Sequence[dict[str, Any]]) -> None:
        """Entries of the agent's own transcript, in order."""

    def stderr(self, text: str) -> None:
        """A line of complaint; bounded by the receiver."""


class Driver(Protocol):
    """One agent process, from `start` to the return of `run`."""

    async def start(self, options: Mapping[str, Any], transcript: Entries) -> dict[str, Any]:
        """Start the process; return facts about it. Raises `DriverError`; then nothing is left."""
        ...

    async def run(self) -> AgentEnd:
        """Hand on lines until the process is over and everything of it is cleaned up. Never raises."""
        ...

    async def message(self, uuid: str, content: str | list[Any]) -> None:
        """Give the agent one user message. Raises `DriverError`."""

    async def interrupt(self) -> None:
        """Stop what runs; the agent stays. Bounded. Raises `DriverError`."""

    async def configure(self, options: Mapping[str, Any]) -> None:
        """Change options of the running agent. Raises `DriverError`."""

    async def close(self) -> None:
        """Ask the agent to end; `run` returns soon after. Bounded."""

    def kill(self) -> None:
        """End it at once; `run` returns soon after."""

    def pids(self) -> Collection[int]:
        """Processes that the driver itself waits for."""
        ...


class DriverClass(Protocol):
    """How a driver is made."""

    def __call__(self, output: Output, places: Places) -> Driver:
        """A driver that has not been started."""
        ...


def load(name: str) -> DriverClass:
    """Import a driver; slow the first time. Raises `DriverError` for an unknown name."""
    if name not in _DRIVERS:
        raise DriverError("unknown_driver", f"there is no driver {name!r}")
    module, attribute = _DRIVERS[name]
    return cast("DriverClass", getattr(importlib.import_module(module), attribute))


def begin_early(
    preload: str, listener: socket.socket, places: Places
) -> tuple[socket.socket | None, EarlyAgent | None]:
    """Start the agent that somebody who is connected already is about to ask for (`early`).

    Returns the connection, still unread, if there is one; and the agent, if it can be started like this.
    """
    connection, wanted = look_who_waits(listener) if preload in _EARLY else (None, None)
    if wanted is None or wanted.driver != preload:
        return connection, None
    begin = importlib.import_module(_EARLY[preload]).begin_early
    return connection, begin(wanted, places)
