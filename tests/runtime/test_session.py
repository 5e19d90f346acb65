"""One session, told from outside: what is sent, what is seen, and what fails in between."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from agent_runtime.blocks import BlockState, Subagent, SubagentStatus, ToolUse
from agent_runtime.clock import now
from agent_runtime.errors import Conflict, InvalidRequest, RateLimited, SandboxFault
from agent_runtime.events import BlockComplete, BlockStart, TextDelta
from agent_runtime.ports import AgentIdentity, AgentTurnBegan, AgentTurnEnded, SandboxSpec
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.turns import MAX_WAITING
from agent_runtime_sandbox.frames import Frame
from tests.runtime.world import ANNA, World, world
from tests.waiting import eventually


class Curtain:
    """A script that plays `echo` for each message once it is raised, or until it is interrupted."""

    def __init__(self) -> None:
        self.raised = asyncio.Event()
        self.stages: list[Stage] = []

    async def __call__(self, stage: Stage) -> None:
        self.stages.append(stage)
        open_, interrupted = self.raised.wait(), stage.interrupted.wait()
        done = asyncio.gather(open_, asyncio.sleep(0))
        waiting = asyncio.gather(interrupted, asyncio.sleep(0))
        await asyncio.wait([done, waiting], return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        waiting.cancel()
        if stage.interrupted.is_set():
            stage.rest(TurnStatus.CANCELLED, stop_reason="interrupted")
        else:
            await echo(stage)

    async def playing(self, count: int = 1) -> Stage:
        await eventually(lambda: len(self.stages) >= count)
        return self.stages[count - 1]


async def never_rests(stage: Stage) -> None:
    """Opens a block and a tool call, and works on."""
    tool = ToolUse(id="t", tool_name="Bash", tool_use_id="call", timestamp=now())
    stage.tell(
        BlockStart(block=tool.model_copy(update={"state": BlockState.STREAMING})),
        BlockComplete(block_id="t", block=tool),
    )
    half = {"id": "half", "type": "assistant_text", "state": "streaming", "timestamp": "2026-01-01T00:00:00Z"}
    stage.line({"event": {"type": "block_start", "block": half}})
    stage.tell(TextDelta(block_id="half", delta="I was about to"))


def kinds(events: list[Any]) -> list[str]:
    return [event.type for event in events]


def assert_orderly(events: list[Any]) -> None:
    """What holds for every log: turns begin and end once, blocks are closed, tools answered."""
    turn: str | None = None
    open_blocks: set[str] = set()
    ended: set[str] = set()
    called: list[str] = []
    answered: list[str] = []
    for event in events:
        match event.type:
            case "turn_start":
                assert event.turn.turn_id not in ended
                turn = turn or event.turn.turn_id
            case "turn_end":
                assert event.turn.turn_id not in ended
                ended.add(event.turn.turn_id)
                if turn == event.turn.turn_id:
                    turn = None
                    assert not open_blocks
            case "block_start":
                open_blocks.add(event.block.id)
            case "block_complete":
                open_blocks.remove(event.block_id)
                if event.block.type == "tool_use":
                    called.append(event.block.tool_use_id)
                if event.block.type == "tool_result":
                    answered.append(event.block.tool_use_id)
    assert turn is None
    assert not open_blocks
    assert sorted(set(called)) == sorted(answered)


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


async def test_an_interrupt_that_nobody_hears_ends_the_sandbox_and_the_next_message_works() -> None:
    async def script(stage: Stage) -> None:
        await (never_rests(stage) if stage.message == "deaf" else echo(stage))

    async with world(script, interrupt_grace_s=0.05) as it:
        session_id = await it.new()
        await it.send(session_id, "deaf")
        await eventually(lambda: it.sandboxes.made and it.sandboxes.made[0].runner.commands)
        await it.reaches(session_id, Phase.RUNNING)
        assert await it.manager.interrupt(ANNA, session_id, None)
        (cut,) = await it.ended(session_id, 1)
        assert cut.status is TurnStatus.CANCELLED
        assert cut.stop_reason == "interrupt_expired"
        await it.send(session_id, "hello")
        _, after = await it.ended(session_id, 2)
        assert after.status is TurnStatus.COMPLETED
        assert [sandbox.stopped > 0 for sandbox in it.sandboxes.made] == [True, False]
        assert_orderly(await it.events(session_id))


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


async def test_a_sandbox_that_dies_in_mid_turn_fails_it_and_the_next_one_has_everything_back() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "die":
            stage.tell(AgentIdentity("agent-1"))
            stage.write("work/done.txt", b"precious")
            stage.remember({"n": 1}, {"n": 2})
            await never_rests(stage)
        else:
            stage.remember({"n": 3})
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new()
        await it.send(session_id, "die")
        await eventually(lambda: "append_transcript" in it.store.calls and "save_files" in it.store.calls)
        it.sandboxes.made[0].die()
        (failed,) = await it.ended(session_id, 1)
        assert failed.status is TurnStatus.FAILED
        assert failed.error is not None
        assert failed.error.code == "sandbox_lost"
        await it.send(session_id, "go on")
        await it.ended(session_id, 2)
        second = it.sandboxes.made[1].runner
        assert second.files == {"work/done.txt": b"precious"}
        assert second.recalled == {"main": [{"n": 1}, {"n": 2}]}
        assert second.started is not None
        assert second.started["resume"] == "agent-1"
        (restored,) = await it.of(session_id, "workspace_restored")
        assert (restored.from_sandbox_id, restored.restored_files) == ("sb-0", 1)
        kept = await it.store.inner.load_transcript(session_id)
        assert kept == {"main": [{"n": 1}, {"n": 2}, {"n": 3}]}
        assert_orderly(await it.events(session_id))


async def test_what_dies_with_a_queue_goes_on_with_the_queue() -> None:
    async def script(stage: Stage) -> None:
        if stage.message != "die":
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new()
        await it.send(session_id, "die")
        await it.reaches(session_id, Phase.RUNNING)
        await it.send(session_id, "after")
        it.sandboxes.made[0].die()
        failed, after = await it.ended(session_id, 2)
        assert (failed.status, after.status) == (TurnStatus.FAILED, TurnStatus.COMPLETED)


async def test_an_agent_that_exits_fails_its_turn_and_its_files_are_kept() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "exit":
            stage.write("last.txt", b"words")
            stage.exit()
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new()
        await it.send(session_id, "exit")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "agent_failed"
        await it.send(session_id, "hello")
        await it.ended(session_id, 2)
        assert it.sandboxes.made[1].runner.files == {"last.txt": b"words"}


async def test_a_sandbox_that_cannot_be_made_fails_all_who_wait_and_the_next_message_tries_again() -> None:
    async with world() as it:
        may_fail = asyncio.Event()

        async def fail(_: SandboxSpec) -> None:
            await may_fail.wait()
            raise SandboxFault("No room.", code="sandbox_unavailable")

        works, it.sandboxes.before_create = it.sandboxes.before_create, fail
        session_id = await it.new()
        await it.send(session_id, "one")
        await it.send(session_id, "two")
        may_fail.set()
        ended = await it.ended(session_id, 2)
        assert [turn.error.code for turn in ended if turn.error] == ["sandbox_unavailable"] * 2
        await it.reaches(session_id, Phase.FAILED)
        assert not it.gateway.opened
        it.sandboxes.before_create = works
        await it.send(session_id, "three")
        assert (await it.ended(session_id, 3))[-1].status is TurnStatus.COMPLETED
        assert_orderly(await it.events(session_id))


async def test_a_wake_that_takes_too_long_is_given_up() -> None:
    async with world(wake_timeout_s=0.05) as it:

        async def hang(_: SandboxSpec) -> None:
            await asyncio.Event().wait()

        it.sandboxes.before_create = hang
        session_id = await it.new(message="hello")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "sandbox_timeout"


async def test_a_runner_that_answers_no_start_leaves_no_sandbox() -> None:
    async with world(wake_timeout_s=0.1) as it:

        async def deaf_from_the_start(_: SandboxSpec) -> None:
            async def before(frame: Frame) -> bool:
                return frame["k"] != "start"

            it.sandboxes.script = echo
            made = it.sandboxes.made
            asyncio.get_running_loop().call_soon(lambda: setattr(made[-1].runner, "before", before))

        it.sandboxes.before_create = deaf_from_the_start
        session_id = await it.new(message="hello")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "sandbox_timeout"
        assert not it.sandboxes.living()


async def test_an_unexpected_error_while_waking_is_a_failed_wake_and_nothing_worse() -> None:
    async with world() as it:

        async def break_(_: SandboxSpec) -> None:
            raise ZeroDivisionError

        works, it.sandboxes.before_create = it.sandboxes.before_create, break_
        session_id = await it.new(message="hello")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "internal"
        it.sandboxes.before_create = works
        await it.send(session_id, "again")
        assert (await it.ended(session_id, 2))[-1].status is TurnStatus.COMPLETED


async def test_an_agent_that_dies_while_its_sandbox_wakes_fails_the_wake() -> None:
    async with world() as it:
        # The store holds the wake up after `start` was answered and before the session knows.
        it.store.only = {"update_session"}
        it.store.hold()
        session_id = await it.new(message="hello")
        await eventually(lambda: "update_session" in it.store.calls)
        it.sandboxes.made[0].runner.end_agent("died")
        it.sandboxes.made[0].die()
        await others_get_on()
        it.store.let_go()
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code in {"agent_failed", "sandbox_lost"}
        assert await it.phase(session_id) is Phase.FAILED


async def others_get_on() -> None:
    """Let every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_stop_while_waking_leaves_nothing() -> None:
    async with world() as it:
        reached, never = asyncio.Event(), asyncio.Event()

        async def hang(_: SandboxSpec) -> None:
            reached.set()
            await never.wait()

        it.sandboxes.before_create = hang
        session_id = await it.new(message="hello")
        await reached.wait()
        stopped = await it.manager.stop_session(ANNA, session_id)
        assert stopped.runtime.phase is Phase.DORMANT
        assert not it.sandboxes.made
        assert not it.gateway.opened
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.CANCELLED


