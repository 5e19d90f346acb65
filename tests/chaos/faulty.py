"""The seams inside of the runtime's process, each with dice of its own: store, log, channels to sandboxes.

Every wrapper does what the real thing may do on a bad day and no more; after `calm_at` (seconds of the
monotonic clock, which all processes of a machine share) nothing goes wrong any more.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agent_runtime.errors import PersistenceFault, SandboxFault
from agent_runtime.events import Event, LogEntry
from agent_runtime.ports import ByteTaker, Channel, Sandbox, SandboxProvider, SandboxSpec
from agent_runtime.records import SandboxRef
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_sandbox.frames import encode

NEVER_BROKEN = {"open", "close"}


class Dice:
    """Whether something goes wrong now, and how. One stream per seam and life of a process."""

    def __init__(self, seam: str, rate: float, calm_at: float) -> None:
        self.random = random.Random(seam)
        self._rate = rate
        self._calm_at = calm_at

    @property
    def calm(self) -> bool:
        return time.monotonic() >= self._calm_at

    def strike(self) -> bool:
        struck = self.random.random() < self._rate
        return struck and not self.calm

    async def wait(self, most_s: float) -> None:
        await asyncio.sleep(self.random.random() * most_s)


class FaultyStore:
    """Fails before a write, after it took place, slowly, or for a while."""

    def __init__(self, inner: Any, dice: Dice) -> None:
        self._inner = inner
        self._dice = dice
        self._down_until = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        return method if name in NEVER_BROKEN else self._wrapped(method)

    def _wrapped(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            if time.monotonic() < self._down_until and not self._dice.calm:
                raise PersistenceFault("The store is down.")
            if not self._dice.strike():
                return await method(*arguments, **named)
            return await self._badly(lambda: method(*arguments, **named))

        return call

    async def _badly(self, perform: Callable[[], Awaitable[Any]]) -> Any:
        match self._dice.random.choice(["before", "after", "slow", "slow", "down"]):
            case "before":
                raise PersistenceFault("The store refused.")
            case "after":
                await perform()
                raise PersistenceFault("The store took it and did not say so.")
            case "slow":
                await self._dice.wait(0.1)
                return await perform()
        self._down_until = time.monotonic() + self._dice.random.random() * 0.5
        raise PersistenceFault("The store is down.")


class SlowLog(MemoryEventLog):
    """Now and then an append takes its time, before it is in place or after."""

    def __init__(self, dice: Dice, **bounds: Any) -> None:
        super().__init__(**bounds)
        self._dice = dice

    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        slow = self._dice.strike()
        if slow:
            await self._dice.wait(0.03)
        entries = await super().append(session_id, events)
        if slow:
            await self._dice.wait(0.03)
        return entries


class FaultySandboxes:
    """A provider whose channels are cut, stall, and are taken over by strangers."""

    def __init__(self, inner: SandboxProvider, dice: Dice) -> None:
        self._inner = inner
        self._dice = dice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        return FaultySandbox(await self._inner.create(spec), self._dice)

    async def attach(self, ref: SandboxRef, *, gateway_socket: Path | None = None) -> Sandbox:
        return FaultySandbox(await self._inner.attach(ref, gateway_socket=gateway_socket), self._dice)


class FaultySandbox:
    """One sandbox; the process inside is left alone."""

    def __init__(self, inner: Sandbox, dice: Dice) -> None:
        self.inner = inner
        self._dice = dice
        self._cut_before = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def connect(self) -> Channel:
        """Never two bad connections in a row: a runner that nobody can talk to is another story."""
        bad = not self._cut_before and self._dice.strike()
        self._cut_before = bad
        return FaultyChannel(self, await self.inner.connect(), self._dice, will_break=bad)


class FaultyChannel:
    """Passes bytes on, now and then late; one that will break does so after a random number of them."""

    def __init__(self, sandbox: FaultySandbox, inner: Channel, dice: Dice, *, will_break: bool) -> None:
        self._sandbox = sandbox
        self._inner = inner
        self._dice = dice
        self._left = dice.random.randrange(1_000, 60_000) if will_break else None
        self._how = dice.random.choice(["ends", "raises", "stranger"])

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        if self._dice.strike():
            await self._dice.wait(0.1)
        data = await self._inner.receive(take if self._left is None else None)
        if self._left is None:
            return data
        self._left -= len(data)
        return data if self._left > 0 or self._dice.calm else await self._break(data)

    async def send(self, data: bytes) -> None:
        if self._dice.strike():
            await self._dice.wait(0.05)
        await self._inner.send(data)

    async def close(self) -> None:
        await self._inner.close()

    async def _break(self, data: bytes) -> bytes:
        self._left = None
        if self._how == "stranger":  # the runner drops us for another one, which leaves at once
            other = await self._sandbox.inner.connect()
            await other.send(encode({"k": "attach", "after": 0}))
            await other.close()
            return data
        await self._inner.close()
        if self._how == "raises":
            raise SandboxFault("The connection broke.", code="sandbox_lost")
        return b""
