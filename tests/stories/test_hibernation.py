"""What nobody uses costs nothing: agents end, then sandboxes, then sessions leave memory. All come back."""

import asyncio
import signal
from pathlib import Path
from typing import Any

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from tests.stories.process import AGENT, RUNNER, House, Life, house, program, until
from tests.stories.test_main_job import assert_orderly
from tests.stories.test_sandbox_death import LOOK, NAME, NOTE, PLANT, turn
from tests.stories.viewer import Viewer, get, new_session, viewing
from tests.waiting import eventually

SCRIPTS: dict[str, Script] = {
    "plant": [[bash(PLANT, "Make files")], [Say("They are made.")]],
    "look": [[bash("cat notes/a.txt b.txt .git/index", "Look")], [Say("I looked.")]],
}
ASLEEP = {"isLoaded": False, "phase": "dormant", "queueLength": 0, "pendingRequests": 0}
AGENT_IDLE_S, SANDBOX_IDLE_S, SESSION_IDLE_S = 0.5, 1.5, 0.5
REAL, MANY, AT_ONCE = 6, 1000, 20
MIB = 1024 * 1024
GROWTH = 10 * MIB
"""For the allocator's holes; a thousand sessions that stayed in memory would take twice as much."""


async def test_an_agent_that_rests_is_ended_and_goes_on_in_its_sandbox_as_if_it_had_not(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, scripts=SCRIPTS, agentIdleTimeoutS=AGENT_IDLE_S) as it:
        async with it.life() as life:
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await turn(viewer, session_id, f"[[script:plant]] {NAME}")
                runner = it.runner(session_id)
                await hibernated(it, life, session_id)
                asked = len(it.model.requests)
                ended = await turn(viewer, session_id, LOOK)
                assert it.runner(session_id) == runner
                went_on(it, viewer, ended, asked)
                await hibernated(it, life, session_id)
                await life.end(signal.SIGKILL)

        async with it.life() as life:
            await hibernated(it, life, session_id)
            async with viewing(life, session_id) as viewer:
                asked = len(it.model.requests)
                ended = await turn(viewer, session_id, LOOK)
                assert it.runner(session_id) == runner
                went_on(it, viewer, ended, asked)


async def hibernated(it: House, life: Life, session_id: str) -> None:
    """Wait until the session says so; then the agent is gone, and nothing else is."""

    async def said() -> bool:
        return await phase(life, session_id) == "hibernated"

    await until(said)
    await eventually(lambda: AGENT not in it.inside(session_id).values())
    assert any(name.startswith(RUNNER) for name in it.inside(session_id).values())


def went_on(it: House, viewer: Viewer, ended: dict[str, Any], asked: int) -> None:
    """A turn in the same sandbox, with everything that was in it, and with all that was said before."""
    assert ended["status"] == "completed"
    assert viewer.blocks("tool_result")[-1]["output"] == "kept\nkept\nlost"
    assert viewer.of("workspace_restored") == []
    first = str(it.model.requests[asked].body)
    assert NAME in first
    assert NOTE not in first
    assert_orderly(viewer)


async def test_what_nobody_uses_leaves_nothing_behind_and_comes_back(tmp_path: Path) -> None:
    idle = {
        "agentIdleTimeoutS": AGENT_IDLE_S,
        "sandboxIdleTimeoutS": SANDBOX_IDLE_S,
        "sessionIdleTimeoutS": SESSION_IDLE_S,
    }
    async with house(tmp_path, scripts=SCRIPTS, **idle) as it, it.life() as life:
        first = await new_session(life)
        async with viewing(life) as watcher:
            await watcher.call("sessions:watch", {})
            processes = await used(it, life, first)
            await create_many(life)
            await eventually(lambda: told_of(watcher, first)[-1]["session"]["runtime"] == ASLEEP, within=20)
        await unloaded(life)
        before = memory(life)

        others = [await new_session(life) for _ in range(REAL - 1)]
        uses = [used(it, life, session_id) for session_id in (first, *others)]
        _, *inside = await asyncio.gather(create_many(life), *uses)
        processes += [pid for pids in inside for pid in pids]
        await unloaded(life)
        assert it.sandboxes() == ()
        assert len(processes) >= 2 * (REAL + 1)
        assert not any(map(program, processes))
        assert memory(life) < before + GROWTH, f"{before} bytes became {memory(life)}"

        async with viewing(life, first) as viewer:
            asked = len(it.model.requests)
            ended = await turn(viewer, first, LOOK)
        assert ended["status"] == "completed"
        assert [event["restoredFiles"] for event in viewer.of("workspace_restored")] == [2]
        request = str(it.model.requests[asked].body)
        assert NAME in request
        assert NOTE in request


async def used(it: House, life: Life, session_id: str) -> list[int]:
    """One turn, and nobody looks any more; returns the processes that it took."""
    async with viewing(life, session_id) as viewer:
        assert (await turn(viewer, session_id, f"[[script:plant]] {NAME}"))["status"] == "completed"
        return list(it.inside(session_id))


async def create_many(life: Life) -> None:
    """A thousand sessions that nobody ever says anything in."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(create_some(life, MANY // AT_ONCE))


async def create_some(life: Life, count: int) -> None:
    for _ in range(count):
        await new_session(life)


async def unloaded(life: Life) -> None:
    """Wait until no session is in memory."""

    async def none() -> bool:
        return not any(session["runtime"]["isLoaded"] for session in await listed(life))

    await until(none, within=30)


async def listed(life: Life) -> list[dict[str, Any]]:
    """All sessions; being listed is no use."""
    page = await get(life, "/api/sessions?limit=200")
    found = page["sessions"]
    while "nextCursor" in page:
        page = await get(life, f"/api/sessions?limit=200&cursor={page['nextCursor']}")
        found += page["sessions"]
    return list(found)


async def phase(life: Life, session_id: str) -> str:
    (session,) = [session for session in await listed(life) if session["sessionId"] == session_id]
    return str(session["runtime"]["phase"])


def told_of(watcher: Viewer, session_id: str) -> list[dict[str, Any]]:
    """What whoever watches the list was told of one session."""
    return [event for event in watcher.events if event["sessionId"] == session_id and "session" in event]


def memory(life: Life) -> int:
    """The bytes that the server's process alone accounts for."""
    for line in Path(f"/proc/{life.process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")
