"""A runtime without a transport: real manager, store and log; a scripted agent in scripted sandboxes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent_runtime.config import RuntimeConfig
from agent_runtime.creation import NewSession
from agent_runtime.events import Event, Gap, Position, TurnEnd
from agent_runtime.manager import SessionManager
from agent_runtime.ports import Principal
from agent_runtime.profile import AgentProfile
from agent_runtime.records import Phase, Turn
from agent_runtime.session import SendReceipt
from agent_runtime.testing.no_gateway import NoGateway
from agent_runtime.testing.scripted_agent import ScriptedAgent
from agent_runtime.testing.scripted_runner import Script, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.faults import FaultyPersistence, SlowLog
from tests.waiting import eventually

ANNA, BERT = Principal("anna"), Principal("bert")
PROFILE = AgentProfile(profile_id="scripted", name="Scripted", architecture="scripted")


@dataclass
class World:
    manager: SessionManager
    sandboxes: ScriptedSandboxes
    store: FaultyPersistence
    log: SlowLog
    gateway: NoGateway

    async def new(self, **given: Any) -> str:
        session, _ = await self.manager.create_session(ANNA, NewSession("scripted", **given))
        return session.session_id

    async def send(
        self, session_id: str, text: str, message_id: str | None = None, *, when_busy: Any = "queue"
    ) -> SendReceipt:
        return await self.manager.send(ANNA, session_id, text, message_id=message_id, when_busy=when_busy)

    async def events(self, session_id: str) -> list[Event]:
        """All events of the session's log so far."""
        head = await self.log.head(session_id)
        replay = await self.log.since(session_id, Position(head.epoch, 0))
        assert not isinstance(replay, Gap)
        return [entry.event for entry in replay.entries]

    async def of(self, session_id: str, kind: str) -> list[Any]:
        return [event for event in await self.events(session_id) if event.type == kind]

    async def reaches_events(self, session_id: str, kind: str, count: int) -> list[Any]:
        """The events of one type, once there are so many."""
        async with asyncio.timeout(10):
            while len(found := await self.of(session_id, kind)) < count:
                await self.log.wait(session_id, await self.log.head(session_id))
        return found

    async def ended(self, session_id: str, count: int) -> list[Turn]:
        """The turns that ended, once there are so many."""
        await self._until_ended(session_id, count)
        ended = [event.turn for event in await self.of(session_id, "turn_end")]
        assert len(ended) == count
        return ended

    async def _until_ended(self, session_id: str, count: int) -> None:
        async with asyncio.timeout(10):
            while True:
                head = await self.log.head(session_id)
                ends = [event for event in await self.events(session_id) if isinstance(event, TurnEnd)]
                if len(ends) >= count:
                    return
                await self.log.wait(session_id, head)

    async def phase(self, session_id: str) -> Phase:
        return (await self.manager.session(ANNA, session_id)).runtime.phase

    async def reaches(self, session_id: str, phase: Phase) -> None:
        """Wait until the session is in this phase and has said so."""
        async with asyncio.timeout(10):
            while True:
                head = await self.log.head(session_id)
                told = await self.of(session_id, "session_status")
                if told and told[-1].runtime.phase is phase is await self.phase(session_id):
                    return
                await self.log.wait(session_id, head)

    async def turns(self, session_id: str) -> tuple[Turn, ...]:
        return await self.manager.turns(ANNA, session_id, before=None, limit=100)


@asynccontextmanager
async def world(script: Script = echo, *, snapshots: bool = False, **options: Any) -> AsyncIterator[World]:
    """A fresh world; in the end nothing may be left of it."""
    async with (
        ScriptedSandboxes(script, snapshots=snapshots) as sandboxes,
        runtime(sandboxes, MemoryPersistence(), **options) as made,
    ):
        yield made


async def killed(it: World) -> None:
    """End a runtime as SIGKILL does: what was not saved is gone, and its sandboxes live on."""
    loaded = it.manager._loaded._sessions
    for session in tuple(loaded.values()):
        session.close(detach=True)
    await eventually(lambda: not loaded)
    await it.manager.close()


@asynccontextmanager
async def runtime(
    sandboxes: ScriptedSandboxes, store: MemoryPersistence, *, leaves: bool = False, **options: Any
) -> AsyncIterator[World]:
    """One process's worth of a runtime; several in turn over the same store are restarts.

    With `leaves` its sandboxes live on when it closes.
    """
    before = asyncio.all_tasks()
    faulty, gateway = FaultyPersistence(store), NoGateway()
    log = SlowLog(max_bytes_per_session=64 * 1024 * 1024)
    settings: dict[str, Any] = {
        "coalesce_within_s": 0.0,  # else it would depend on how busy the machine is when what is heard
        "sync_interval_s": 0.01,
        "interrupt_grace_s": 5.0,
        "wake_timeout_s": 5.0,
        "profiles": [PROFILE],
        "agents": [ScriptedAgent()],
    }
    config = RuntimeConfig(
        persistence=faulty,
        sandboxes=sandboxes,
        gateway=gateway,
        log=log,
        **settings | options,
    )
    manager = SessionManager(config)
    await manager.open()
    try:
        yield World(manager, sandboxes, faulty, log, gateway)
    finally:
        faulty.down = faulty.deaf = False
        faulty.breaks = None
        faulty.let_go()
        if not leaves:
            await manager.stop_all()
        await manager.close()
    if not leaves:
        assert await sandboxes.list(config.runtime_id) == ()
        assert not gateway.opened
    await eventually(lambda: not (tasks_of_ours() - before))


def tasks_of_ours() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "session" in task.get_name()}
