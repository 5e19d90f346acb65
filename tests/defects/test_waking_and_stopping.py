"""What goes in before the agent hears anything, and what is gone when a sandbox ends, whatever fails."""

from collections.abc import Callable
from typing import Any

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.scripts import Curtain, waits
from tests.runtime.world import ANNA, World, runtime, world
from tests.waiting import eventually

IN_ORDER = ["write", "transcript", "start", "message"]


async def works(stage: Stage) -> None:
    stage.tell(AgentIdentity("agent"))
    stage.write("deep/er/made.txt", b"made")
    stage.remember({"said": stage.message})
    stage.rest()


async def test_no_message_reaches_an_agent_before_its_files_and_its_memory_are_there() -> None:
    async with world(works) as it:
        given = (("a/b.txt", b"a"), ("empty", b""), ("binary", b"\xff\x00"))
        session_id = await it.new(workspace_files=given, message="first")
        await it.send(session_id, "at once")
        await it.ended(session_id, 2)
        await it.manager.stop_session(ANNA, session_id)
        await it.send(session_id, "again")
        await it.ended(session_id, 3)
        first, second = (each.runner for each in it.sandboxes.made)
        for runner in (first, second):
            came = [frame["k"] for frame in runner.commands if frame["k"] in IN_ORDER]
            assert came == sorted(came, key=IN_ORDER.index)
        assert second.files == dict(given) | {"deep/er/made.txt": b"made"}
        assert second.recalled == {"main": [{"said": "first"}, {"said": "at once"}]}


async def refuses_a_look(it: World) -> None:
    runner = it.sandboxes.made[0].runner

    async def no_sync(frame: Frame) -> bool:
        if frame["k"] == "sync":
            runner.pass_on({"k": "reply", "id": frame["id"], "ok": False, "error": {"message": "no"}})
        return frame["k"] != "sync"

    runner.before = no_sync


async def breaks_its_connection(it: World) -> None:
    it.sandboxes.made[0].break_connections()


@pytest.mark.parametrize("trouble", [refuses_a_look, breaks_its_connection])
async def test_a_sandbox_that_is_stopped_ends_whatever_fails_on_the_way(
    trouble: Callable[[World], Any],
) -> None:
    async with world(works, interrupt_grace_s=0.1) as it:
        session_id = await it.new(message="one")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        await trouble(it)
        await it.manager.stop_session(ANNA, session_id)
        assert it.sandboxes.living() == []
        assert not it.gateway.opened
        await it.send(session_id, "two")
        assert (await it.ended(session_id, 2))[1].status is TurnStatus.COMPLETED
        assert it.sandboxes.made[1].runner.files["deep/er/made.txt"] == b"made"


class Moody(ScriptedSandboxes):
    """Sandboxes of which nobody can tell whether they live: asking raises what it is told to raise."""

    raises: Exception = ZeroDivisionError("a foreign exception")

    async def create(self, spec: Any) -> ScriptedSandbox:
        sandbox = await super().create(spec)

        async def alive() -> bool:
            raise self.raises

        sandbox.alive = alive  # type: ignore[method-assign]
        return sandbox


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ZeroDivisionError("foreign"), "internal"), (SandboxFault("Nobody knows."), "sandbox_failed")],
)
async def test_a_provider_that_breaks_costs_one_turn_and_nobody_elses(raised: Exception, code: str) -> None:
    curtain = Curtain()

    async def script(stage: Stage) -> None:
        stage.text(f"{stage.turn_id}-first", "I begin.")  # from here on it is not safe to try again
        await (curtain if stage.message == "hang" else echo)(stage)

    sandboxes = Moody(script)
    sandboxes.raises = raised
    async with sandboxes, runtime(sandboxes, MemoryPersistence()) as it:
        hit, other = await it.new(message="hang"), await it.new(message="hello")
        await it.ended(other, 1)
        await it.reaches_events(hit, "block_complete", 2)
        (struck,) = [each for each in sandboxes.made if each.spec.session_id == hit]
        struck.break_connections()
        await eventually(lambda: struck not in sandboxes.living())
        await it.send(other, "still here")
        await it.ended(other, 2)
        curtain.raised.set()
        await it.send(hit, "again")
        lost, again = await it.ended(hit, 2)
        assert lost.error is not None
        assert lost.error.code == code
        assert again.status is TurnStatus.COMPLETED


async def test_nobody_is_told_of_a_session_after_its_end() -> None:
    async with world(waits) as it:
        session_id = await it.new(message="hello")
        await it.reaches(session_id, Phase.RUNNING)
        kinds: list[str] = []
        it.manager.watch(ANNA, lambda change: kinds.append(change.kind))
        await it.manager.delete_session(ANNA, session_id)
        other = await it.new(message="hello")
        await it.reaches(other, Phase.RUNNING)
        assert kinds.index("deleted") < kinds.index("created")
        assert kinds.count("deleted") == 1
        listed, _ = await it.manager.list_sessions(ANNA, limit=10, cursor=None)
        assert [session.session_id for session in listed] == [other]
