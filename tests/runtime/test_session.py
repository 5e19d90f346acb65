"""One session, told from outside: what is sent and what is seen."""

import asyncio
from itertools import pairwise

import pytest

from agent_runtime.blocks import BlockState, Subagent, SubagentStatus
from agent_runtime.clock import now
from agent_runtime.conversation import Conversation
from agent_runtime.errors import Conflict, InvalidRequest, RateLimited
from agent_runtime.events import BlockComplete, BlockStart, Replay, TextDelta
from agent_runtime.ports import SandboxSpec, StoredBlock
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentTurnBegan
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.turns import MAX_WAITING
from tests.runtime.scripts import Curtain, assert_orderly, eventually_told, kinds, never_rests
from tests.runtime.world import ANNA, world


async def test_one_message_end_to_end() -> None:
    async with world() as it:
        session_id = await it.new()
        receipt = await it.send(session_id, "hello")
        (turn,) = await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        events = await it.events(session_id)

    assert turn.turn_id == receipt.turn_id
    assert turn.status is TurnStatus.COMPLETED
    phases = [event.runtime.phase for event in events if event.type == "session_status"]
    moves = [phases[0]] + [after for before, after in pairwise(phases) if before is not after]
    assert moves == [Phase.WAKING, Phase.RUNNING, Phase.READY]
    begin = kinds(events).index("turn_start")
    told = [event.type for event in events[begin:] if event.type not in {"session_status", "queue_changed"}]
    assert told == [
        "turn_start",
        *("block_start", "block_complete"),  # what the user said
        *("block_start", "text_delta", "block_complete"),
        "turn_end",
    ]
    assert_orderly(events)


async def test_everything_is_stored_before_the_end_of_the_turn_is_told() -> None:
    async def script(stage: Stage) -> None:
        stage.write("notes.txt", b"kept")
        stage.write("large.bin", bytes(200_000))
        stage.remember({"said": stage.message})
        await echo(stage)

    async with world(script, sync_interval_s=30.0) as it:
        session_id = await it.new()
        await it.send(session_id, "hello")
        await it.ended(session_id, 1)
        # Nothing is awaited here that could give a write the time to happen.
        store = it.store.inner
        page = await store.load_blocks(session_id, limit=10)
        assert [stored.block.type for stored in page.blocks] == ["user_message", "assistant_text"]
        assert [file.path for file in await store.load_manifest(session_id)] == ["large.bin", "notes.txt"]
        assert await store.load_transcript(session_id) == {"main": [{"said": "hello"}]}
        assert [turn.status for turn in await store.load_turns(session_id, limit=5)] == [TurnStatus.COMPLETED]


async def test_two_messages_at_once_wake_one_sandbox_and_are_answered_in_order() -> None:
    async with world() as it:
        session_id = await it.new()
        one, two = await asyncio.gather(it.send(session_id, "one"), it.send(session_id, "two"))
        ended = await it.ended(session_id, 2)
        assert [turn.turn_id for turn in ended] == [one.turn_id, two.turn_id]
        assert [turn.index for turn in ended] == [0, 1]
        assert len(it.sandboxes.made) == 1
        assert_orderly(await it.events(session_id))


async def test_ten_sends_of_the_same_message_start_one_turn() -> None:
    async with world() as it:
        session_id = await it.new()
        receipts = await asyncio.gather(*(it.send(session_id, "again", "same") for _ in range(10)))
        await it.ended(session_id, 1)
        assert len({receipt.turn_id for receipt in receipts}) == 1
        assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 9
        later = await it.send(session_id, "again", "same")
        assert later.duplicate
        assert len(await it.turns(session_id)) == 1


async def test_who_waits_is_told_to_everybody() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new()
        await it.send(session_id, "first", "a")
        await curtain.playing()
        await it.send(session_id, "second", "b")
        await it.send(session_id, "third", "c")
        assert (await it.manager.session(ANNA, session_id)).runtime.queue_length == 2
        curtain.raised.set()
        await it.ended(session_id, 3)
        queues = [[m.message_id for m in e.queue] for e in await it.of(session_id, "queue_changed")]
        assert ["b", "c"] in queues
        assert queues[-1] == []


