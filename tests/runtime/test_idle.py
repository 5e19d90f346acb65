"""Sessions that nobody uses: agents hibernate, sandboxes are put away, sessions leave memory."""

import asyncio
from typing import Any

from agent_runtime.needs import SandboxNeeds
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.world import ANNA, PROFILE, World, killed, runtime, world
from tests.waiting import eventually

SOON: dict[str, Any] = {"agent_idle_timeout_s": 0.05, "sandbox_idle_timeout_s": 60.0}
SOON_ALL: dict[str, Any] = {
    "agent_idle_timeout_s": 0.02,
    "sandbox_idle_timeout_s": 0.05,
    "session_idle_timeout_s": 0.05,
}


async def remembers(stage: Stage) -> None:
    stage.tell(AgentIdentity("agent"))
    stage.write("a.txt", b"a")
    stage.remember({"said": stage.message})
    recalled = [entry["said"] for entry in stage.recalled.get("main", [])]
    stage.text(f"{stage.turn_id}-text", ", ".join(recalled))
    stage.rest()


def started(it: World) -> list[Any]:
    return [frame for each in it.sandboxes.made for frame in each.runner.commands if frame["k"] == "start"]


async def test_an_idle_agent_hibernates_and_goes_on_natively_at_the_next_message() -> None:
    async with world(remembers, **SOON) as it:
        session_id = await it.new(message="one")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.HIBERNATED)
        (sandbox,) = it.sandboxes.living()
        assert sandbox.runner.started is None
        assert sandbox.runner.files == {"a.txt": b"a"}
        await it.send(session_id, "two")
        await it.ended(session_id, 2)
        assert it.sandboxes.made == [sandbox]
        assert [start["options"]["resume"] for start in started(it)] == [None, "agent"]
        blocks = (await it.store.load_blocks(session_id, limit=9)).blocks
        assert [each.block.content for each in blocks] == ["one", "", "two", "one"]
        assert await it.of(session_id, "workspace_restored") == []
        await it.reaches(session_id, Phase.HIBERNATED)
        assert sandbox.runner.started is None


async def test_an_idle_sandbox_is_put_away_after_its_files_are_stored() -> None:
    async with world(remembers, agent_idle_timeout_s=60.0, sandbox_idle_timeout_s=0.05) as it:
        session_id = await it.new(message="one")
        await it.ended(session_id, 1)
        it.sandboxes.made[0].runner.change("late.txt", b"written after the turn")
        await it.reaches(session_id, Phase.DORMANT)
        assert it.sandboxes.living() == []
        stored = await it.store.load_manifest(session_id)
        assert [file.path for file in stored] == ["a.txt", "late.txt"]
        await it.send(session_id, "two")
        await it.ended(session_id, 2)
        (restored,) = await it.of(session_id, "workspace_restored")
        assert restored.restored_files == 2


async def one_that_came_later_hibernates(it: World) -> None:
    """So whoever rested before had all the time for it."""
    await it.reaches(await it.new(message="rests"), Phase.HIBERNATED)


async def test_what_works_in_the_background_keeps_its_agent_awake_over_a_restart_too() -> None:
    async def script(stage: Stage) -> None:
        if stage.message == "works":
            stage.line({"report": "at_work", "tasks": 1})
        stage.rest()

    store = MemoryPersistence()
    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True, **SOON) as it:
            session_id = await it.new(message="works")
            await it.ended(session_id, 1)
            await one_that_came_later_hibernates(it)
            assert await it.phase(session_id) is Phase.READY
            await killed(it)
        async with runtime(sandboxes, store, **SOON) as it:
            await it.manager.snapshot(ANNA, session_id)
            await one_that_came_later_hibernates(it)
            assert await it.phase(session_id) is Phase.READY
            sandboxes.made[0].runner.stage().line({"report": "at_work", "tasks": 0})
            await it.reaches(session_id, Phase.HIBERNATED)


async def test_a_long_turn_is_not_idle() -> None:
    go_on = asyncio.Event()

    async def script(stage: Stage) -> None:
        if stage.message == "long":
            await go_on.wait()
        await echo(stage)

    async with world(script, **SOON) as it:
        session_id = await it.new(message="long")
        await it.reaches(session_id, Phase.RUNNING)
        await one_that_came_later_hibernates(it)
        assert await it.phase(session_id) is Phase.RUNNING
        go_on.set()
        await it.ended(session_id, 1)


