"""Messages that arrive in mid-turn: they wait, join the turn, end it, or are refused."""

import asyncio

import pytest

from agent_runtime.errors import Conflict
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentTookIn, AgentTurnBegan
from agent_runtime.runner_link import COMMAND_TIMEOUT_S
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.fast_time import told_fast
from tests.runtime.scripts import Curtain, assert_orderly, others_get_on
from tests.runtime.world import ANNA, killed, runtime, world
from tests.waiting import eventually


class Conversing:
    """Takes every message in; the first one's turn ends when it is told to, and names all it answered."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.may_rest = asyncio.Event()

    async def __call__(self, stage: Stage) -> None:
        self.stages.append(stage)
        if len(self.stages) > 1:
            stage.tell(AgentTookIn(stage.turn_id))
        else:
            stage.tell(AgentTurnBegan())
            await self.may_rest.wait()
            stage.text("answer", " and ".join(str(each.message) for each in self.stages))
            stage.rest(message_ids=tuple(each.turn_id for each in self.stages))


async def test_a_message_steers_the_turn_under_way() -> None:
    script = Conversing()
    async with world(script) as it:
        session_id = await it.new(message="sing")
        await eventually(lambda: script.stages)
        receipt = await it.send(session_id, "louder", "m2", when_busy="steer")
        assert (receipt.outcome, receipt.duplicate) == ("steered", False)
        (steered,) = await it.ended(session_id, 1)
        assert (steered.turn_id, steered.status, steered.stop_reason) == (
            receipt.turn_id,
            TurnStatus.COMPLETED,
            "steered",
        )
        script.may_rest.set()
        sung = (await it.ended(session_id, 2))[1]
        assert sung.status is TurnStatus.COMPLETED
        blocks = (await it.store.load_blocks(session_id, limit=9)).blocks
        assert [each.block.content for each in blocks] == ["sing", "louder", "sing and louder"]
        assert await it.phase(session_id) is Phase.READY
        again = await it.send(session_id, "louder", "m2", when_busy="steer")
        assert (again.turn_id, again.duplicate, again.outcome) == (receipt.turn_id, True, None)
        assert_orderly(await it.events(session_id))


async def test_steering_without_a_turn_begins_one() -> None:
    async with world(echo) as it:
        session_id = await it.new()
        assert (await it.send(session_id, "hello", when_busy="steer")).outcome == "started"
        await it.ended(session_id, 1)


async def test_a_message_that_the_agent_does_not_take_in_waits_for_its_turn() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="first")
        await curtain.playing()

        async def refuses(frame: dict[str, object]) -> bool:
            if frame["k"] == "message":
                it.sandboxes.made[0].runner.pass_on(
                    {"k": "reply", "id": frame["id"], "ok": False, "error": {"message": "not now"}}
                )
                return False
            return True

        runner = it.sandboxes.made[0].runner
        before, runner.before = runner.before, refuses
        await it.send(session_id, "waits")
        assert (await it.send(session_id, "second", when_busy="steer")).outcome == "queued"
        runner.before = before
        curtain.raised.set()
        turns = await it.ended(session_id, 3)
        assert [turn.stop_reason for turn in turns] == [None, None, None]
        assert [each.message for each in curtain.stages] == ["first", "waits", "second"]


def test_a_message_of_which_nobody_knows_whether_the_agent_has_it_comes_before_those_that_it_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        curtain = Curtain()
        async with world(curtain) as it:
            session_id = await it.new(message="first")
            await curtain.playing()

            async def says_nothing(frame: dict[str, object]) -> bool:
                return frame["k"] != "message"

            runner = it.sandboxes.made[0].runner
            before, runner.before = runner.before, says_nothing
            await it.send(session_id, "waits")
            assert (await it.send(session_id, "second", when_busy="steer")).outcome == "queued"
            await asyncio.sleep(2 * COMMAND_TIMEOUT_S)
            runner.before = before
            curtain.raised.set()
            await it.ended(session_id, 3)
            assert [each.message for each in curtain.stages] == ["first", "second", "waits"]

    told_fast(story(), monkeypatch)


async def test_steering_survives_a_kill_between_the_agent_and_the_record() -> None:
    script, store = Conversing(), MemoryPersistence()
    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="sing")
            await eventually(lambda: script.stages)
            it.store.only = {"save_turn"}
            waiting = await it.send(session_id, "louder", "m2")
            it.store.hold()  # from here on nothing about a turn is stored
            steered = it.manager._loaded.find(session_id)
            assert steered is not None
            await steered._holder.attached.deliver(waiting.turn_id, "louder")  # as steering does
            await others_get_on()
            await killed(it)
            it.store.let_go()
        script.may_rest.set()
        async with runtime(sandboxes, store) as it:
            await it.ended(session_id, 1)
            sung, louder = await it.turns(session_id)
            assert (louder.turn_id, louder.stop_reason) == (waiting.turn_id, "steered")
            assert sung.status is TurnStatus.COMPLETED
            assert await it.phase(session_id) is Phase.READY
            assert len(script.stages) == 2


async def test_a_message_that_interrupts_comes_next_and_before_those_that_wait() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="first")
        stage = await curtain.playing()
        waiting = await it.send(session_id, "waits")
        urgent = await it.send(session_id, "urgent", when_busy="interrupt")
        assert (waiting.outcome, urgent.outcome) == ("queued", "interrupted")
        await stage.interrupted.wait()
        curtain.raised.set()
        turns = await it.ended(session_id, 3)
        assert [turn.status for turn in turns] == [
            TurnStatus.CANCELLED,
            TurnStatus.COMPLETED,
            TurnStatus.COMPLETED,
        ]
        assert [turn.turn_id for turn in turns[1:]] == [urgent.turn_id, waiting.turn_id]


async def test_a_message_that_may_not_wait_is_refused_while_a_turn_is_under_way() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="first")
        await curtain.playing()
        with pytest.raises(Conflict) as busy:
            await it.send(session_id, "second", when_busy="reject")
        assert busy.value.code == "session_busy"
        curtain.raised.set()
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        assert (await it.send(session_id, "second", when_busy="reject")).outcome == "started"


async def test_a_message_withdrawn_from_the_queue_is_never_said() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="first")
        await curtain.playing()
        waiting = await it.send(session_id, "waits")
        await others_get_on()
        assert await it.manager.interrupt(ANNA, session_id, waiting.turn_id)
        (withdrawn,) = await it.ended(session_id, 1)
        assert (withdrawn.turn_id, withdrawn.status) == (waiting.turn_id, TurnStatus.CANCELLED)
        queues = [len(event.queue) for event in await it.of(session_id, "queue_changed")]
        assert queues[-2:] == [1, 0]
        curtain.raised.set()
        await it.ended(session_id, 2)
        assert [stage.message for stage in curtain.stages] == ["first"]
