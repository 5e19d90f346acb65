"""What carries lines from agents to viewers, ready for turns: ours, and the peers of `pipe_peers`.

    async with carrier(OURS, sessions=50) as line_carrier:
        sample = await line_carrier.turn(lines_per_second=5000, seconds=2)

The server has a core for itself; agents, runners and viewers share the other one.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from agent_runtime_adapters.sandboxes.registry import Registry
from line_viewers import WITHIN_S, Received, Viewer, viewer
from processes import LOAD_CORE, SERVER_CORE, cpu_seconds, pin, process, resident

OURS, MINIMAL, NAIVE = "ours", "minimal", "naive"
HERE = Path(__file__).parent
MOST_PROCESSES = 10
"""More runners than these are in one process: side by side they would fill the core of the load."""
AT_ONCE = 25
"""Sessions that are made and joined side by side."""
_LOOK_S = 0.1
_RESTS_S, _RUNNER_RESTS_S = 0.01, 0.0001
"""Of the processors within one look: what an idle server may take, and each idle runner (some 0.00004)."""


@dataclass(frozen=True)
class Sample:
    """One turn of all agents: what its deltas took, not its beginning and end. Microseconds, bytes.

    `load_us`: of agents and viewers, which share their core with the runners. `late_thirds_us`: medians of
    the lines written in the first, second and last third of the time: a queue that grows shows there.
    `came_in_time`: lines that had come when the last one was written.
    """

    written: int
    lines_per_second: float
    server_us: float
    runners_us: float
    load_us: float
    late_us: list[int]
    late_thirds_us: tuple[float, ...]
    came_in_time: int
    peak_bytes: int
    least: int
    most: int
    frames: int

    def lateness(self, share: float) -> float:
        """Microseconds from a line's writing to its arrival that so many of all lines keep to."""
        return self.late_us[min(len(self.late_us) - 1, int(len(self.late_us) * share))]

    @property
    def server_share(self) -> float:
        """What the server took of its core while lines came."""
        return self.server_us * self.lines_per_second / 1e6

    @property
    def load_share(self) -> float:
        """What everybody else took of the other core meanwhile."""
        return (self.runners_us + self.load_us) * self.lines_per_second / 1e6

    @property
    def fairness(self) -> float:
        """Lines of the session that got fewest while all of them wrote, of those of the one that got most."""
        return self.least / self.most if self.most else 0.0


