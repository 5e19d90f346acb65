"""ScriptedSandboxes: a provider whose sandboxes are objects in this process, with faults on demand.

    async with ScriptedSandboxes(script) as sandboxes:
        ...                                     # give it to a RuntimeConfig
        sandboxes.made[-1].die()                # a sandbox dies in mid-turn
        sandboxes.before_create = fail_once     # a creation fails, or is slow, or hangs
        sandboxes.before_stop = fail_once       # so does an end; also: list, connect, snapshot
        sandboxes.made[-1].runner.before = ...  # a runner that does not answer

It isolates nothing, and keeps snapshots where it is told to offer them. Like any provider's, its sandboxes
outlive the provider's own `close`; they end with the `async with`. What happens inside is in
`scripted_runner`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.ports import ByteTaker, Capabilities, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime.tasks import Tasks
from agent_runtime.testing.scripted_runner import Script, ScriptedRunner, echo
from agent_runtime_sandbox.frames import Frame, LineSplitter, decode

_What = TypeVar("_What")
Before: TypeAlias = Callable[[_What], Awaitable[None]]
"""Awaited with what is about to be done something to: it may wait or raise."""


class ScriptedChannel:
    """Implements `ports.Channel`: lines into a sandbox's runner, bytes out of it."""

    def __init__(self, sandbox: ScriptedSandbox) -> None:
        self._sandbox = sandbox
        self._splitter = LineSplitter()
        self._outward: asyncio.Queue[bytes] = asyncio.Queue()
        self._closed = False
        self._take: ByteTaker | None = None

    @property
    def closed(self) -> bool:
        """Whether it is closed or broken."""
        return self._closed

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        """The next bytes; empty at the end."""
        if self._closed and self._outward.empty():
            return b""
        self._take = take if self._outward.empty() else None
        try:
            return await self._outward.get()
        finally:
            self._take = None

    async def send(self, data: bytes) -> None:
        """Hand lines to the runner. Raises `SandboxFault` when closed."""
        if self._closed:
            raise SandboxFault("The connection to the sandbox broke.", code="sandbox_lost")
        for line in self._splitter.feed(data):
            frame = decode(line)
            if frame["k"] == "attach":
                self._sandbox.taken_over_by(self)
                self._sandbox.runner.attach(frame["after"], self.push)
            else:
                self._sandbox.inbox.put_nowait(frame)

    async def close(self) -> None:
        """End both directions. Idempotent."""
        self.cut()

    def push(self, data: bytes) -> None:
        """Bytes on their way out; lost when nobody can take them any more."""
        if self._closed or (self._take is not None and self._take(data) is not None):
            return
        self._take = None  # nothing more passes this by
        self._outward.put_nowait(data)

    def cut(self) -> None:
        """Break the connection; what was sent before still arrives."""
        if not self._closed:
            self._closed = True
            self._outward.put_nowait(b"")


class ScriptedSandbox:
    """Implements `ports.Sandbox`. `stopped` counts how often it was told to end; `fate` is its mishap."""

    def __init__(
        self, sandbox_id: str, spec: SandboxSpec, provider: ScriptedSandboxes, script: Script, tasks: Tasks
    ) -> None:
        self.spec = spec
        self._provider = provider
        self.runner = ScriptedRunner(script, tasks.spawn)
        self.inbox: asyncio.Queue[Frame] = asyncio.Queue()
        self.stopped = 0
        self.fate: SandboxFault | None = None
        self._ref = SandboxRef(
            sandbox_id=sandbox_id, provider="scripted", isolation="none", started_at=now(), lane=spec.lane
        )
        self._alive = True
        self._channels: list[ScriptedChannel] = []
        self._attached: ScriptedChannel | None = None
        self._expires_at: datetime | None = None
        self._tasks = [tasks.spawn(self._serve()), tasks.spawn(self._end_when_orphaned())]
        if spec.needs.lifetime_s is not None:
            self._expires_at = self._ref.started_at + timedelta(seconds=spec.needs.lifetime_s)
            self._tasks.append(tasks.spawn(self._end_after(spec.needs.lifetime_s)))
        if spec.snapshot is not None:
            for path, content in provider.kept[spec.snapshot.snapshot_id].items():
                self.runner.change(path, content)  # as a watcher does that meets them for the first time

    @property
    def ref(self) -> SandboxRef:
        """How to find it again."""
        return self._ref

    @property
    def expires_at(self) -> datetime | None:
        """When it ends by itself, where its spec bounds its life."""
        return self._expires_at

    async def connect(self) -> ScriptedChannel:
        """A connection. Raises `SandboxFault` (`sandbox_lost`), and what `before_connect` raises."""
        await self._provider.before_connect(self)
        self._check_alive()
        channel = ScriptedChannel(self)
        self._channels.append(channel)
        return channel

    async def alive(self) -> bool:
        """Whether it lives."""
        return self._alive

    async def mishap(self) -> SandboxFault | None:
        """What `fate` says, once."""
        fate, self.fate = self.fate, None
        return fate

    async def assign(self, session_id: str) -> None:
        """It is this session's from now on. Raises `SandboxFault` (`sandbox_lost`)."""
        self._check_alive()
        self.spec = replace(self.spec, session_id=session_id)

    async def snapshot(self) -> SandboxSnapshot:
        """Keep the files, where that is offered. Raises `SandboxFault`, and what `before_snapshot` raises."""
        if not self._provider.snapshots:
            raise _no_snapshots()
        await self._provider.before_snapshot(self)
        self._check_alive()
        return self._provider.keep(self.runner.files)

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it; with a grace the agent's end is told. Idempotent. Raises what `before_stop` raises."""
        await self._provider.before_stop(self)
        self.stopped += 1
        if self._alive and grace_s and self.runner.started is not None:
            self.runner.end_agent("closed")
        self.die()

    def die(self) -> None:
        """End at once, as a sandbox does whose machine is gone."""
        self._alive = False
        self.runner.send = None
        self.runner.end_playing()
        for task in self._tasks:
            task.cancel()
        self.break_connections()

    def taken_over_by(self, channel: ScriptedChannel) -> None:
        """The newest attachment is the one; those that only connected stay."""
        if self._attached is not None and self._attached is not channel:
            self._attached.cut()
        self._attached = channel

    def break_connections(self) -> None:
        """Cut the connections; the sandbox lives on."""
        for channel in self._channels:
            channel.cut()
        self._channels.clear()

    def _check_alive(self) -> None:
        if not self._alive:
            raise SandboxFault("The sandbox is gone.", code="sandbox_lost")

    async def _serve(self) -> None:
        while True:
            await self.runner.perform(await self.inbox.get())

    async def _end_after(self, lifetime_s: float) -> None:
        await asyncio.sleep(lifetime_s)
        self.fate = SandboxFault("The sandbox reached the end of its lifetime.", code="sandbox_expired")
        self.die()

    async def _end_when_orphaned(self) -> None:
        loop, bound_s = asyncio.get_running_loop(), self.spec.orphan_timeout_s
        seen_at = loop.time()
        while loop.time() - seen_at < bound_s:
            await asyncio.sleep(bound_s / 10)
            self._channels = [channel for channel in self._channels if not channel.closed]
            if self._channels:
                seen_at = loop.time()
        self.die()


