"""What outlives what: power cuts, a store that fails or misbehaves, and an orderly end."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.clock import now
from agent_runtime.errors import PersistenceFault, RuntimeFault
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import Phase, Turn, TurnStatus
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import never_rests, others_get_on, refused, waits
from tests.runtime.world import ANNA, World, runtime, world
from tests.waiting import eventually

# Restarts.


async def power_cut(*messages: str) -> tuple[MemoryPersistence, str, list[str]]:
    """The store as a power cut leaves it in the first message's turn; session and turn ids."""
    store = MemoryPersistence()
    async with ScriptedSandboxes(never_rests) as sandboxes, runtime(sandboxes, store) as it:
        session_id = await it.new()
        receipts = [await it.send(session_id, text) for text in messages]
        await eventually(lambda: "save_blocks" in it.store.calls)
        await others_get_on()
        left = copy.deepcopy(store)
    return left, session_id, [receipt.turn_id for receipt in receipts]


async def test_after_a_crash_of_runtime_and_sandbox_the_turn_has_failed_once_and_the_queued_ones_run() -> (
    None
):
    store, session_id, turn_ids = await power_cut("one", "two", "three")
    async with ScriptedSandboxes(echo) as sandboxes:
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            lost, second, third = await it.ended(session_id, 3)
            assert [turn.turn_id for turn in (lost, second, third)] == turn_ids
            assert lost.status is TurnStatus.FAILED
            assert lost.error is not None
            assert lost.error.code == "sandbox_lost"
            assert [second.status, third.status] == [TurnStatus.COMPLETED] * 2
            page = await store.load_blocks(session_id, limit=50)
            results = [each.block for each in page.blocks if each.block.type == "tool_result"]
            assert [result.tool_use_id for result in results] == ["call"]
        async with runtime(sandboxes, store) as again:
            await again.manager.snapshot(ANNA, session_id)
            await others_get_on()
            assert await again.events(session_id) == []


async def test_a_message_right_after_a_restart_waits_for_those_before_it() -> None:
    store, session_id, turn_ids = await power_cut("one", "two")
    async with ScriptedSandboxes(echo) as sandboxes, runtime(sandboxes, store) as it:
        newest = await it.send(session_id, "newest")
        ended = await it.ended(session_id, 3)
        assert [turn.turn_id for turn in ended] == [*turn_ids, newest.turn_id]
        assert [turn.index for turn in ended] == [0, 1, 2]


async def test_sandboxes_that_no_session_knows_are_ended() -> None:
    async with ScriptedSandboxes(echo) as sandboxes:
        ours = await sandboxes.create(SandboxSpec("s", "agent-runtime", Path("gateway"), 1))
        theirs = await sandboxes.create(SandboxSpec("s", "another", Path("gateway"), 1))
        async with runtime(sandboxes, MemoryPersistence()):
            async with asyncio.timeout(20):
                while await ours.alive():
                    await asyncio.sleep(0)
            assert await theirs.alive()


async def test_a_queue_longer_than_a_page_is_taken_up_whole() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(echo) as sandboxes:
        async with runtime(sandboxes, store) as before:
            session_id = await before.new()
        await store.open()
        for index in range(130):
            turn = Turn(
                turn_id=f"t{index}",
                index=index,
                message_id=f"m{index}",
                status=TurnStatus.QUEUED,
                content=f"{index}",
                started_at=now(),
            )
            await store.save_turn(session_id, turn)
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            ended = await it.ended(session_id, 130)
            assert [turn.index for turn in ended] == list(range(130))


# A store that fails.


async def test_while_the_store_is_down_the_end_waits_and_nothing_is_lost() -> None:
    async def script(stage: Stage) -> None:
        stage.write("a.txt", b"a")
        stage.remember({"n": 1})
        await go_on.wait()
        await echo(stage)

    go_on = asyncio.Event()
    async with world(script) as it:
        session_id = await it.new(message="hello")
        await it.reaches(session_id, Phase.RUNNING)
        assert (await it.manager.readiness()).ok
        it.store.down = True
        go_on.set()
        await eventually(lambda: it.store.refused)
        assert await it.of(session_id, "turn_end") == []
        readiness = await it.manager.readiness()
        assert not readiness.ok
        assert readiness.parts["persistence"] == {"ok": False, "reason": "The store is down."}
        for call in (
            it.send(session_id, "more"),
            it.manager.sync_session(ANNA, session_id),
            it.manager.file(ANNA, session_id, "a.txt"),
        ):
            with pytest.raises(PersistenceFault):
                await call
        it.store.down = False
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        assert (await it.manager.readiness()).ok
        store = it.store.inner
        assert [file.path for file in await store.load_manifest(session_id)] == ["a.txt"]
        assert await store.load_transcript(session_id) == {"main": [{"n": 1}]}
        blocks = (await store.load_blocks(session_id, limit=9)).blocks
        assert [each.block.type for each in blocks] == ["user_message", "assistant_text"]
        await it.send(session_id, "more")


async def test_while_the_store_is_down_memory_is_bounded_and_the_sandbox_keeps_the_rest() -> None:
    async def script(stage: Stage) -> None:
        for number in range(60):
            stage.text(f"{number}", "x" * (1 << 20))  # of which two MiB go over the link
            await asyncio.sleep(0)
        stage.rest()
        said.set()

    said = asyncio.Event()
    async with world(script) as it:
        session_id = await it.new()
        it.store.only, it.store.down = {"save_blocks"}, True
        await it.send(session_id, "talk")
        await said.wait()
        link = it.manager._loaded.find(session_id)._holder.attached.link
        await eventually(lambda: link.received > 64 << 20, within=30)
        for _ in range(20):
            await others_get_on()
        assert link.received < 70 << 20
        it.store.down = False
        async with asyncio.timeout(30):
            while (await it.turns(session_id))[0].status is not TurnStatus.COMPLETED:
                await asyncio.sleep(0.01)
        page = await it.store.load_blocks(session_id, limit=200)
        assert [len(each.block.content) for each in page.blocks[1:]] == [1 << 20] * 60


