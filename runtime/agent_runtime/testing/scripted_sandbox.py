"""ScriptedSandboxes: a provider whose sandboxes are objects in this process, with faults on demand.

    async with ScriptedSandboxes(script) as sandboxes:
        ...                                     # give it to a RuntimeConfig
        sandboxes.made[-1].die()                # a sandbox dies in mid-turn
        sandboxes.before_create = fail_once     # a creation fails, or is slow, or hangs
        sandboxes.made[-1].runner.before = ...  # a runner that does not answer

It isolates nothing. Like any provider's, its sandboxes outlive the provider's own `close`; they end
with the `async with`. What happens inside is in `scripted_runner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime.tasks import Tasks
from agent_runtime.testing.scripted_runner import Script, ScriptedRunner, echo
from agent_runtime_sandbox.frames import Frame, LineSplitter, decode


class ScriptedChannel:
    """Implements `ports.Channel`: lines into a sandbox's runner, bytes out of it."""

    def __init__(self, sandbox: ScriptedSandbox) -> None:
        self._sandbox = sandbox
        self._splitter = LineSplitter()
        self._outward: asyncio.Queue[bytes] = asyncio.Queue()
        self._closed = False

    async def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        if self._closed and self._outward.empty():
            return b""
        return await self._outward.get()

    async def send(self, data: bytes) -> None:
        """Hand lines to the runner. Raises `SandboxFault` when closed."""
        if self._closed:
            raise SandboxFault("The connection to the sandbox broke.", code="sandbox_lost")
        for line in self._splitter.feed(data):
            frame = decode(line)
            if frame["k"] == "attach":
                self._sandbox.runner.attach(frame["after"], self.push)
            else:
                self._sandbox.inbox.put_nowait(frame)

    async def close(self) -> None:
        """End both directions. Idempotent."""
        self.cut()

    def push(self, data: bytes) -> None:
        """Bytes on their way out; lost when nobody can take them any more."""
        if not self._closed:
            self._outward.put_nowait(data)

    def cut(self) -> None:
        """Break the connection; what was sent before still arrives."""
        if not self._closed:
            self._closed = True
            self._outward.put_nowait(b"")


class ScriptedSandbox:
    """Implements `ports.Sandbox`. `stopped` counts how often it was told to end."""

    def __init__(self, sandbox_id: str, spec: SandboxSpec, script: Script, tasks: Tasks) -> None:
        self.spec = spec
        self.runner = ScriptedRunner(script, tasks.spawn)
        self.inbox: asyncio.Queue[Frame] = asyncio.Queue()
        self.stopped = 0
        self._ref = SandboxRef(
            sandbox_id=sandbox_id, provider="scripted", isolation="none", started_at=now(), lane=spec.lane
        )
        self._alive = True
        self._channels: list[ScriptedChannel] = []
        self._serving = tasks.spawn(self._serve())

    @property
    def ref(self) -> SandboxRef:
        """How to find it again."""
        return self._ref

    @property
    def expires_at(self) -> datetime | None:
        """It does not end by itself."""
        return None

    async def connect(self) -> ScriptedChannel:
        """A connection. Raises `SandboxFault` (`sandbox_lost`)."""
        if not self._alive:
            raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
        channel = ScriptedChannel(self)
        self._channels.append(channel)
        return channel

    async def alive(self) -> bool:
        """Whether it lives."""
        return self._alive

    async def assign(self, session_id: str) -> None:
        """It is this session's from now on."""
        self.spec = replace(self.spec, session_id=session_id)

    async def snapshot(self) -> SandboxSnapshot:
        """There are none. Raises `SandboxFault`."""
        raise _no_snapshots()

    async def stop(self, grace_s: float = 0.0) -> None:  # noqa: ARG002 - there is nothing to wait for
        """End it. Idempotent."""
        self.stopped += 1
        self.die()

    def die(self) -> None:
        """End at once, as a sandbox does whose machine is gone."""
        self._alive = False
        self.runner.send = None
        self.runner.end_playing()
        self._serving.cancel()
        self.break_connections()

    def break_connections(self) -> None:
        """Cut the connections; the sandbox lives on."""
        for channel in self._channels:
            channel.cut()
        self._channels.clear()

    async def _serve(self) -> None:
        while True:
            await self.runner.perform(await self.inbox.get())


class ScriptedSandboxes:
    """Implements `ports.SandboxProvider`. `made` are all sandboxes that ever were, in order.

    `before_create` is awaited with each spec before a sandbox is made: it may wait or raise.
    """

    def __init__(self, script: Script = echo) -> None:
        self.script = script
        self.made: list[ScriptedSandbox] = []
        self.before_create: Callable[[SandboxSpec], Awaitable[None]] = _at_once
        self._tasks = Tasks()

    @property
    def name(self) -> str:
        """`scripted`."""
        return "scripted"

    def living(self) -> list[ScriptedSandbox]:
        """The sandboxes that have not ended."""
        return [sandbox for sandbox in self.made if sandbox._alive]  # noqa: SLF001  our own

    async def probe(self) -> Capabilities:
        """It can always be had, and isolates nothing."""
        return Capabilities(provider=self.name, available=True, isolation="none")

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        """Make a sandbox. Raises what `before_create` raises."""
        await self.before_create(spec)
        sandbox = ScriptedSandbox(f"sb-{len(self.made)}", spec, self.script, self._tasks)
        self.made.append(sandbox)
        return sandbox

    async def attach(
        self,
        ref: SandboxRef,
        *,
        gateway_socket: Path | None = None,  # noqa: ARG002 - nothing is asked
    ) -> ScriptedSandbox:
        """Find a living sandbox. Raises `SandboxFault` (`sandbox_lost`)."""
        for sandbox in self.living():
            if sandbox.ref.sandbox_id == ref.sandbox_id:
                return sandbox
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """The living ones with this label."""
        return tuple(each.ref for each in self.living() if each.spec.runtime_id == runtime_id)

    async def forget(self, snapshot: SandboxSnapshot) -> None:  # noqa: ARG002
        """There are none. Raises `SandboxFault`."""
        raise _no_snapshots()

    async def close(self) -> None:
        """Sandboxes go on."""

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._tasks.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all sandboxes."""
        for sandbox in self.made:
            sandbox.die()
        await self._tasks.close()


def _no_snapshots() -> SandboxFault:
    return SandboxFault("A scripted sandbox has no files to keep.", code="unsupported", retryable=False)


async def _at_once(_: SandboxSpec) -> None:
    """Nothing is in the way."""
