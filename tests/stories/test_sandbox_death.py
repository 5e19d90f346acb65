"""A sandbox whose processes are all killed from outside, whatever its session is doing, and what comes after.

What a sandbox held is in the store: files and the agent's memory come back in another one. Viewers are told
of it, the agent is told what is gone, and a message that nobody had begun to answer is simply answered.
"""

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.stories.process import AGENT, House, Life, house
from tests.stories.test_main_job import assert_orderly, essence
from tests.stories.viewer import Viewer, get, new_session, viewing
from tests.waiting import eventually

PLANT = "mkdir -p .git notes; echo kept > notes/a.txt; echo kept > b.txt; echo lost > .git/index"
SCRIPTS: dict[str, Script] = {
    "plant": [[bash(PLANT, "Make files")], [Say("They are made.")]],
    "endless": [[Say("I begin."), bash("while true; do sleep 5; done", "Work for ever")]],
    "look": [[bash("cat notes/a.txt b.txt; ls .git || true", "Look")], [Say("I looked.")]],
}
NAME = "the heron is called Aurelius"


async def test_killed_in_mid_turn_the_turn_fails_and_the_next_sandbox_has_files_and_memory_back(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, scripts=SCRIPTS) as it:
        async with it.life() as life:
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await turn(viewer, session_id, f"[[script:plant]] {NAME}")
                await viewer.send(session_id, "[[script:endless]]", "endless")
                await eventually(lambda: "sleep" in it.inside(session_id).values(), within=20)
                await eventually(lambda: it.mirrored(session_id, "Work for ever"))
                kill(it, session_id)
                failed = (await viewer.turns_ended(2))[1]
                manifest = await files(life, session_id)

                order = await turn(viewer, session_id, "/context")
                asked = len(it.model.requests)
                answer = await turn(viewer, session_id, LOOK)
                requests = [str(ask.body) for ask in it.model.requests[asked:]]
                assert_orderly(viewer)
            stored = (await get(life, f"/api/sessions/{session_id}/blocks?limit=200"))["blocks"]
            assert await files(life, session_id) == manifest == ["b.txt", "notes/a.txt"]
        read = ClaudeAgent().read_transcript(await it.transcript(session_id))

    assert (failed["status"], failed["error"]["code"]) == ("failed", "sandbox_lost")
    assert failed["error"]["retryable"] is True
    assert [order["status"], answer["status"]] == ["completed", "completed"]
    (restored,) = viewer.of("workspace_restored")
    assert restored["restoredFiles"] == 2
    assert "lostPaths" not in restored
    output = viewer.blocks("tool_result")[-1]["output"]
    assert output.startswith("kept\nkept\n")
    assert "No such file" in output, "ignored folders are gone"
    assert all(NAME in request for request in requests), "the agent remembers"
    assert requests[0].count(NOTE) == 1, "and knows what is gone"
    assert NOTE not in str(viewer.events)
    assert [block["content"] for block in stored if block["type"] == "user_message"] == [
        *(f"[[script:plant]] {NAME}", "[[script:endless]]", "/context", LOOK)
    ]
    assert [block.id for block in read] == [block["id"] for block in stored]
    (cut,) = {block["toolUseId"] for block in stored if block.get("status") == "cancelled"}
    for block, kept in zip(read, stored, strict=True):
        if kept.get("toolUseId") != cut:  # what the agent itself is told of that call is its own affair
            assert essence(block.to_json()) == essence(kept)


async def test_a_death_between_two_turns_costs_nobody_anything(tmp_path: Path) -> None:
    async def noticed(it: House, life: Life, session_id: str, viewer: Viewer) -> None:
        kill(it, session_id)
        await viewer.until(lambda event: event.get("runtime", {}).get("phase") == "dormant")
        assert not [record for record in it.sandboxes() if record.session_id == session_id]
        await answered(it, session_id, viewer)

    async def unnoticed(it: House, life: Life, session_id: str, viewer: Viewer) -> None:
        kill(it, session_id)
        await answered(it, session_id, viewer)

    async def with_the_message(it: House, life: Life, session_id: str, viewer: Viewer) -> None:
        os.kill(it.runner(session_id), signal.SIGSTOP)  # it is handed the message and does not take it
        await viewer.send(session_id, LOOK, "look")
        await viewer.until(lambda event: event["type"] == "turn_start" and event["turn"]["index"] == 1)
        kill(it, session_id)
        await answered(it, session_id, viewer)

    async def stopped(it: House, life: Life, session_id: str, viewer: Viewer) -> None:
        async with life.http.post(f"/api/sessions/{session_id}/stop") as response:
            assert (await response.json())["runtime"]["phase"] == "dormant"
        await answered(it, session_id, viewer)

    async def tell(it: House, life: Life, story: Deed) -> None:
        session_id = await new_session(life, name=story.__name__)
        async with viewing(life, session_id) as viewer:
            await turn(viewer, session_id, f"[[script:plant]] {NAME} of {session_id}")
            await story(it, life, session_id, viewer)
            assert_orderly(viewer)

    async with house(tmp_path, scripts=SCRIPTS) as it, it.life() as life, asyncio.TaskGroup() as tasks:
        for story in (noticed, unnoticed, with_the_message, stopped):
            tasks.create_task(tell(it, life, story))


