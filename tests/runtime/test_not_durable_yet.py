"""What is not durable yet: no sandbox ends before it is, and no record claims that it is."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_runtime import loading
from agent_runtime.blocks import BlockState, Subagent, SubagentStatus, ToolResult, ToolUse
from agent_runtime.clock import now
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate
from agent_runtime.records import Checkpoint, Phase, Turn, TurnStatus
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.fast_time import told_fast
from tests.runtime.scripts import Curtain
from tests.runtime.test_recorder import recording
from tests.runtime.world import ANNA, killed, runtime, world
from tests.waiting import eventually

SOON: dict[str, Any] = {"agent_idle_timeout_s": 0.02, "sandbox_idle_timeout_s": 60.0}


async def test_a_record_does_not_claim_the_end_of_a_turn_before_the_turn_has_ended() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        store.down = True
        tasks.create_task(recorder.update_record(name="renamed"))
        await eventually(lambda: store.refused)
        ended = Turn(turn_id="t", index=0, status=TurnStatus.COMPLETED, started_at=datetime.now(UTC))
        place = Checkpoint(offset=7, next_index=0)
        ending = tasks.create_task(recorder.save_turn(ended, checkpoint=place))
        await eventually(lambda: store.refused > 1)
        store.only = {"save_turn"}
        await eventually(lambda: store.refused > 2)
        record = await store.inner.load_session("s")
        assert (record.name, record.checkpoint) == ("renamed", None)
        store.down = False
        await ending
        assert (await store.inner.load_session("s")).checkpoint == place


async def test_stopping_all_while_the_store_is_down_ends_no_sandbox_whose_content_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_STOP_BOUND_S", 0.3)
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            stage = await curtain.playing()
            it.store.down = True
            stage.write("a.txt", b"a")
            await eventually(lambda: it.store.refused)
            await it.manager.stop_all()
            await it.manager.close()
        assert sandboxes.living()
        curtain.raised.set()
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert [file.path for file in await store.load_manifest(session_id)] == ["a.txt"]


def test_a_hibernated_sandbox_that_cannot_be_roused_while_the_store_is_away_keeps_its_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with world(wake_timeout_s=0.4, **SOON) as it:
            session_id = await it.new(message="one")
            await it.reaches(session_id, Phase.HIBERNATED)
            it.store.only, it.store.down = {"load_transcript", "save_files"}, True
            await it.send(session_id, "two")
            it.sandboxes.made[0].runner.change("late.txt", b"written in the background")
            await asyncio.sleep(1)  # more than twice as long as a wake is given
            assert it.sandboxes.living()
            it.store.down = False
            await eventually(lambda: not it.sandboxes.living())
            files = await it.store.inner.load_manifest(session_id)
            assert [file.path for file in files] == ["late.txt"]
            await it.send(session_id, "three")
            statuses = [turn.status for turn in await it.ended(session_id, 3)]
            assert statuses == [TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.COMPLETED]

    told_fast(story(), monkeypatch)


async def test_a_message_to_a_hibernated_sandbox_that_just_died_is_answered_in_a_new_one() -> None:
    async with world(**SOON) as it:
        session_id = await it.new(message="one")
        await it.reaches(session_id, Phase.HIBERNATED)
        session = it.manager._loaded.find(session_id)
        assert session is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(it.send(session_id, "two"))
            async with asyncio.timeout(20):
                while session.shown().runtime.phase is not Phase.WAKING:
                    await asyncio.sleep(0)
            it.sandboxes.made[0].die()
        assert (await it.ended(session_id, 2))[1].status is TurnStatus.COMPLETED
        assert len(it.sandboxes.made) == 2


async def test_a_hibernated_runner_that_refuses_a_start_is_replaced() -> None:
    async with world(**SOON) as it:
        session_id = await it.new(message="one")
        await it.reaches(session_id, Phase.HIBERNATED)
        it.sandboxes.made[0].runner.started = {}  # an agent that did not end
        await it.send(session_id, "two")
        assert (await it.ended(session_id, 2))[1].status is TurnStatus.COMPLETED
        assert [each.stopped > 0 for each in it.sandboxes.made] == [True, False]


async def test_what_works_in_the_background_for_long_is_known_after_a_kill() -> None:
    store = MemoryPersistence()
    call = ToolUse(id="call", tool_name="Task", tool_use_id="task", timestamp=now())
    answer = ToolResult(id="answer", tool_use_id="task", output="it works", timestamp=now())
    child = Subagent(
        id="child", subagent_id="child", tool_use_id="task", timestamp=now(), status=SubagentStatus.RUNNING
    )

    async def script(stage: Stage) -> None:
        if stage.message == "begin":
            for block in (call, child, answer):
                opened = block.model_copy(update={"state": BlockState.STREAMING})
                stage.tell(BlockStart(block=opened), BlockComplete(block_id=block.id, block=block))
            stage.line({"report": "at_work", "tasks": 1})
        await echo(stage)

    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="begin")
            await it.ended(session_id, 1)
            for number in range(105):
                await it.send(session_id, f"{number}")
                await it.reaches_events(session_id, "turn_end", number + 2)
            await killed(it)
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            sandboxes.made[0].runner.stage().tell(
                BlockUpdate(block_id="child", updates={"status": SubagentStatus.SUCCESS.value}),
            )
            await it.send(session_id, "end")
            await it.ended(session_id, 1)
        await store.open()
        blocks = {
            each.block.id: each.block for each in (await store.load_blocks(session_id, limit=999)).blocks
        }
        assert blocks["child"].status is SubagentStatus.SUCCESS