async def test_a_stop_and_a_new_message_while_a_failed_wake_is_cleaned_up_do_not_meet() -> None:
    """The old attempt must be gone before the new one opens its way to the model."""
    async with world() as it:
        cleaning, go_on = asyncio.Event(), asyncio.Event()
        close = it.gateway.close

        async def slow_close(session_id: str) -> None:
            cleaning.set()
            await go_on.wait()
            await close(session_id)

        async def fail(_: SandboxSpec) -> None:
            raise SandboxFault("No room.")

        works, it.sandboxes.before_create = it.sandboxes.before_create, fail
        it.gateway.close = slow_close  # type: ignore[method-assign]
        session_id = await it.new(message="one")
        await cleaning.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(it.manager.stop_session(ANNA, session_id))
            await asyncio.sleep(0)
            it.sandboxes.before_create = works
            await it.send(session_id, "two")
            go_on.set()
        await it.ended(session_id, 2)
        assert it.gateway.opened == {session_id}


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


async def test_what_the_agent_says_after_its_turn_was_ended_is_not_told() -> None:
    async with world(never_rests, interrupt_grace_s=0.02) as it:
        session_id = await it.new(message="work")
        await it.reaches(session_id, Phase.RUNNING)
        runner = it.sandboxes.made[0].runner

        async def chatter(frame: Frame) -> bool:
            if frame["k"] in {"sync", "close"}:
                runner.stage().text(f"late-{len(runner.commands)}", "and another thing")
            return True

        runner.before = chatter
        await it.manager.interrupt(ANNA, session_id, None)
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.DORMANT)
        events = await it.events(session_id)
        assert not [e for e in events if e.type == "block_start" and e.block.id.startswith("late")]
        assert_orderly(events)


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


