"""Processes that are killed or hang in the middle of a turn of the whole system."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from agent_runtime.testing.script import Wait
from tests.stories.process import family
from tests.stories.process import program as runs
from tests.stories.serving import Server, serving
from tests.stories.viewer import Viewer, new_session, viewing
from tests.waiting import eventually

GRACE_S = 2.0
KEEPER, RUNNER, AGENT = "bwrap", "python", "claude"


@pytest.mark.parametrize("killed", [KEEPER, RUNNER, AGENT])
async def test_whatever_is_killed_the_turn_fails_once_and_the_next_one_works(killed: str) -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:slow_bash s=60]]", "one")
            await viewer.until(lambda event: event["type"] == "block_start" and "input" in event["block"])
            send(signal.SIGKILL, killed, server)
            (lost,) = await viewer.turns_ended(1, within=20)
            went_on = await turn(viewer, session_id, "[[script:text]]", 2)

        assert lost["status"] == "failed"
        assert lost["error"]["retryable"] is True
        assert went_on["status"] == "completed"
        called = {block["toolUseId"] for block in viewer.blocks("tool_use")}
        assert called == {block["toolUseId"] for block in viewer.blocks("tool_result")}


async def test_an_agent_that_dies_before_it_said_anything_is_begun_anew_and_resumed_later() -> None:
    async with serving(scripts={"silent": [[Wait(60)]]}) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:silent]]", "lost")
            await eventually(lambda: server.model.requests, within=20)
            send(signal.SIGKILL, RUNNER, server)
            (lost,) = await viewer.turns_ended(1)
            second = await turn(viewer, session_id, "[[script:text]] the heron", 2)
            async with server.http.post(f"/api/sessions/{session_id}/stop", json={}) as response:
                assert response.status == 200
            third = await turn(viewer, session_id, "[[script:text]] again", 3)

        assert [lost["status"], second["status"], third["status"]] == ["failed", "completed", "completed"]
        assert "the heron" in str(server.model.requests[-1].body)


@pytest.mark.parametrize("hung", [RUNNER, AGENT])
async def test_a_turn_whose_sandbox_hangs_ends_within_the_grace_of_an_interrupt(hung: str) -> None:
    async with serving(interrupt_grace_s=GRACE_S) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:slow_bash s=60]]", "one")
            await viewer.until(lambda event: event["type"] == "block_start" and "input" in event["block"])
            send(signal.SIGSTOP, RUNNER, server)
            if hung == AGENT:
                send(signal.SIGSTOP, AGENT, server)
            began = asyncio.get_running_loop().time()
            ack = await viewer.call("session:interrupt", {"sessionId": session_id})
            if hung == AGENT:  # only now may its runner see it: it would have killed it before anybody asked
                send(signal.SIGCONT, RUNNER, server)
            (cut,) = await viewer.turns_ended(1, within=GRACE_S + 15)
            took = asyncio.get_running_loop().time() - began
            went_on = await turn(viewer, session_id, "[[script:text]]", 2)

        assert ack == {"ok": True, "interrupted": True}
        assert cut["status"] == "cancelled"
        if hung == RUNNER:  # a stopped agent is seen by its runner, and killed at once
            assert took >= GRACE_S - 0.1
        assert went_on["status"] == "completed"


async def turn(viewer: Viewer, session_id: str, prompt: str, number: int) -> dict[str, Any]:
    """Send the message of the so manieth turn; return how that ended."""
    ack = await viewer.send(session_id, prompt, f"message {number}")
    assert ack["ok"], ack
    return (await viewer.turns_ended(number))[-1]


def send(number: signal.Signals, program: str, server: Server) -> None:
    """Signal the first process of the only sandbox that runs this program."""
    (record,) = [json.loads(file.read_text()) for file in (server.data / "sandboxes").glob("*/record.json")]
    os.kill(next(pid for pid in family(record["keeper"]["pid"]) if runs(pid).startswith(program)), number)
