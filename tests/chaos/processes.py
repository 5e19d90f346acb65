"""The runtime process as a story holds it: born, signalled, mourned; each life by a name of its own."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


class Life:
    """One process. `ready` gives its port, or None where it died before; `over` its exit code."""

    def __init__(self, forks: "Forks", name: str) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.pid = 0
        self.ready: asyncio.Future[int | None] = loop.create_future()
        self.over: asyncio.Future[int] = loop.create_future()
        self._forks = forks

    def send(self, number: signal.Signals) -> None:
        if not self.over.done():
            self._forks.order({"signal": self.name, "number": number})

    def hear(self, said: dict[str, Any]) -> None:
        self.pid = said.get("pid", self.pid)
        if "ready" in said and not self.ready.done():
            self.ready.set_result(said["ready"])
        if "exit" in said:
            self.over.set_result(said["exit"])
            if not self.ready.done():
                self.ready.set_result(None)


class Forks:
    """The fork server's other side."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._lives: dict[str, Life] = {}
        self._count = 0

    def born(self, name: str, told: dict[str, Any], log: Path) -> Life:
        self._count += 1
        name = f"{name} ({self._count})"  # a seed may be told several times at once
        self._lives[name] = life = Life(self, name)
        self.order({"spawn": name, "told": told, "log": str(log)})
        return life

    def order(self, order: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")

    async def listen(self) -> None:
        assert self._server.stdout is not None
        while line := await self._server.stdout.readline():
            said = json.loads(line)
            self._lives[said["name"]].hear(said)
            if "exit" in said:
                del self._lives[said["name"]]


@asynccontextmanager
async def fork_server() -> AsyncIterator[Forks]:
    """One for many stories; all that it forked is gone in the end."""
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.chaos.fork_server",
        stdin=PIPE,
        stdout=PIPE,
        cwd=CHECKOUT,
        start_new_session=True,  # a Ctrl-C is ours to hear
    )
    forks = Forks(server)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(forks.listen())
        try:
            yield forks
        finally:
            assert server.stdin is not None
            server.stdin.close()
            await server.wait()
            listening.cancel()


@asynccontextmanager
async def calm_server(data: Path, *, log_bytes: int = 8 * 1024 * 1024, **bounds: Any) -> AsyncIterator[Life]:
    """A runtime in a process of its own to which nothing happens; ended in order with all its sandboxes."""
    told = {
        "data": str(data),
        "provider": "unsafe",
        "seed": 0,
        "life": 1,
        "calmAt": 0.0,
        "rates": {"store": 0.0, "log": 0.0, "channel": 0.0},
        "logBytes": log_bytes,
        "orphanTimeout": 30.0,
        "bounds": bounds,
    }
    async with fork_server() as forks:
        life = forks.born("calm", told, data.with_suffix(".log"))
        async with asyncio.timeout(20):
            assert await life.ready is not None
        try:
            yield life
        finally:
            life.send(signal.SIGINT)
            async with asyncio.timeout(20):
                await life.over
