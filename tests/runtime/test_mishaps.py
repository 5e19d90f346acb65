"""What ended a sandbox or its agent is told by its name, to the user and to the next agent."""

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import Turn, TurnStatus
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.scripts import Curtain, never_rests
from tests.runtime.world import World, killed, runtime, world
from tests.waiting import eventually

FULL = "The sandbox's memory of 64 MiB was used up; the system ended what took it."


def out_of_memory() -> SandboxFault:
    return SandboxFault(FULL, code="sandbox_out_of_memory", retryable=False)


class Told:
    """A script that works without end at first, then echoes; `messages` is what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def __call__(self, stage: Stage) -> None:
        self.messages.append(str(stage.message))
        await (never_rests if len(self.messages) == 1 else echo)(stage)


async def test_memory_that_ended_a_sandbox_is_why_its_turn_failed_and_the_next_agent_knows() -> None:
    agent = Told()
    async with world(agent) as it:
        session_id = await it.new(message="first")
        await eventually(lambda: "save_blocks" in it.store.calls)
        it.sandboxes.made[0].fate = out_of_memory()
        it.sandboxes.made[0].die()
        (turn,) = await it.ended(session_id, 1)
        assert_failed(turn, "sandbox_out_of_memory", FULL, retryable=False)
        await it.send(session_id, "second")
        await it.ended(session_id, 2)
        await it.send(session_id, "third")
        await it.ended(session_id, 3)
        assert [FULL in message for message in agent.messages] == [False, True, False]


async def test_an_agent_that_was_killed_for_its_memory_takes_the_same_way() -> None:
    async def dies(stage: Stage) -> None:
        await never_rests(stage)
        it.sandboxes.made[-1].fate = out_of_memory()
        stage.exit(-9)

    async with world(dies) as it:
        session_id = await it.new(message="first")
        (turn,) = await it.ended(session_id, 1)
        assert_failed(turn, "sandbox_out_of_memory", FULL, retryable=False)


class TooSmall(ScriptedSandboxes):
    """Sandboxes in which no agent can be started."""

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        sandbox = await super().create(spec)

        async def starts(frame: Frame) -> bool:
            if frame["k"] == "start":
                sandbox.fate = out_of_memory()
                sandbox.die()
            return frame["k"] != "start"

        sandbox.runner.before = starts
        return sandbox


async def test_memory_that_does_not_suffice_for_the_agent_is_why_no_turn_begins() -> None:
    async with TooSmall() as sandboxes, runtime(sandboxes, MemoryPersistence()) as it:
        session_id = await it.new(message="first")
        (turn,) = await it.ended(session_id, 1)
        assert_failed(turn, "sandbox_out_of_memory", FULL, retryable=False)


async def test_an_agent_that_ended_by_itself_is_not_said_to_lack_memory() -> None:
    async def dies(stage: Stage) -> None:
        await never_rests(stage)
        it.sandboxes.made[-1].fate = out_of_memory()
        stage.exit(1)

    async with world(dies) as it:
        session_id = await it.new(message="first")
        (turn,) = await it.ended(session_id, 1)
        assert turn.error is not None
        assert turn.error.code == "agent_failed"


async def test_a_disk_that_is_overdrawn_ends_the_turn_and_the_sandbox() -> None:
    async def overdraws(stage: Stage) -> None:
        await never_rests(stage)
        stage.fault("out_of_disk")

    async with world(overdraws) as it:
        session_id = await it.new(message="first")
        (turn,) = await it.ended(session_id, 1)
        assert turn.error is not None
        assert (turn.error.code, turn.error.retryable) == ("sandbox_out_of_disk", False)
        await eventually(lambda: it.sandboxes.living() == [])


@pytest.mark.parametrize("code", ["sandbox_out_of_memory", "sandbox_expired"])
async def test_what_ended_it_while_no_runtime_was_there_is_told_by_the_next_one(code: str) -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            await curtain.playing()
            await killed(it)
        sandboxes.made[0].fate = SandboxFault(FULL, code=code, retryable=False)
        sandboxes.made[0].die()
        curtain.raised.set()
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert_failed(turn, code, FULL, retryable=False)
            await told_in_the_next(it, session_id, curtain)


async def told_in_the_next(it: World, session_id: str, curtain: Curtain) -> None:
    await it.send(session_id, "next")
    await it.ended(session_id, 2)
    assert FULL in str(curtain.stages[-1].message)


def assert_failed(turn: Turn, code: str, message: str, *, retryable: bool) -> None:
    assert turn.status is TurnStatus.FAILED
    assert turn.error is not None
    assert (turn.error.code, turn.error.message, turn.error.retryable) == (code, message, retryable)