async def test_a_sender_who_will_not_wait_is_refused() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new()
        await it.send(session_id, "first")
        await curtain.playing()
        with pytest.raises(Conflict) as refused:
            await it.send(session_id, "second", when_busy="reject")
        assert refused.value.code == "session_busy"
        curtain.raised.set()
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        await it.send(session_id, "second", when_busy="reject")
        await it.ended(session_id, 2)


async def test_a_queue_has_an_end() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new()
        await it.send(session_id, "first")
        await curtain.playing()
        for _ in range(MAX_WAITING):
            await it.send(session_id, "more")
        with pytest.raises(RateLimited) as refused:
            await it.send(session_id, "too much")
        assert refused.value.code == "queue_full"
        await it.manager.stop_session(ANNA, session_id)
        assert {turn.status for turn in await it.turns(session_id)} == {TurnStatus.CANCELLED}


async def test_an_interrupt_that_the_agent_hears_ends_its_turn_only() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new()
        await it.send(session_id, "long")
        await curtain.playing()
        await it.send(session_id, "next")
        assert await it.manager.interrupt(ANNA, session_id, None)
        await curtain.playing(2)
        curtain.raised.set()
        first, second = await it.ended(session_id, 2)
        assert first.status is TurnStatus.CANCELLED
        assert second.status is TurnStatus.COMPLETED
        assert len(it.sandboxes.made) == 1


async def test_a_queued_message_is_withdrawn_without_a_touch_on_the_turn_under_way() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new()
        first = await it.send(session_id, "long")
        (await curtain.playing()).text("early", "so far")
        second = await it.send(session_id, "not any more")
        third = await it.send(session_id, "still")
        assert await it.manager.interrupt(ANNA, session_id, second.turn_id)
        (withdrawn,) = await it.ended(session_id, 1)
        assert withdrawn.turn_id == second.turn_id
        assert withdrawn.status is TurnStatus.CANCELLED
        assert await it.phase(session_id) is Phase.RUNNING
        curtain.raised.set()
        ended = await it.ended(session_id, 3)
        assert [turn.turn_id for turn in ended] == [second.turn_id, first.turn_id, third.turn_id]
        assert [turn.status for turn in ended[1:]] == [TurnStatus.COMPLETED] * 2
        assert [stage.message for stage in curtain.stages] == ["long", "still"]
        assert_orderly(await it.events(session_id))


async def test_a_stop_ends_the_turn_and_keeps_the_session() -> None:
    async with world(never_rests) as it:
        session_id = await it.new(message="work")
        await it.reaches(session_id, Phase.RUNNING)
        stopped = await it.manager.stop_session(ANNA, session_id)
        assert stopped.runtime.phase is Phase.DORMANT
        assert stopped.runtime.sandbox is None
        assert not it.sandboxes.living()
        (turn,) = await it.ended(session_id, 1)
        assert (turn.status, turn.stop_reason) == (TurnStatus.CANCELLED, "stopped")
        assert_orderly(await it.events(session_id))


async def test_a_stop_of_a_sleeping_session_is_nothing() -> None:
    async with world() as it:
        session_id = await it.new()
        assert (await it.manager.stop_session(ANNA, session_id)).runtime.phase is Phase.DORMANT
        assert await it.events(session_id) == []


async def test_the_next_turn_is_not_told_before_the_end_of_this_one() -> None:
    """Even when the agent runs ahead and all its lines arrive at once."""

    async def script(stage: Stage) -> None:
        stage.text("first", "one")
        stage.rest()
        stage.tell(AgentTurnBegan())
        stage.text("second", "by myself")
        stage.rest(autonomous=True)

    async with world(script) as it:
        session_id = await it.new(message="hello")
        mine, its_own = await it.ended(session_id, 2)
        assert mine.message_id is not None
        assert its_own.message_id is None
        blocks = {e.block.id: e.block for e in await it.of(session_id, "block_complete")}
        assert blocks["first"].turn_id == mine.turn_id
        assert blocks["second"].turn_id == its_own.turn_id
        assert_orderly(await it.events(session_id))