async def test_a_broken_connection_costs_nothing() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        stage.text("before", "one")
        it.sandboxes.made[0].break_connections()
        stage.text("after", "two")
        curtain.raised.set()
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        blocks = [e.block.id for e in await it.of(session_id, "block_complete")]
        assert [block for block in blocks if block in {"before", "after"}] == ["before", "after"]
        await it.send(session_id, "and again")
        await it.ended(session_id, 2)
        assert len(it.sandboxes.made) == 1


async def test_a_large_file_that_becomes_small_while_it_is_read_keeps_its_newest_content() -> None:
    async with world(Curtain()) as it:
        session_id = await it.new(message="hello")
        await it.reaches(session_id, Phase.RUNNING)
        runner = it.sandboxes.made[0].runner

        async def overtake(frame: Frame) -> bool:
            if frame["k"] == "read":
                stale, runner.files["f"] = runner.files["f"], b""
                runner.change("f", b"newest")
                runner.files["f"] = stale
            return True

        runner.before = overtake
        runner.change("f", bytes(100_000))
        await eventually(lambda: any(frame["k"] == "read" for frame in runner.commands))
        file = await it.manager.file(ANNA, session_id, "f")
        assert file.content == "newest"
        await it.manager.sync_session(ANNA, session_id)
        assert (await it.manager.file(ANNA, session_id, "f")).content == "newest"


async def test_a_native_line_that_breaks_the_translator_fails_the_turn_and_nothing_else() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "boom":
            stage.write("kept.txt", b"all the same")
            stage.line({"report": "ended", "status": "failed", "error": {"nonsense": True}})
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="boom")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "internal"
        await it.send(session_id, "hello")
        assert (await it.ended(session_id, 2))[-1].status is TurnStatus.COMPLETED
        assert it.sandboxes.made[0].stopped
        assert it.sandboxes.made[1].runner.files == {"kept.txt": b"all the same"}


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
        assert [b.id for b in snapshot.blocks][-1] == "b"
        assert snapshot.position == await it.log.head(session_id)
        curtain.raised.set()
        await it.ended(session_id, 1)


async def eventually_told(it: World, session_id: str, kind: str) -> None:
    async with asyncio.timeout(5):
        while not await it.of(session_id, kind):
            await it.log.wait(session_id, await it.log.head(session_id))


async def test_the_report_of_a_turn_that_ended_otherwise_changes_nothing() -> None:
    async with world() as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        it.sandboxes.made[0].runner.stage().tell(AgentTurnEnded(status=TurnStatus.COMPLETED))
        await it.send(session_id, "more")
        await it.ended(session_id, 2)
        assert len(await it.of(session_id, "turn_end")) == 2