@dataclass(frozen=True)
class Carrier:
    """A server with agents and viewers. `runners`: processes with runners, where there are any."""

    kind: str
    server: int
    runners: tuple[int, ...]
    agents: Process
    pipes: tuple[str, ...]
    viewers: tuple[Viewer, ...]
    sessions: tuple[str, ...]

    async def turn(self, lines_per_second: float, seconds: float, *, from_journals: bool = False) -> Sample:
        """One turn of every agent; `from_journals`: the server is stopped until all is written."""
        for each in self.viewers:
            each.begin()
        await self._send()
        await self._ask({"lines_per_second": lines_per_second, "seconds": seconds})
        await self._at_rest()
        before = self._spent()
        async with asyncio.TaskGroup() as tasks:
            peak = tasks.create_task(self._peak())
            told = await self._written(from_journals=from_journals)
            await self._at_rest()
            spent = [after - then for after, then in zip(self._spent(), before, strict=True)]
            self._say("end")
            received = [await each.end() for each in self.viewers]
            peak.cancel()
        return judged(told, received, spent, self._peak_bytes[0])

    def _spent(self) -> tuple[float, float, float]:
        """Processor time of the server, of all runners, and of agents and viewers."""
        load = cpu_seconds(self.agents.pid) + cpu_seconds(os.getpid())
        return cpu_seconds(self.server), sum(map(cpu_seconds, self.runners)), load

    async def _written(self, *, from_journals: bool) -> dict[str, Any]:
        """Have the agents write; what they wrote. `from_journals`: with the server stopped meanwhile."""
        if not from_journals:
            return await self._ask("go")
        os.kill(self.server, signal.SIGSTOP)
        try:
            told = await self._ask("go")
            await self._at_rest()
        finally:
            os.kill(self.server, signal.SIGCONT)
        return told | {"began": time.monotonic(), "seconds": 1.0}

    @property
    def _peak_bytes(self) -> list[int]:
        return _PEAKS.setdefault(self.server, [0])

    async def _peak(self) -> None:
        """How much memory the server has at most, as often as one may look."""
        self._peak_bytes[0] = 0
        while True:
            self._peak_bytes[0] = max(self._peak_bytes[0], resident(self.server))
            await asyncio.sleep(_LOOK_S)

    async def _send(self) -> None:
        """The message that has a session's agent follow its pipe."""
        if self.kind != OURS:
            return
        for each, session_id, pipe in zip(self.viewers, self.sessions, self.pipes, strict=True):
            message = {"sessionId": session_id, "content": f"follow {pipe}", "messageId": str(uuid.uuid4())}
            ack = await each.call("session:send", message)
            if not ack["ok"]:
                raise SystemExit(f"a message was refused: {ack}")

    async def _ask(self, order: Any) -> dict[str, Any]:
        """Give the agents an order; what they say when they have done it."""
        assert self.agents.stdout is not None
        self._say(order)
        told: dict[str, Any] = json.loads(await self.agents.stdout.readline())
        return told

    def _say(self, order: Any) -> None:
        assert self.agents.stdin is not None
        self.agents.stdin.write(json.dumps(order).encode() + b"\n")

    async def _at_rest(self) -> None:
        """Until neither the server nor a runner has anything to do but what they do when idle."""
        idle_s = _RESTS_S + _RUNNER_RESTS_S * len(self.sessions)
        before = -1.0
        async with asyncio.timeout(WITHIN_S):
            while (spent := sum(map(cpu_seconds, (self.server, *self.runners)))) > before + idle_s:
                before = spent
                await asyncio.sleep(_LOOK_S)


_PEAKS: dict[int, list[int]] = {}


