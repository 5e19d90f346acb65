"""The command line as an operator meets it: a process, a line of JSON, signals, and clear refusals."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import aiohttp
import pytest
import socketio

from agent_runtime.testing.scripted_model import ScriptedModel
from tests.waiting import eventually

COMMAND = str(Path(sys.executable).parent / "agent-runtime")
TOKEN = "a-token-for-the-stories"


@asynccontextmanager
async def served(data: Path, model: ScriptedModel) -> AsyncIterator[tuple[Process, str]]:
    """`agent-runtime serve` as a process of its own; it is ended with the block if it still runs."""
    environment = {
        **os.environ,
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "a-key-for-the-stories",
        "AGENT_RUNTIME_TOKEN": TOKEN,
    }
    arguments = ["serve", "--port", "0", "--data", str(data)]
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["token"] == TOKEN
        yield process, ready["url"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # any other end would leave its sandboxes behind
        await process.communicate()


async def begin_turn(url: str, prompt: str) -> tuple[str, str]:
    """A new session with one message on its way: (session id, turn id)."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(url, headers=headers) as http:
        async with http.post("/api/sessions", json={"agentProfileRef": "default"}) as response:
            session_id = (await response.json())["sessionId"]
        path = f"/api/sessions/{session_id}/messages"
        async with http.post(path, json={"content": prompt, "messageId": "m"}) as response:
            assert response.status == 202
            return session_id, (await response.json())["turnId"]


async def session_of(url: str, session_id: str) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(url, headers=headers) as http,
        http.get(f"/api/sessions/{session_id}") as response,
    ):
        assert response.status == 200
        return await response.json()


async def wait_for_phase(url: str, session_id: str, phase: str) -> None:
    async with asyncio.timeout(30):
        while (await session_of(url, session_id))["session"]["runtime"]["phase"] != phase:
            await asyncio.sleep(0.05)


async def test_ctrl_c_closes_in_order_and_leaves_no_sandbox(tmp_path: Path) -> None:
    async with ScriptedModel() as model, served(tmp_path, model) as (process, url):
        session_id, _ = await begin_turn(url, "[[script:text]]")
        await wait_for_phase(url, session_id, "ready")
        assert sandboxes(tmp_path)

        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()

        assert process.returncode == 0, errors.decode()
        assert not sandboxes(tmp_path)
        assert b"Traceback" not in errors
        assert b"a-key-for-the-stories" not in errors


async def test_a_wrong_token_gets_nothing(tmp_path: Path) -> None:
    async with ScriptedModel() as model, served(tmp_path, model) as (_, url):
        async with (
            aiohttp.ClientSession(url, headers={"Authorization": "Bearer wrong"}) as http,
            http.get("/api/sessions") as response,
        ):
            assert response.status == 401
            assert (await response.json())["category"] == "auth"
        client = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await client.connect(url, auth={"token": "wrong"}, transports=["websocket"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--port", "99999"], "--port"),
        (["serve", "--host", "0.0.0.0", "--open-access"], "open access is refused"),
        (["serve", "--sandbox", "none"], "none"),
        (["serve", "--config", "no-such-file.yaml"], "cannot read no-such-file.yaml"),
        (["sessions", "list", "--url", "http://127.0.0.1:9"], "no agent-runtime answers"),
        (["deploy-image", "--profile", "nobody"], "there is no profile called 'nobody'"),
        (["deploy-image", "--config", "no-such-file.yaml"], "cannot read no-such-file.yaml"),
        (["dance"], "dance"),
    ],
)
async def test_bad_input_gets_one_clear_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=PIPE, stderr=PIPE, cwd=tmp_path
    )
    output, errors = await process.communicate()

    assert process.returncode == 2
    assert output == b""
    assert told in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_setting_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("port: 0\nsandbocks: local\n")
    process = await asyncio.create_subprocess_exec(
        COMMAND, "serve", "--config", "settings.yaml", stdout=PIPE, stderr=PIPE, cwd=tmp_path
    )
    _, errors = await process.communicate()

    assert process.returncode == 2
    assert "sandbocks" in errors.decode()


async def test_the_demo_does_the_main_job_once_and_ends_well(tmp_path: Path) -> None:
    environment = {**os.environ, "DEMO_ONCE": "1"}
    environment.pop("ANTHROPIC_API_KEY", None)
    environment.pop("ANTHROPIC_AUTH_TOKEN", None)
    process = await asyncio.create_subprocess_exec(
        COMMAND, "demo", "--data", str(tmp_path), stdout=PIPE, stderr=PIPE, env=environment
    )
    output, errors = await process.communicate()

    shown = output.decode()
    assert process.returncode == 0, shown + errors.decode()
    for sign in ("scripted", "thinks", "Write", "Edit", "Bash", "subagent", "life/life.py", "#token="):
        assert sign in shown
    assert errors == b""


