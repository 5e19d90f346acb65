"""One session whose parts fail: sandboxes, agents, connections, and everything at the wrong moment."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.events import TextDelta
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnEnded
from agent_runtime.testing.scripted_agent import ScriptedAgent, ScriptedTranslator
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime_sandbox.frames import Frame
from tests.runtime.scripts import Curtain, assert_orderly, never_rests, others_get_on
from tests.runtime.world import ANNA, World, world
from tests.waiting import eventually


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
        if stage.message == "die":
            stage.text("begun", "I begin.")
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new()
        await it.send(session_id, "die")
        await it.reaches_events(session_id, "block_complete", 2)
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
            await others_get_on()
            go_on.set()
        await it.ended(session_id, 2)
        assert it.gateway.opened == {session_id}


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
        await it.reaches_events(session_id, "file_changed", 2)
        file = await it.manager.file(ANNA, session_id, "f")
        assert file.content == "newest"
        await it.manager.sync_session(ANNA, session_id)
        assert (await it.manager.file(ANNA, session_id, "f")).content == "newest"


async def only_the_first_turn_fails(it: World, session_id: str) -> None:
    """By a defect of ours; the next message is answered."""
    (failed,) = await it.ended(session_id, 1)
    assert failed.error is not None
    assert failed.error.code == "internal"
    await it.send(session_id, "hello")
    assert (await it.ended(session_id, 2))[-1].status is TurnStatus.COMPLETED


async def test_a_native_line_that_breaks_the_translator_fails_the_turn_and_nothing_else() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "boom":
            stage.write("kept.txt", b"all the same")
            stage.line({"report": "ended", "status": "failed", "error": {"nonsense": True}})
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="boom")
        await only_the_first_turn_fails(it, session_id)
        assert it.sandboxes.made[0].stopped
        assert it.sandboxes.made[1].runner.files == {"kept.txt": b"all the same"}


@pytest.mark.parametrize("lines", [1, 3])
async def test_a_translator_that_makes_a_delta_of_no_text_fails_the_turn_and_nothing_else(lines: int) -> None:
    class Careless(ScriptedTranslator):
        def translate(self, line: Mapping[str, Any], *, turn_id: str | None, at: datetime) -> Any:
            if "text" in line:
                return (TextDelta(block_id="b", delta=line["text"], turn_id=turn_id),)
            return super().translate(line, turn_id=turn_id, at=at)

    class CarelessAgent(ScriptedAgent):
        def translator(self, memory: Mapping[str, Any] | None = None) -> Careless:
            return Careless(memory or {})

    async def script(stage: Stage) -> None:
        if stage.message == "boom":
            for _ in range(lines):
                stage.line({"text": None})
            await never_rests(stage)
        else:
            await echo(stage)

    async with world(script, agents=[CarelessAgent()]) as it:
        session_id = await it.new(message="boom")
        await only_the_first_turn_fails(it, session_id)
        assert_orderly(await it.events(session_id))


async def test_the_report_of_a_turn_that_ended_otherwise_changes_nothing() -> None:
    async with world() as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        it.sandboxes.made[0].runner.stage().tell(AgentTurnEnded(status=TurnStatus.COMPLETED))
        await it.send(session_id, "more")
        await it.ended(session_id, 2)
        assert len(await it.of(session_id, "turn_end")) == 2


async def test_a_log_that_breaks_once_fails_a_turn_and_nothing_else() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        it.log.breaks_at = "file_changed"
        stage.write("a.txt", b"a")
        (failed,) = await it.ended(session_id, 1)
        assert failed.error is not None
        assert failed.error.code == "internal"
        curtain.raised.set()
        await it.send(session_id, "hello")
        assert (await it.ended(session_id, 2))[-1].status is TurnStatus.COMPLETED
        assert it.sandboxes.made[1].runner.files == {"a.txt": b"a"}