def judged(told: dict[str, Any], received: list[Received], spent: list[float], peak: int) -> Sample:
    """Every line must have come, once and in its place; then what it took."""
    written, last, in_time = sum(told["written"]), 0, []
    late: list[tuple[int, int]] = []
    until = (told["began"] + told["seconds"]) * 1e9
    for number, (said, each) in enumerate(zip(told["written"], received, strict=True)):
        deltas = each.deltas()
        if [n for n, _, _ in deltas] != list(range(said)):
            raise SystemExit(f"session {number} got {len(deltas)} of {said} lines, or in another order")
        late += [(arrived // 1000 - lateness, lateness) for _, lateness, arrived in deltas]
        last = max(last, deltas[-1][2] if deltas else 0)
        in_time.append(sum(arrived <= until for _, _, arrived in deltas))
    server_us, runners_us, load_us = (seconds * 1e6 / max(1, written) for seconds in spent)
    return Sample(
        written=written,
        lines_per_second=written / max(1e-9, last / 1e9 - told["began"]),
        server_us=server_us,
        runners_us=runners_us,
        load_us=load_us,
        late_us=sorted(lateness for _, lateness in late),
        late_thirds_us=_by_thirds(late),
        came_in_time=sum(in_time),
        peak_bytes=peak,
        least=min(in_time),
        most=max(in_time),
        frames=sum(len(each.frames) for each in received),
    )


def _by_thirds(late: list[tuple[int, int]]) -> tuple[float, ...]:
    """The median lateness of each third of the lines, in the order of their writing."""
    ordered = [lateness for _, lateness in sorted(late)]
    third = max(1, len(ordered) // 3)
    return tuple(median(ordered[first : first + third] or [0]) for first in (0, third, 2 * third))


@asynccontextmanager
async def carrier(kind: str, sessions: int) -> AsyncIterator[Carrier]:
    """Everything that carries lines of so many sessions, started and joined."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="ar-bench-", ignore_cleanup_errors=True))
        pipes = tuple(str(Path(folder) / f"agent-{number}") for number in range(sessions))
        for pipe in pipes:
            os.mkfifo(pipe)
        agents = await stack.enter_async_context(talking("streaming_agents.py", *pipes))
        if kind == OURS:
            yield await _ours(stack, Path(folder), agents, pipes)
        else:
            yield await _peer(stack, kind, agents, pipes)


async def _ours(stack: AsyncExitStack, folder: Path, agents: Process, pipes: tuple[str, ...]) -> Carrier:
    count, together = len(pipes), len(pipes) > MOST_PROCESSES
    runners: tuple[int, ...] = ()
    if together:
        many = (sys.executable, str(HERE / "many_runners.py"), str(folder), str(count))
        host, _ = await stack.enter_async_context(process(*many, core=LOAD_CORE))
        runners = (host.pid,)
    options = ("--runners", str(count if together else 0))
    server, viewers, ids = await runtime(stack, folder, count, *options)
    await Carrier(OURS, server, runners, agents, pipes, viewers, ids).turn(50, 0.2)  # agents are started
    if not together:
        runners = tuple(r.keeper.pid for r in Registry(folder / "data" / "sandboxes").all() if r.keeper)
        for pid in runners:
            pin(pid, LOAD_CORE)
    return Carrier(OURS, server, runners, agents, pipes, viewers, ids)


async def runtime(
    stack: AsyncExitStack, folder: Path, count: int, *options: str
) -> tuple[int, tuple[Viewer, ...], tuple[str, ...]]:
    """A served runtime with so many sessions: its process, their viewers and ids."""
    argv = (sys.executable, str(HERE / "pipeline_server.py"), str(folder), *options)
    server, told = await stack.enter_async_context(process(*argv, core=SERVER_CORE))
    socket = f"ws://127.0.0.1:{told['port']}/socket.io/?EIO=4&transport=websocket"
    headers = {"Authorization": f"Bearer {told['token']}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{told['port']}", headers=headers) as http:

        async def session() -> tuple[str, Viewer]:
            async with http.post("/api/sessions", json={"agentProfileRef": "default"}) as response:
                response.raise_for_status()
                session_id = str((await response.json())["sessionId"])
            join = ("session:join", {"sessionId": session_id})
            return session_id, await viewer(socket, {"token": told["token"]}, join)

        made: list[tuple[str, Viewer]] = []
        while len(made) < count:
            made += await asyncio.gather(*(session() for _ in range(min(AT_ONCE, count - len(made)))))
    for _, each in made:
        stack.callback(each.close)
    ids, viewers = zip(*made, strict=True)
    return server.pid, viewers, ids


async def _peer(stack: AsyncExitStack, kind: str, agents: Process, pipes: tuple[str, ...]) -> Carrier:
    argv = (sys.executable, str(HERE / "pipe_peers.py"), kind, *pipes)
    server, told = await stack.enter_async_context(process(*argv, core=SERVER_CORE))
    address = f"ws://127.0.0.1:{told['port']}"
    viewers = []
    for number in range(len(pipes)):
        if kind == MINIMAL:
            viewers.append(await viewer(f"{address}/{number}"))
        else:
            url = f"{address}/socket.io/?EIO=4&transport=websocket"
            viewers.append(await viewer(url, {}, ("join", str(number))))
        stack.callback(viewers[-1].close)
    return Carrier(kind, server.pid, (), agents, pipes, tuple(viewers), ())


@asynccontextmanager
async def talking(program: str, *arguments: str) -> AsyncIterator[Process]:
    """The process that speaks for all agents: `streaming_agents` or `frame_source`."""
    agents = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / program), *arguments, stdin=PIPE, stdout=PIPE
    )
    try:
        assert agents.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            if not await agents.stdout.readline():
                raise SystemExit(f"did not start: {program}")
        pin(agents.pid, LOAD_CORE)
        yield agents
    finally:
        if agents.returncode is None:
            agents.kill()
        await agents.wait()
