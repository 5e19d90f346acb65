"""A runtime over Modal: what it puts away comes back out of a snapshot, and what waits is taken."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from agent_runtime.config import RuntimeConfig
from agent_runtime.creation import NewSession
from agent_runtime.events import Gap, Position
from agent_runtime.manager import SessionManager
from agent_runtime.pool import PoolSettings
from agent_runtime.ports import EventLog
from agent_runtime.profile import FileRules
from agent_runtime.records import Phase, SessionRecord, TurnStatus
from agent_runtime.testing.scripted_agent import ScriptedAgent
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.adapters.sandboxes.modal_world import ModalWorld, modal_world, needs_users
from tests.chaos.life import SilentGateway
from tests.runtime.world import ANNA, PROFILE

LARGE = "x" * 5000
"""More than is kept in a store here."""
DONE = {"report": "ended", "status": "completed"}
WORK = {
    "steps": [{"write": "small.txt", "text": "small"}, {"write": "large.txt", "text": LARGE}],
    "end": DONE,
}


@dataclass
class Over:
    """A runtime over one Modal."""

    modal: ModalWorld
    manager: SessionManager
    store: MemoryPersistence
    log: EventLog

    async def record(self, session_id: str) -> SessionRecord:
        found = await self.store.load_session(session_id)
        assert found is not None
        return found

    async def events(self, session_id: str, kind: str) -> list[Any]:
        head = await self.log.head(session_id)
        replay = await self.log.since(session_id, Position(head.epoch, 0))
        assert not isinstance(replay, Gap)
        return [entry.event for entry in replay.entries if entry.event.type == kind]

    async def until(self, session_id: str, kind: str, count: int) -> list[Any]:
        async with asyncio.timeout(40):
            while len(found := await self.events(session_id, kind)) < count:
                await self.log.wait(session_id, await self.log.head(session_id))
        return found

    async def until_asleep(self, session_id: str) -> None:
        async with asyncio.timeout(40):
            while (await self.manager.session(ANNA, session_id)).runtime.phase is not Phase.DORMANT:
                await self.log.wait(session_id, await self.log.head(session_id))


@asynccontextmanager
async def over_modal(*, v2: bool, **options: Any) -> AsyncIterator[Over]:
    with TemporaryDirectory() as folder:
        async with modal_world(v2=v2) as modal:
            store, log = MemoryPersistence(), MemoryEventLog()
            manager = SessionManager(
                RuntimeConfig(
                    persistence=store,
                    log=log,
                    sandboxes=modal.provider(),
                    agents=(ScriptedAgent(),),
                    gateway=SilentGateway(Path(folder)),
                    profiles=(PROFILE,),
                    file_rules=FileRules(max_file_bytes=1000),
                    **options,
                )
            )
            await manager.open()
            try:
                yield Over(modal, manager, store, log)
            finally:
                await manager.stop_all()
                await manager.close()
            assert await modal.living() == []


def play(piece: dict[str, Any]) -> str:
    return "play " + json.dumps(piece)


@needs_users
@pytest.mark.parametrize("v2", [True, False], ids=["second backend", "first backend"])
async def test_what_was_put_away_comes_back_with_what_no_store_keeps(v2: bool) -> None:
    async with over_modal(v2=v2, sandbox_idle_timeout_s=0.5) as it:
        session, _ = await it.manager.create_session(ANNA, NewSession("scripted", message=play(WORK)))
        session_id = session.session_id
        await it.until(session_id, "turn_end", 1)
        await it.until_asleep(session_id)
        assert await it.modal.living() == []
        assert (await it.record(session_id)).snapshot is not None

        again = play({"steps": [{"pause": 0.1}], "end": DONE})
        await it.manager.send(ANNA, session_id, again, message_id="again", when_busy="queue")
        ends = await it.until(session_id, "turn_end", 2)
        assert [end.turn.status for end in ends] == [TurnStatus.COMPLETED] * 2
        (restored,) = await it.events(session_id, "workspace_restored")
        assert (restored.restored_files, restored.lost_paths) == (2, None)
        files = {file.path: file.omitted for file in await it.manager.manifest(ANNA, session_id)}
        assert files == {"small.txt": None, "large.txt": "too_large"}
        assert (await it.record(session_id)).snapshot is None


@needs_users
async def test_a_sandbox_that_waits_there_is_the_sessions_from_its_first_message_on() -> None:
    pool = PoolSettings(size=1, profiles=("scripted",))
    async with over_modal(v2=True, pool=pool) as it:
        async with asyncio.timeout(40):
            while not (await it.manager.readiness()).parts["pool"]["waiting"]:
                await asyncio.sleep(0.05)
        (waited,) = [ref.sandbox_id for ref in await it.modal.provider().list("agent-runtime")]
        message = play({"steps": [], "end": DONE})
        session, _ = await it.manager.create_session(ANNA, NewSession("scripted", message=message))
        await it.until(session.session_id, "turn_end", 1)
        sandbox = (await it.record(session.session_id)).sandbox
        assert sandbox is not None
        assert sandbox.sandbox_id == waited
        assert sandbox.lane is not None