class ScriptedSandboxes:
    """Implements `ports.SandboxProvider`. `made` are all sandboxes that ever were, in order.

    `before_create` is awaited with each spec before a sandbox is made: it may wait or raise. So may the
    others, each with its sandbox, or the runtime's label. `kept` are the snapshots: their files by their id.
    """

    def __init__(self, script: Script = echo, *, snapshots: bool = False) -> None:
        self.script = script
        self.snapshots = snapshots
        self.made: list[ScriptedSandbox] = []
        self.kept: dict[str, dict[str, bytes]] = {}
        self.before_create: Before[SandboxSpec] = _at_once
        self.before_list: Before[str] = _at_once
        self.before_connect: Before[ScriptedSandbox] = _at_once
        self.before_snapshot: Before[ScriptedSandbox] = _at_once
        self.before_stop: Before[ScriptedSandbox] = _at_once
        self._count = itertools.count()
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
        return Capabilities(provider=self.name, available=True, isolation="none", snapshots=self.snapshots)

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        """Make a sandbox. Raises what `before_create` raises, and `SandboxFault` without its snapshot."""
        await self.before_create(spec)
        if spec.snapshot is not None and not self.snapshots:
            raise _no_snapshots()
        if spec.snapshot is not None and spec.snapshot.snapshot_id not in self.kept:
            raise SandboxFault("There is no such snapshot.", retryable=False)
        sandbox = ScriptedSandbox(f"sb-{next(self._count)}", spec, self, self.script, self._tasks)
        self.made.append(sandbox)
        return sandbox

    async def attach(
        self,
        ref: SandboxRef,
        *,
        gateway_socket: Path | None = None,  # noqa: ARG002 - nothing is asked
    ) -> ScriptedSandbox:
        """Find a living sandbox. Raises `SandboxFault` (`sandbox_lost`, or the fate of a dead one)."""
        for sandbox in self.made:
            if sandbox.ref.sandbox_id == ref.sandbox_id:
                if await sandbox.alive():
                    return sandbox
                if (fate := await sandbox.mishap()) is not None:
                    raise fate
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """The living ones with this label. Raises what `before_list` raises."""
        await self.before_list(runtime_id)
        return tuple(each.ref for each in self.living() if each.spec.runtime_id == runtime_id)

    def keep(self, files: dict[str, bytes]) -> SandboxSnapshot:
        """A new snapshot of these files."""
        name = f"sn-{next(self._count)}"
        self.kept[name] = dict(files)
        return SandboxSnapshot(snapshot_id=name, provider=self.name, taken_at=now())

    async def forget(self, snapshot: SandboxSnapshot) -> None:
        """Remove a snapshot. Idempotent. Raises `SandboxFault` where none are offered."""
        if not self.snapshots:
            raise _no_snapshots()
        self.kept.pop(snapshot.snapshot_id, None)

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


async def _at_once(_: object) -> None:
    """Nothing is in the way."""
