"""The main job through Modal's own SDK: the whole system, with a local Modal in place of an account."""

import asyncio
import json
import os
import signal
import uuid
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from agent_runtime_modal_local import Do, Fault, LocalModal
from tests.adapters.sandboxes.modal_world import needs_users
from tests.stories.process import COMMAND, House, house, until
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
    "stream": [[Say("The heron stands in the reeds and waits. " * 4000, delay_s=0.02)]],
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


@pytest.mark.parametrize("rpc", ["SandboxCreate*", "TaskExecStart", "TaskExecStdinWrite"])
async def test_a_runtime_that_is_killed_while_it_wakes_a_session_leaves_what_lives_and_no_more(
    tmp_path: Path, rpc: str
) -> None:
    """At whatever step: the next one takes up the session, and its reaper ends what belongs to nobody."""
    async with on_modal(tmp_path, reapIntervalS=1) as (local, it):
        async with it.life() as life:
            session_id = await new_session(life)
            await local.set_fault(Fault(rpc, do=Do.SLOW, delay_s=1.5))
            async with viewing(life, session_id) as viewer:
                before = await local.calls()
                await viewer.send(session_id, "[[script:work]]", "first")
                await until(lambda: _called(local, rpc, before))
                await life.end(signal.SIGKILL)
        await local.clear_faults()
        async with it.life() as life:
            assert (await ended(life, session_id))["status"] == "completed"
            await until(lambda: _exactly(local, session_id))
            async with life.http.get(f"/api/sessions/{session_id}/files/count") as file:
                assert (await file.text()).split() == ["ran"]


async def _called(local: LocalModal, rpc: str, before: dict[str, int]) -> bool:
    now = await local.calls()
    return any(fnmatch(name, rpc) and count > before.get(name, 0) for name, count in now.items())


async def _exactly(local: LocalModal, session_id: str) -> bool:
    """One sandbox lives, the session's."""
    return [sandbox["tags"]["session"] for sandbox in await living(local)] == [session_id]


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


async def test_the_demo_shows_the_main_job_on_a_local_modal_of_its_own_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    mark = uuid.uuid4().hex
    told = await run("demo", "--sandbox", "modal-local", "--data", str(tmp_path), DEMO_ONCE="1", MARK=mark)
    assert told.code == 0, told.said
    assert "modal-local: namespaces" in told.said
    assert "completed" in told.said
    assert "life/test_life.py" in told.said
    assert marked(mark) == []


async def test_without_an_account_the_doctor_says_so_in_one_line(tmp_path: Path) -> None:
    nobody = {
        "MODAL_CONFIG_PATH": str(tmp_path / "absent.toml"),
        "MODAL_TOKEN_ID": "",
        "MODAL_TOKEN_SECRET": "",
    }
    told = await run("doctor", "--sandbox", "modal", **nobody)
    assert told.code == 1
    (line,) = [line for line in told.said.splitlines() if "modal token new" in line]
    assert "MODAL_TOKEN_ID" in told.said
    assert "Traceback" not in told.said
    assert line.strip()


async def test_a_lasting_modal_is_served_by_name_and_its_settings_are_checked(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"sandbox": "modal", "modal": {"lifetimeS": 100_000}}))
    told = await run("serve", "--config", str(settings))
    assert told.code == 2
    assert "modal.lifetimeS" in told.said.replace("lifetime_s", "lifetimeS")
    assert told.said.count("\n") == 1


@dataclass(frozen=True)
class Told:
    """How a command ended, and all that it said."""

    code: int | None
    said: str


async def run(*arguments: str, **variables: str) -> Told:
    """Run the command line to its end, with nobody's model and these variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=PIPE, stderr=STDOUT, env=environment | variables
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return Told(process.returncode, output.decode())


def marked(value: str) -> list[str]:
    """The processes of this machine with this value of the variable MARK, by pid."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"MARK={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
    return found


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
