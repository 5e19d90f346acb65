"""What the store has after many sandboxes and many turns: all of it, as it was, and without growing work."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from agent_runtime.ports import StoredBlock
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.fast_time import told_fast
from tests.runtime.scripts import others_get_on
from tests.runtime.world import ANNA, runtime, world
from tests.waiting import eventually

CHILD = "subagents/agent-a1b2"


async def delegates(stage: Stage) -> None:
    said = stage.message if isinstance(stage.message, str) else stage.message[-1]["text"]
    stage.tell(AgentIdentity("agent"))
    stage.remember({"said": said})
    stage.remember({"child heard": said}, key=CHILD)
    stage.write("counted.txt", said.encode())
    stage.text(f"{stage.turn_id}-text", said)
    stage.rest()


async def test_a_transcript_only_grows_and_keeps_its_names_however_often_it_is_put_back() -> None:
    async with world(delegates) as it:
        session_id = await it.new()
        said: list[str] = []
        for number in range(4):
            await it.send(session_id, f"m{number}")
            await it.ended(session_id, number + 1)
            recalled = it.sandboxes.made[-1].runner.recalled
            expected = {
                "main": [{"said": text} for text in said],
                CHILD: [{"child heard": text} for text in said],
            }
            assert recalled == (expected if said else {})
            said.append(f"m{number}")
            await it.manager.stop_session(ANNA, session_id)
        kept = await it.store.load_transcript(session_id)
        assert kept == {
            "main": [{"said": text} for text in said],
            CHILD: [{"child heard": text} for text in said],
        }


async def test_sessions_that_were_only_looked_at_leave_memory() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(delegates) as sandboxes:
        async with runtime(sandboxes, store) as it:
            sessions = [await it.new() for _ in range(20)]
        async with runtime(sandboxes, store, session_idle_timeout_s=0.05) as it:
            for session_id in sessions:
                await it.manager.snapshot(ANNA, session_id)
            assert it.manager._loaded._sessions
            await eventually(lambda: not it.manager._loaded._sessions)
        assert sandboxes.made == []


async def test_of_a_turn_that_failed_all_is_stored_when_its_end_is_told() -> None:
    async def breaks_off(stage: Stage) -> None:
        await delegates_without_rest(stage)
        stage.exit()

    async with world(breaks_off, sync_interval_s=60.0) as it:
        session_id = await it.new(message="try")
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.FAILED
        store = it.store.inner
        assert await store.load_transcript(session_id) == {"main": [{"said": "try"}]}
        assert [file.path for file in await store.load_manifest(session_id)] == ["tried.txt"]
        blocks = (await store.load_blocks(session_id, limit=9)).blocks
        assert "as far as I came" in [getattr(each.block, "content", None) for each in blocks]
        (stored,) = await store.load_turns(session_id, limit=9)
        assert stored == turn


async def delegates_without_rest(stage: Stage) -> None:
    stage.remember({"said": stage.message})
    stage.write("tried.txt", b"half")
    stage.text("half", "as far as I came")


async def test_a_slow_store_delays_the_end_of_a_turn_and_nothing_that_is_heard_before() -> None:
    begun, may_speak = asyncio.Event(), asyncio.Event()

    async def speaks(stage: Stage) -> None:
        begun.set()
        await may_speak.wait()
        await delegates(stage)

    async with world(speaks) as it:
        session_id = await it.new(message="hello")
        await begun.wait()
        await it.reaches(session_id, Phase.RUNNING)
        it.store.hold()
        may_speak.set()
        heard = await it.reaches_events(session_id, "block_complete", 2)
        assert heard[-1].block.content == "hello"
        await others_get_on()
        assert await it.of(session_id, "turn_end") == []
        it.store.let_go()
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED


def test_while_the_store_is_away_an_agent_that_hears_an_interrupt_keeps_its_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, may_speak = asyncio.Event(), asyncio.Event()

    async def obeys(stage: Stage) -> None:
        begun.set()
        await may_speak.wait()
        stage.tell(AgentIdentity("agent"))
        await stage.interrupted.wait()
        stage.rest(TurnStatus.CANCELLED, stop_reason="interrupted")

    async def story() -> None:
        async with world(obeys, interrupt_grace_s=0.2) as it:
            session_id = await it.new(message="hello")
            await begun.wait()
            await it.reaches(session_id, Phase.RUNNING)
            it.store.down = True
            may_speak.set()
            await eventually(lambda: it.store.refused)
            await it.manager.interrupt(ANNA, session_id, None)
            await asyncio.sleep(0.4)  # twice the grace
            it.store.down = False
            (turn,) = await it.ended(session_id, 1)
            assert (turn.status, turn.stop_reason) == (TurnStatus.CANCELLED, "interrupted")
            record = await it.store.load_session(session_id)
            assert record is not None
            assert record.agent_session_id == "agent"
            assert it.sandboxes.living() == it.sandboxes.made[:1]

    told_fast(story(), monkeypatch)


class Counting(MemoryPersistence):
    """Counts what is handed over and what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()

    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        self.work["blocks"] += len(blocks)
        await super().save_blocks(session_id, blocks)

    async def save_turn(self, session_id: str, turn: Any, blocks: Any = (), **more: Any) -> None:
        self.work["blocks"] += len(blocks)
        await super().save_turn(session_id, turn, blocks, **more)

    async def append_transcript(self, session_id: str, key: str, first: int, entries: Any) -> None:
        self.work["entries"] += len(entries)
        await super().append_transcript(session_id, key, first, entries)

    async def save_files(self, session_id: str, files: Any) -> None:
        self.work["files"] += len(files)
        await super().save_files(session_id, files)

    async def load_transcript(self, session_id: str) -> Any:
        self.work["transcripts read"] += 1
        return await super().load_transcript(session_id)

    async def load_file(self, session_id: str, path: str) -> Any:
        self.work["files read"] += 1
        return await super().load_file(session_id, path)


async def test_a_late_turn_costs_the_store_no_more_than_an_early_one() -> None:
    store = Counting()
    async with (
        ScriptedSandboxes(delegates) as sandboxes,
        runtime(sandboxes, store, sync_interval_s=60.0) as it,
    ):
        session_id = await it.new()
        each: list[Counter[str]] = []
        for number in range(40):
            before = store.work.copy()
            await it.send(session_id, f"m{number}")
            await it.ended(session_id, number + 1)
            each.append(store.work - before)
        early, late = each[2], each[-1]
        assert early == late
        assert late["entries"] == 2
        assert late["files"] == 1
        assert not late["transcripts read"]
        assert not late["files read"]