async def test_a_message_waits_while_the_agent_works_by_itself() -> None:
    async def script(stage: Stage) -> None:
        await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        stage = it.sandboxes.made[0].runner.stage()
        stage.tell(AgentTurnBegan())
        await it.reaches(session_id, Phase.RUNNING)
        await it.send(session_id, "mine")
        stage.text("own", "thoughts")
        stage.rest(autonomous=True)
        ended = await it.ended(session_id, 3)
        assert [turn.message_id is None for turn in ended] == [False, True, False]


async def test_a_subagent_in_the_background_outlives_the_turn_and_ends_with_its_sandbox() -> None:
    async def script(stage: Stage) -> None:
        agent = Subagent(id="sub", subagent_id="child", status=SubagentStatus.RUNNING, timestamp=now())
        stage.tell(
            BlockStart(block=agent.model_copy(update={"state": BlockState.STREAMING})),
            BlockComplete(block_id="sub", block=agent),
        )
        await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="go")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        (running,) = (await it.manager.snapshot(ANNA, session_id)).subagents
        assert running.status is SubagentStatus.RUNNING
        await it.manager.stop_session(ANNA, session_id)
        (cancelled,) = (await it.manager.snapshot(ANNA, session_id)).subagents
        assert cancelled.status is SubagentStatus.CANCELLED


async def test_options_changed_while_the_sandbox_wakes_reach_the_agent() -> None:
    async with world() as it:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait(_: SandboxSpec) -> None:
            reached.set()
            await go_on.wait()

        it.sandboxes.before_create = wait
        session_id = await it.new(message="hello", session_options={"model": "small"})
        await reached.wait()
        await it.manager.update_options(ANNA, session_id, {"model": "large"})
        go_on.set()
        await it.ended(session_id, 1)
        runner = it.sandboxes.made[0].runner
        assert runner.started is not None
        assert runner.started["options"] == {"model": "large"}
        await it.manager.update_options(ANNA, session_id, {"mode": "plan"})
        assert [f["options"] for f in runner.commands if f["k"] == "options"] == [{"mode": "plan"}]
        with pytest.raises(InvalidRequest):
            await it.manager.update_options(ANNA, session_id, {"refused": 1})


async def test_two_changes_of_options_at_once_both_count() -> None:
    async with world() as it:
        session_id = await it.new()
        await asyncio.gather(
            it.manager.update_options(ANNA, session_id, {"a": 1}),
            it.manager.update_options(ANNA, session_id, {"b": 2}),
        )
        assert (await it.manager.session(ANNA, session_id)).session_options == {"a": 1, "b": 2}


async def test_a_snapshot_in_mid_turn_and_the_events_after_it_make_the_whole() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        block = {
            "id": "b",
            "type": "assistant_text",
            "state": "streaming",
            "timestamp": "2026-01-01T00:00:00Z",
        }
        stage.line({"event": {"type": "block_start", "block": block}})
        stage.tell(TextDelta(block_id="b", delta="so "))
        await eventually_told(it, session_id, "text_delta")
        snapshot = await it.manager.snapshot(ANNA, session_id)
        curtain.raised.set()
        await it.ended(session_id, 1)
        replay = await it.log.since(session_id, snapshot.position)
        assert isinstance(replay, Replay)
        joined = Conversation([StoredBlock(index, each) for index, each in enumerate(snapshot.blocks)])
        for entry in replay.entries:
            joined.apply(entry.event)
        assert joined.blocks(100)[0] == (await it.manager.snapshot(ANNA, session_id)).blocks