async def test_a_message_that_the_store_took_without_saying_so_runs_when_it_is_sent_again() -> None:
    async with world() as it:
        session_id = await it.new()
        it.store.only, it.store.deaf = {"save_turn"}, True
        with pytest.raises(PersistenceFault):
            await it.send(session_id, "hello", "m")
        it.store.deaf = False
        first, second = await asyncio.gather(*(it.send(session_id, "hello", "m") for _ in range(2)))
        assert first.turn_id == second.turn_id
        (turn,) = await it.ended(session_id, 1)
        assert turn.turn_id == first.turn_id
        assert turn.status is TurnStatus.COMPLETED
        await it.send(session_id, "next")
        assert [turn.index for turn in await it.ended(session_id, 2)] == [0, 1]


async def test_writes_of_one_session_come_one_at_a_time() -> None:
    async def script(stage: Stage) -> None:
        for number in range(5):
            stage.write(f"{number}.txt", b"x")
            stage.remember({"n": number})
            stage.text(f"{stage.turn_id}-{number}", "words")
            await asyncio.sleep(0)
        stage.rest()

    async with world(script, sync_interval_s=0.001) as it:
        session_id = await it.new()
        for text in "abc":
            await it.send(session_id, text)
        await it.ended(session_id, 3)
        assert it.store.most_at_once == 1


async def test_a_store_that_breaks_its_promises_ends_the_session_and_leaves_no_sandbox() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "breaks":
            stage.text("said", "and then works on")  # in a turn's end it would be saved with the turn
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        it.store.only, it.store.breaks = {"save_blocks"}, ZeroDivisionError("a foreign exception")
        await it.send(session_id, "breaks")
        await eventually(lambda: not it.sandboxes.living(), within=20)  # each failure is shown at length
        await eventually(lambda: not it.gateway.opened)
        it.store.breaks = None
        await eventually_unloaded(it, session_id)
        await it.send(session_id, "works again")
        await it.reaches(session_id, Phase.READY)
        _, lost, works = await it.turns(session_id)
        assert lost.error is not None
        assert lost.error.code == "sandbox_lost"
        assert works.status is TurnStatus.COMPLETED


async def eventually_unloaded(it: World, session_id: str) -> None:
    async with asyncio.timeout(20):
        while (await it.manager.session(ANNA, session_id)).runtime.is_loaded:
            await asyncio.sleep(0)


async def test_who_waits_for_a_session_that_breaks_is_let_go() -> None:
    async with world(waits) as it:
        session_id = await it.new(message="hello")
        await it.reaches(session_id, Phase.RUNNING)
        it.store.only, it.store.breaks = {"save_turn"}, ZeroDivisionError("a foreign exception")
        async with asyncio.timeout(20):
            await it.manager.stop_session(ANNA, session_id)
        it.store.breaks = None


# The end.


async def test_stopping_all_ends_every_session_in_order() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(never_rests) as sandboxes:
        async with runtime(sandboxes, store) as it:
            sessions = [await it.new(message="hello") for _ in range(3)]
            for session_id in sessions:
                await it.reaches(session_id, Phase.RUNNING)
            await it.manager.stop_all()
            await it.manager.close()
            await it.manager.close()
            assert not sandboxes.living()
            with pytest.raises(RuntimeFault) as no:
                await it.send(sessions[0], "too late")
            assert no.value.code == "runtime_stopped"
        await store.open()
        for session_id in sessions:
            (turn,) = await store.load_turns(session_id, limit=5)
            assert turn.status is TurnStatus.FAILED
            assert turn.error is not None
            assert turn.error.code == "runtime_stopped"


async def test_closing_while_sandboxes_are_made_leaves_none() -> None:
    async with ScriptedSandboxes(echo) as sandboxes:
        reached = asyncio.Event()

        async def hang(_: SandboxSpec) -> None:
            reached.set()
            await asyncio.Event().wait()

        sandboxes.before_create = hang
        async with runtime(sandboxes, MemoryPersistence()) as it:
            await it.new(message="hello")
            await reached.wait()
        assert sandboxes.made == []


async def test_closing_while_a_session_is_loaded_leaves_none() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(echo) as sandboxes:
        async with runtime(sandboxes, store) as before:
            session_id = await before.new()
        async with runtime(sandboxes, store) as it:
            it.store.only = {"load_manifest"}
            it.store.hold()
            async with asyncio.TaskGroup() as tasks:
                loading = tasks.create_task(refused(it.send(session_id, "hello")))
                await eventually(lambda: "load_manifest" in it.store.calls)
                closing = tasks.create_task(it.manager.close())
                await others_get_on()
                it.store.let_go()
                await closing
            fault = loading.result()
            assert fault is not None
            assert fault.code in {"runtime_stopped", "persistence_unavailable"}
        assert sandboxes.made == []


async def test_a_runtime_that_cannot_start_holds_nothing() -> None:
    class Unreachable(ScriptedSandboxes):
        async def list(self, runtime_id: str) -> Any:
            raise PersistenceFault("no list today")

    async with Unreachable() as sandboxes:
        with pytest.raises(PersistenceFault):
            async with runtime(sandboxes, MemoryPersistence()):
                pass
