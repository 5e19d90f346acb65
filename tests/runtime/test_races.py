"""What happens in the same instant: whoever comes first, nothing is lost, doubled or left behind."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent_runtime.events import MetadataUpdate
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentTookIn
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import Curtain, others_get_on
from tests.runtime.world import ANNA, killed, runtime, world
from tests.waiting import eventually


async def left_in_mid_turn(
    sandboxes: ScriptedSandboxes, store: MemoryPersistence, curtain: Curtain, **options: Any
) -> tuple[str, Stage]:
    """A runtime was killed while its agent worked on a message."""
    async with runtime(sandboxes, store, leaves=True, **options) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        await killed(it)
    return session_id, stage


def nothing_of(kind: str) -> Callable[[Any], Awaitable[bool]]:
    async def before(frame: Any) -> bool:
        return bool(frame["k"] != kind)

    return before


# Taking up.


async def test_who_comes_after_a_loader_that_gave_up_sees_the_session_taken_up_as_well() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await left_in_mid_turn(sandboxes, store, curtain)
        async with runtime(sandboxes, store) as it:
            it.store.only = {"unfinished_sessions", "block_index"}
            it.store.hold()
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(it.manager.snapshot(ANNA, session_id))
                await eventually(lambda: "block_index" in it.store.calls)
                tasks.create_task(it.send(session_id, "second"))
                await others_get_on()
                first.cancel()
                await others_get_on()
                it.store.let_go()
            curtain.raised.set()
            turns = await it.ended(session_id, 2)
            assert [turn.status for turn in turns] == [TurnStatus.COMPLETED] * 2
            assert not it.manager._loaded._failures
            assert len(sandboxes.made) == 1


async def test_a_sandbox_that_answers_with_garbage_is_ended_and_has_no_way_out() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await left_in_mid_turn(sandboxes, store, curtain)
        sandboxes.made[0].runner.attach = lambda _after, send: send(b"garbage\n")  # type: ignore[method-assign]
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.FAILED
            assert (await it.manager.session(ANNA, session_id)).runtime.phase is Phase.DORMANT
            await eventually(lambda: not sandboxes.living())
            assert not it.gateway.opened


async def test_a_session_that_is_deleted_before_it_is_taken_up_leaves_no_sandbox() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await left_in_mid_turn(sandboxes, store, curtain)
        async with runtime(sandboxes, store) as it:
            it.store.only = {"unfinished_sessions"}
            it.store.hold()
            await it.manager.delete_session(ANNA, session_id)
            assert not sandboxes.living()
            it.store.let_go()


async def test_an_interrupt_before_a_session_is_taken_up_reaches_its_agent() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await left_in_mid_turn(sandboxes, store, curtain)
        async with runtime(sandboxes, store) as it:
            it.store.only = {"unfinished_sessions"}
            it.store.hold()
            assert await it.manager.interrupt(ANNA, session_id, None)
            it.store.let_go()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.CANCELLED


async def test_stopping_all_while_a_session_is_taken_up_loses_nothing_that_was_said_meanwhile() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, stage = await left_in_mid_turn(sandboxes, store, curtain)
        stage.write("a.txt", b"a")
        stage.remember({"n": 1})
        stage.text("meanwhile", "while nobody listened")
        async with runtime(sandboxes, store) as it:
            await eventually(lambda: it.manager._loaded.find(session_id) is not None)
            await it.manager.stop_all()
            assert not sandboxes.living()
        await store.open()
        (turn,) = await store.load_turns(session_id, limit=9)
        assert turn.error is not None
        assert turn.error.code == "runtime_stopped"
        assert [file.path for file in await store.load_manifest(session_id)] == ["a.txt"]
        assert await store.load_transcript(session_id) == {"main": [{"n": 1}]}


async def test_stopping_all_right_at_the_start_loses_nothing_that_was_said_meanwhile() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, stage = await left_in_mid_turn(sandboxes, store, curtain)
        stage.write("a.txt", b"a")
        async with runtime(sandboxes, store) as it:
            await it.manager.stop_all()
            assert not sandboxes.living()
        await store.open()
        assert [file.path for file in await store.load_manifest(session_id)] == ["a.txt"]


async def test_a_long_turn_with_many_that_joined_it_is_known_after_a_kill() -> None:
    curtain, store = Curtain(), MemoryPersistence()

    async def script(stage: Stage) -> None:
        if stage.message == "join":
            stage.tell(AgentTookIn(stage.turn_id))
        else:
            await curtain(stage)

    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            await curtain.playing()
            for number in range(120):
                await it.send(session_id, "join", when_busy="steer")
                await it.reaches_events(session_id, "turn_end", number + 1)
            await killed(it)
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            assert await it.phase(session_id) is Phase.RUNNING
            curtain.raised.set()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED


# Failing.


async def test_who_follows_a_session_that_fails_hears_what_was_said_before_it_was_taken_up_again() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        stage.text("before", "before")
        await it.reaches_events(session_id, "block_complete", 2)
        session = it.manager._loaded.find(session_id)
        seen = await it.log.head(session_id)
        it.store.only, it.store.breaks = {"save_blocks"}, ZeroDivisionError("a foreign exception")
        stage.text("fatal", "fatal")
        await eventually(lambda: it.manager._loaded.find(session_id) is not session)
        it.store.breaks = None
        stage.text("between", "said while nobody listened")
        await eventually(lambda: it.manager._loaded.find(session_id) is not None)
        snapshot = await it.manager.snapshot(ANNA, session_id)
        assert [block.id for block in snapshot.blocks][1:] == ["before", "fatal", "between"]
        replay = await it.log.since(session_id, seen)
        heard = [getattr(entry.event, "block_id", "") for entry in getattr(replay, "entries", ())]
        assert "between" in heard or type(replay).__name__ == "Gap"
        curtain.raised.set()
        await eventually(lambda: it.manager._loaded.find(session_id) is not None)


# Being put away.

GONE_SOON: dict[str, Any] = {"session_idle_timeout_s": 0.05}


async def test_a_message_that_is_being_stored_while_its_session_is_idle_is_answered() -> None:
    async with world(**GONE_SOON) as it:
        session_id = await it.new()
        it.store.only = {"save_turn"}
        it.store.hold()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(it.send(session_id, "hello"))
            await eventually(lambda: "save_turn" in it.store.calls)
            await asyncio.sleep(0.2)  # four times as long as an idle session is given
            it.store.let_go()
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED


# What an agent is to be told.


async def test_what_an_agent_is_to_be_told_comes_also_with_a_message_that_was_to_join_a_turn() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="one")
        await curtain.playing()
        curtain.raised.set()
        await it.ended(session_id, 1)
        curtain.raised.clear()
        await it.manager.stop_session(ANNA, session_id)
        await it.send(session_id, "/compact")
        await curtain.playing(2)
        await it.send(session_id, "two", when_busy="steer")
        await it.send(session_id, "three")
        await curtain.playing(3)
        curtain.raised.set()
        await it.ended(session_id, 4)
        told = [str(stage.message).count("Your sandbox was replaced") for stage in curtain.stages[1:]]
        assert told[0] == 0
        assert sum(told) == 1


# Costs.


async def test_a_turns_cost_is_its_own_when_the_runtime_is_killed_before_its_end_is_stored() -> None:
    store = MemoryPersistence()

    async def script(stage: Stage) -> None:
        stage.tell(MetadataUpdate(cost_usd=0.5))
        stage.rest(total_cost_usd=0.5)

    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new()
            await it.manager.prewarm_session(ANNA, session_id)
            await it.reaches(session_id, Phase.READY)
            sandboxes.made[0].runner.before = nothing_of("sync")
            await it.send(session_id, "hello")
            await it.reaches_events(session_id, "metadata_update", 1)
            await others_get_on()
            await it.manager.update_session(ANNA, session_id, name="renamed in between")
            await killed(it)
        sandboxes.made[0].runner.before = nothing_of("nothing")
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.cost_usd == 0.5


# The order of blocks.


async def test_blocks_are_kept_in_the_order_in_which_they_were_told() -> None:
    """A message is withdrawn, and saved while the agent goes on to speak."""
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="works on")
        stage = await curtain.playing()
        waiting = await it.send(session_id, "never mind")
        it.store.only = {"save_turn"}
        saves = it.store.calls.count("save_turn")
        it.store.hold()
        await it.manager.interrupt(ANNA, session_id, waiting.turn_id)
        await eventually(lambda: it.store.calls.count("save_turn") > saves)
        stage.text("meanwhile", "said ", "meanwhile")
        await others_get_on()
        it.store.let_go()
        curtain.raised.set()
        await it.ended(session_id, 2)
        told = [event.block.id for event in await it.of(session_id, "block_start")]
        page = await it.store.inner.load_blocks(session_id, limit=10)
        assert [each.block.id for each in page.blocks] == told
        assert told[1:3] == [waiting.turn_id, "meanwhile"]
