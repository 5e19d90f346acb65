"""A message whose sandbox dies before the agent did anything for it is tried once more, in another one."""

import asyncio

from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.scripts import Curtain, assert_orderly, others_get_on
from tests.runtime.world import World, killed, runtime, world
from tests.waiting import eventually


class Silent:
    """A script that says nothing for the messages `deaf_to`, counted from 1, and echoes all others."""

    def __init__(self, *deaf_to: int) -> None:
        self.heard: list[str] = []
        self._deaf_to = deaf_to

    async def __call__(self, stage: Stage) -> None:
        self.heard.append(stage.turn_id)
        if len(self.heard) in self._deaf_to:
            await asyncio.Event().wait()
        await echo(stage)


async def begun_once_and_orderly(it: World, session_id: str, turns: int) -> None:
    assert len(await it.of(session_id, "turn_start")) == turns
    assert_orderly(await it.events(session_id))


async def test_a_death_after_the_message_was_accepted_and_before_it_was_handed_over() -> None:
    async with world(echo) as it:
        session_id = await it.new(message="first")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        await others_get_on()
        await it.send(session_id, "second")
        it.store.hold()  # the turn cannot begin yet
        it.sandboxes.made[0].die()
        await eventually(lambda: it.manager._loaded.find(session_id)._machine.state.phase is Phase.STOPPING)
        it.store.let_go()
        _, turn = await it.ended(session_id, 2)
        assert turn.status is TurnStatus.COMPLETED
        assert len(it.sandboxes.made) == 2
        await begun_once_and_orderly(it, session_id, 2)


async def test_a_death_after_the_message_was_handed_over_and_before_anything_came_of_it() -> None:
    agent = Silent(1)
    async with world(agent) as it:
        session_id = await it.new(message="hello")
        await eventually(lambda: agent.heard)
        it.sandboxes.made[0].die()
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        assert agent.heard == [turn.turn_id] * 2
        await begun_once_and_orderly(it, session_id, 1)


async def test_a_second_death_fails_the_turn_and_not_those_who_wait() -> None:
    agent = Silent(1, 2)
    async with world(agent) as it:
        session_id = await it.new(message="hello")
        await it.send(session_id, "next")
        for number in (0, 1):
            await eventually(lambda at=number: len(agent.heard) > at)
            it.sandboxes.made[number].die()
        failed, following = await it.ended(session_id, 2)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == (TurnStatus.FAILED, "sandbox_lost")
        assert following.status is TurnStatus.COMPLETED
        assert agent.heard == [failed.turn_id] * 2 + [following.turn_id]
        await begun_once_and_orderly(it, session_id, 2)


async def test_a_second_death_while_its_sandbox_is_made_fails_the_turn_too() -> None:
    agent = Silent(1)
    async with world(agent) as it:
        session_id = await it.new(message="hello")
        await eventually(lambda: agent.heard)

        async def no_more(_: object) -> None:
            raise OSError

        it.sandboxes.before_create = no_more
        it.sandboxes.made[0].die()
        (failed,) = await it.ended(session_id, 1)
        assert failed.status is TurnStatus.FAILED
        await begun_once_and_orderly(it, session_id, 1)


async def test_what_the_agent_began_is_never_done_twice() -> None:
    heard = []

    async def script(stage: Stage) -> None:
        heard.append(stage.turn_id)
        stage.tell(AgentIdentity("agent"))
        stage.remember({"n": 1})
        await asyncio.Event().wait()

    async with world(script) as it:
        session_id = await it.new(message="hello")
        await eventually(lambda: it.store.calls.count("append_transcript"))
        it.sandboxes.made[0].die()
        (failed,) = await it.ended(session_id, 1)
        assert failed.status is TurnStatus.FAILED
        assert len(heard) == 1


class OneAfterTheOther:
    """Answers in the order in which it is handed messages; dies over `second`, once it has begun it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.may_die = asyncio.Event()
        self._turn = asyncio.Lock()

    async def __call__(self, stage: Stage) -> None:
        interrupted = stage.interrupted
        async with self._turn:
            self.heard.append(str(stage.message))
            if stage.message == "first":
                await interrupted.wait()
                stage.rest(TurnStatus.CANCELLED, message_ids=(stage.turn_id,))
            elif stage.message == "second":
                stage.remember({"n": 0})
                await self.may_die.wait()
                stage.exit(3)
            else:
                await echo(stage)


async def test_what_the_agent_was_handed_before_the_message_that_comes_next_is_never_done_twice() -> None:
    agent = OneAfterTheOther()
    async with world(agent) as it:
        session_id = await it.new(message="first")
        await eventually(lambda: agent.heard == ["first"])
        assert (await it.send(session_id, "second", when_busy="steer")).outcome == "steered"
        await it.send(session_id, "third", when_busy="interrupt")
        await eventually(lambda: agent.heard == ["first", "second"])
        agent.may_die.set()
        turns = await it.ended(session_id, 3)
        assert agent.heard[:2] == ["first", "second"]
        assert ["third" in each for each in agent.heard[2:]] == [True], "behind a note of the new sandbox"
        assert [turn.status for turn in turns] == [
            TurnStatus.CANCELLED,
            TurnStatus.CANCELLED,
            TurnStatus.COMPLETED,
        ]
        await begun_once_and_orderly(it, session_id, 3)


async def test_what_an_earlier_process_handed_over_is_not_tried_again_by_the_next_one() -> None:
    """It cannot know what came of it: the checkpoint may be newer than the message."""
    agent, store = Silent(1), MemoryPersistence()
    async with ScriptedSandboxes(agent) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            await eventually(lambda: agent.heard)
            await killed(it)
        async with runtime(sandboxes, store) as it:
            await it.reaches(session_id, Phase.RUNNING)
            sandboxes.made[0].die()
            (failed,) = await it.ended(session_id, 1)
            assert failed.status is TurnStatus.FAILED
            assert len(agent.heard) == 1


async def test_a_message_that_met_an_agent_on_its_way_out_goes_to_another() -> None:
    """The runtime died while it put the agent away; whoever comes next finds it still running."""
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True, agent_idle_timeout_s=0.02) as it:
            session_id = await it.new(message="first")
            await curtain.playing()
            (sandbox,) = sandboxes.made
            asked = asyncio.Event()

            async def does_not_get_to_it(frame: Frame) -> bool:
                if frame["k"] == "close":
                    asked.set()
                return frame["k"] != "close"

            sandbox.runner.before = does_not_get_to_it
            curtain.raised.set()
            await it.ended(session_id, 1)
            await asked.wait()
            await it.send(session_id, "second")
            await killed(it)

        async def gets_to_it_now(frame: Frame) -> bool:
            if frame["k"] == "message":
                sandbox.runner.end_agent("closed")
            return True

        sandbox.runner.before = gets_to_it_now
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 2
            await begun_once_and_orderly(it, session_id, 1)