async def test_a_hibernated_sandbox_is_found_again_after_a_kill() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(remembers) as sandboxes:
        async with runtime(sandboxes, store, leaves=True, **SOON) as it:
            session_id = await it.new(message="one")
            await it.reaches(session_id, Phase.HIBERNATED)
            await killed(it)
        async with runtime(sandboxes, store, **SOON) as it:
            await it.manager.snapshot(ANNA, session_id)
            assert await it.phase(session_id) is Phase.HIBERNATED
            await it.send(session_id, "two")
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 1


async def test_a_session_that_nobody_uses_leaves_memory_and_comes_back() -> None:
    async with world(remembers, **SOON_ALL) as it:
        session_id = await it.new(message="one")
        changes: list[bool] = []
        it.manager.watch(ANNA, lambda change: changes.append(change.session.runtime.is_loaded))  # type: ignore[union-attr]
        await eventually(lambda: it.manager._loaded.find(session_id) is None)
        await eventually(lambda: changes and changes[-1] is False)
        assert it.sandboxes.living() == []
        assert not (await it.manager.session(ANNA, session_id)).runtime.is_loaded
        await it.send(session_id, "two")
        assert (await it.manager.session(ANNA, session_id)).runtime.is_loaded
        await it.ended(session_id, 1)
        blocks = (await it.store.load_blocks(session_id, limit=9)).blocks
        assert [each.block.content for each in blocks] == ["one", "", "two", "one"]


async def test_a_session_that_is_viewed_stays_in_memory() -> None:
    async with world(remembers, **SOON_ALL) as it:
        seen, unseen = await it.new(message="one"), await it.new(message="one")
        with it.manager.viewing(seen):
            await eventually(lambda: it.manager._loaded.find(unseen) is None)
            assert it.manager._loaded.find(seen) is not None
        await eventually(lambda: it.manager._loaded.find(seen) is None)


async def test_a_thousand_sessions_that_are_not_used_cost_rows() -> None:
    async with world(echo, **SOON_ALL) as it:
        sessions = [await it.new() for _ in range(1000)]
        for session_id in sessions[::100]:
            await it.send(session_id, "hello")
        await eventually(lambda: not it.manager._loaded._sessions, within=20)
        assert it.sandboxes.living() == []
        assert it.log._streams == {}
        listed, _ = await it.manager.list_sessions(ANNA, limit=1000, cursor=None)
        assert len(listed) == 1000


async def test_a_profile_says_for_itself_how_long_its_sandbox_may_rest() -> None:
    hasty = PROFILE.model_copy(update={"sandbox": SandboxNeeds(idle_timeout_s=0.05)})
    bounds: dict[str, Any] = {"agent_idle_timeout_s": 60.0, "sandbox_idle_timeout_s": 60.0}
    async with ScriptedSandboxes(remembers) as sandboxes:
        store = MemoryPersistence()
        async with runtime(sandboxes, store, profiles=[hasty], **bounds) as it:
            session_id = await it.new(message="one")
            await it.ended(session_id, 1)
            await it.reaches(session_id, Phase.DORMANT)
            assert sandboxes.living() == []


async def test_an_agent_that_says_who_it_is_while_its_sandbox_is_ended_is_remembered() -> None:
    stopping, said = asyncio.Event(), asyncio.Event()

    async def script(stage: Stage) -> None:
        if stage.message == "one":
            await stopping.wait()
        await remembers(stage)

    async def goodbye_waits(frame: dict[str, Any]) -> bool:
        if frame["k"] == "close":
            stopping.set()
            await said.wait()
        return True

    async with world(script) as it:
        session_id = await it.new(message="one")
        await it.reaches(session_id, Phase.RUNNING)
        it.sandboxes.made[0].runner.before = goodbye_waits
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(it.manager.stop_session(ANNA, session_id))
            await eventually(lambda: it.sandboxes.made[0].runner.files)
            said.set()
        await it.send(session_id, "two")
        await it.ended(session_id, 2)
        assert [start["options"]["resume"] for start in started(it)] == [None, "agent"]
        transcript = await it.store.load_transcript(session_id)
        assert (transcript["main"][0], len(transcript["main"])) == ({"said": "one"}, 2)
        blocks = (await it.store.load_blocks(session_id, limit=9)).blocks
        assert blocks[-1].block.content == "one"  # type: ignore[union-attr]
