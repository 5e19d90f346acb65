"""The main job through Modal's own SDK: the whole system, with a local Modal in place of an account."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from agent_runtime_modal_local import LocalModal
from tests.adapters.sandboxes.modal_world import needs_users
from tests.stories.process import House, house
from tests.stories.test_main_job import assert_orderly
from tests.stories.viewer import get, new_session, viewing

pytestmark = [needs_users, pytest.mark.timeout(180)]

SCRIPTS: dict[str, Script] = {
    "work": [
        [
            Say("I begin."),
            bash("id -un; echo ran >> count; sleep 2; echo late > late.txt; cat count", "Work"),
        ],
        [Say("It is done.")],
    ],
    "stream": [[Say("The heron stands in the reeds and waits. " * 40, delay_s=0.02)]],
    "network": [
        [bash("python3 -c \"import socket; socket.create_connection(('192.0.2.1', 80), 2)\"", "Out")]
    ],
}
BACKENDS = {"1": "the second backend", "0": "the first backend"}


@asynccontextmanager
async def on_modal(data: Path, v2: str = "1", **settings: Any) -> AsyncIterator[tuple[LocalModal, House]]:
    """A local Modal, and a folder that is served from with sandboxes there; nothing of either is left."""
    async with LocalModal(data / "modal") as local:
        with local.in_environment({"MODAL_SANDBOX_V2": v2}):
            async with house(data, scripts=SCRIPTS, sandbox="modal", **settings) as it:
                yield local, it
                assert await living(local) == []


async def living(local: LocalModal) -> list[dict[str, Any]]:
    return [sandbox for sandbox in await local.sandboxes() if sandbox["ended"] is None]


@pytest.mark.parametrize("v2", BACKENDS, ids=BACKENDS.values())
async def test_the_main_job_runs_on_modal_and_a_stop_leaves_nothing(tmp_path: Path, v2: str) -> None:
    async with on_modal(tmp_path, v2) as (local, it), it.life() as life:
        session_id = await new_session(life)
        async with viewing(life, session_id) as viewer:
            await viewer.send(session_id, "[[script:demo]]", "first")
            (turn,) = await viewer.turns_ended(1, within=90)
        assert turn["status"] == "completed"
        assert_orderly(viewer)
        assert {"Write", "Edit", "Bash", "Agent"} <= {tool["toolName"] for tool in viewer.blocks("tool_use")}
        manifest = (await get(life, f"/api/sessions/{session_id}/files"))["files"]
        assert {"life/life.py", "life/test_life.py"} <= {file["path"] for file in manifest}
        (sandbox,) = await living(local)
        assert sandbox["tags"]["session"] == session_id
        shown = (await get(life, f"/api/sessions/{session_id}"))["session"]["runtime"]["sandbox"]
        assert (shown["provider"], shown["sandboxId"]) == ("modal", sandbox["sandboxId"])
        async with life.http.post(f"/api/sessions/{session_id}/stop") as response:
            assert response.status == 200
        assert await living(local) == []


async def test_a_runtime_that_is_killed_in_mid_turn_goes_on_in_the_same_sandbox(tmp_path: Path) -> None:
    async with on_modal(tmp_path) as (local, it):
        async with it.life() as life:
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await viewer.send(session_id, "[[script:work]]", "first")
                await viewer.until(lambda event: event["type"] == "block_start" and _is_tool(event))
                (before,) = await living(local)
                await life.end(signal.SIGKILL)
        async with it.life() as life:
            async with viewing(life, session_id):
                turn = await ended(life, session_id)
            assert turn["status"] == "completed"
            (after,) = await living(local)
            assert after["sandboxId"] == before["sandboxId"]
            blocks = (await get(life, f"/api/sessions/{session_id}/blocks?limit=50"))["blocks"]
            (result,) = [block for block in blocks if block["type"] == "tool_result"]
            assert result["output"].split() == ["agent", "ran"], "as the agent's user, and once"
            async with life.http.get(f"/api/sessions/{session_id}/files/late.txt") as file:
                assert (await file.text()).strip() == "late"


async def test_a_sandbox_that_modal_loses_fails_the_turn_and_the_next_has_the_files(tmp_path: Path) -> None:
    async with on_modal(tmp_path) as (local, it), it.life() as life:
        session_id = await new_session(life)
        async with viewing(life, session_id) as viewer:
            await viewer.send(session_id, "[[script:work]]", "first")
            await viewer.turns_ended(1)
            await viewer.send(session_id, "[[script:stream]]", "second")
            await viewer.until(lambda event: event["type"] == "text_delta" and "heron" in event["delta"])
            (lost,) = await living(local)
            await local.end(lost["sandboxId"], "out_of_memory")
            turns = await viewer.turns_ended(2, within=60)
            assert turns[1]["status"] == "failed"
            assert turns[1]["error"]["code"] == "sandbox_out_of_memory"
            await viewer.send(session_id, "[[script:work]]", "third")
            turns = await viewer.turns_ended(3, within=60)
        assert turns[2]["status"] == "completed"
        (other,) = await living(local)
        assert other["sandboxId"] != lost["sandboxId"]
        async with life.http.get(f"/api/sessions/{session_id}/files/count") as file:
            assert (await file.text()).split() == ["ran", "ran"]


async def test_ctrl_c_leaves_nothing_in_the_account_and_nothing_is_reached_from_inside(
    tmp_path: Path,
) -> None:
    async with on_modal(tmp_path) as (local, it):
        async with it.life() as life:
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await viewer.send(session_id, "[[script:network]]", "first")
                await viewer.turns_ended(1)
            (result,) = viewer.blocks("tool_result")
            assert "unreachable" in result["output"]
            (sandbox,) = await living(local)
            assert sandbox["asked"]["networkAccess"]["networkAccessType"] == "BLOCKED"
        assert await living(local) == []


async def ended(life: Any, session_id: str) -> dict[str, Any]:
    """The session's one turn, when it has ended."""
    async with asyncio.timeout(60):
        while True:
            (turn,) = (await get(life, f"/api/sessions/{session_id}/turns"))["turns"]
            if turn["status"] not in {"queued", "running"}:
                return turn
            await asyncio.sleep(0.05)


def _is_tool(event: dict[str, Any]) -> bool:
    return event["block"]["type"] == "tool_use"