async def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    process = await asyncio.create_subprocess_exec(
        COMMAND, "demo", "--data", str(tmp_path), stdout=PIPE, stderr=PIPE, env=environment
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while b"Write" not in await process.stdout.readline():
            assert sandboxes(tmp_path) or process.returncode is None
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()

    assert process.returncode == 130, errors.decode()
    assert errors == b""
    assert not sandboxes(tmp_path)


async def test_a_session_that_was_listed_can_be_shown(tmp_path: Path) -> None:
    async with ScriptedModel() as model, served(tmp_path, model) as (_, url):
        session_id, _ = await begin_turn(url, "[[script:error status=401]]")
        await wait_for_phase(url, session_id, "ready")
        listed = await told_by("sessions", "list", "--url", url)
        shown = await told_by("sessions", "show", session_id, "--url", url)

    assert session_id in listed
    assert "[[script:error status=401]]" in shown
    assert "failed" in shown.splitlines()[-1]
    assert "Failed to authenticate" in shown.splitlines()[-1]


async def told_by(*arguments: str) -> str:
    """What a command prints that succeeds."""
    environment = {**os.environ, "AGENT_RUNTIME_TOKEN": TOKEN}
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env=environment
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_doctor_says_what_works(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        COMMAND, "doctor", "--data", str(tmp_path), stdout=PIPE, stderr=PIPE
    )
    output, _ = await process.communicate()

    assert process.returncode == 0
    assert "bubblewrap" in output.decode()
    assert "bounded in a sandbox: " in output.decode()
    (pin,) = [line for line in metadata.requires("agent-runtime") or () if "claude-agent-sdk" in line]
    assert f"agent {pin.replace('==', ' ')}" in output.decode()


async def test_unsafe_subprocess_runs_by_name_only_and_says_so(tmp_path: Path) -> None:
    async with ScriptedModel() as model:
        environment = {**os.environ, "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "any-key"}
        arguments = ["serve", "--port", "0", "--data", str(tmp_path), "--sandbox", "unsafe-subprocess"]
        process = await asyncio.create_subprocess_exec(
            COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env=environment
        )
        try:
            assert process.stdout is not None
            ready = json.loads(await process.stdout.readline())
            async with aiohttp.ClientSession() as http, http.get(ready["url"] + "/health") as response:
                health = await response.text()
        finally:
            process.terminate()
            _, errors = await process.communicate()

    assert json.loads(health)["isolation"] == "none"
    assert "without isolation" in health
    assert "unsafe" in errors.decode()


def sandboxes(data: Path) -> list[Path]:
    """The folders of living sandboxes."""
    return list((data / "sandboxes").glob("sb-*"))


async def test_two_runtimes_on_one_machine_do_not_end_each_others_sandboxes(tmp_path: Path) -> None:
    async with ScriptedModel() as model, served(tmp_path / "one", model) as (_, one):
        session_id, _ = await begin_turn(one, "[[script:text]]")
        await wait_for_phase(one, session_id, "ready")
        async with served(tmp_path / "two", model):
            await eventually(lambda: sandboxes(tmp_path / "one"))
            phase = (await session_of(one, session_id))["session"]["runtime"]["phase"]
    assert phase == "ready"


async def test_a_second_server_on_the_same_data_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with ScriptedModel() as model, served(tmp_path, model) as (_, url):
        session_id, _ = await begin_turn(url, "[[script:text]]")
        await wait_for_phase(url, session_id, "ready")
        living = sandboxes(tmp_path)

        code, output, errors = await refused("serve", "--port", "0", "--data", str(tmp_path))

        assert (code, output) == (2, "")
        assert f"another agent-runtime is running on the data folder {tmp_path}" in errors
        assert errors.count("\n") == 1
        assert sandboxes(tmp_path) == living
        assert (await session_of(url, session_id))["session"]["runtime"]["phase"] == "ready"


async def test_after_a_server_was_killed_its_data_is_free_again(tmp_path: Path) -> None:
    async with ScriptedModel() as model:
        async with served(tmp_path, model) as (process, url):
            session_id, _ = await begin_turn(url, "[[script:slow_bash s=60]]")
            await wait_for_phase(url, session_id, "running")
            process.kill()
            await process.wait()
        async with served(tmp_path, model) as (_, url):
            assert await session_of(url, session_id), "the sandbox that goes on does not hold the folder"


async def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    code, output, errors = await refused("serve", "--port", "0", "--data", str(tmp_path / "file"))

    assert (code, output) == (2, "")
    assert f"the data folder {tmp_path}/file cannot be used" in errors
    assert "Traceback" not in errors


async def refused(*arguments: str) -> tuple[int | None, str, str]:
    """What a command says that ends at once: (exit code, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(COMMAND, *arguments, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()