async def answered(it: House, session_id: str, viewer: Viewer) -> None:
    """A message, sent now or before, is answered in one turn, by an agent that lost nothing it could keep."""
    await viewer.send(session_id, LOOK, "look")
    _, ended = await viewer.turns_ended(2)
    assert ended["status"] == "completed"
    assert [event["turn"]["messageId"] for event in viewer.of("turn_start")][1:] == ["look"]
    assert [block["content"] for block in viewer.blocks("user_message")][1:] == [LOOK]
    assert [event["restoredFiles"] for event in viewer.of("workspace_restored")] == [2]
    assert viewer.blocks("tool_result")[-1]["output"].startswith("kept\nkept\n")
    asked = [str(ask.body) for ask in it.model.requests if f"{NAME} of {session_id}" in str(ask.body)]
    first = next(request for request in asked if LOOK in request)
    assert first.count(NOTE) == 1
    assert first.count(LOOK) == 1


async def test_a_turn_that_loses_two_sandboxes_fails_once_and_the_next_message_works(tmp_path: Path) -> None:
    async with house(tmp_path, scripts=SCRIPTS) as it, it.life() as life:
        session_id = await new_session(life)
        async with viewing(life, session_id) as viewer:
            await turn(viewer, session_id, "[[script:plant]]")
            first = it.sandbox(session_id)
            os.kill(it.runner(session_id), signal.SIGSTOP)
            await viewer.send(session_id, LOOK, "look")
            await viewer.until(lambda event: event["type"] == "turn_start" and event["turn"]["index"] == 1)
            kill(it, session_id)
            await eventually(lambda: another_agent_begins(it, session_id, first.sandbox_id), within=20)
            kill(it, session_id)
            failed = (await viewer.turns_ended(2))[1]
            works = await turn(viewer, session_id, LOOK)
            assert_orderly(viewer)

    assert (failed["status"], failed["error"]["code"]) == ("failed", "sandbox_lost")
    assert works["status"] == "completed"
    assert len(viewer.of("turn_start")) == 3


def another_agent_begins(it: House, session_id: str, first: str) -> bool:
    """Whether there is a process of the agent in another sandbox than the first one."""
    found = [record.sandbox_id for record in it.sandboxes() if record.session_id == session_id]
    return len(found) == 1 and found != [first] and AGENT in it.inside(session_id).values()


LOOK = "[[script:look]] Who is it?"
Deed = Callable[[House, Life, str, Viewer], Coroutine[Any, Any, None]]
NOTE = "Your sandbox was replaced by a new one"


async def turn(viewer: Viewer, session_id: str, prompt: str) -> dict[str, Any]:
    """Send a message; return its turn when that is over."""
    ack = await viewer.send(session_id, prompt, str(uuid.uuid4()))
    assert ack["ok"], ack
    ended = await viewer.until(
        lambda event: event["type"] == "turn_end" and event["turn"]["turnId"] == ack["turnId"]
    )
    found: dict[str, Any] = ended["turn"]
    return found


def kill(it: House, session_id: str) -> None:
    """End every process of a sandbox, as the machine does when it is out of memory."""
    sandbox = it.sandbox(session_id)
    assert sandbox.keeper is not None
    for pid in (*it.inside(session_id), sandbox.keeper.pid):
        with suppress(ProcessLookupError):  # it ended with those before
            os.kill(pid, signal.SIGKILL)


async def files(life: Life, session_id: str) -> list[str]:
    """The paths that are kept."""
    manifest = await get(life, f"/api/sessions/{session_id}/files")
    return [file["path"] for file in manifest["files"]]
