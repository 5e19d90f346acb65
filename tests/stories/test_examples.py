"""The examples that README shows, run as a stranger would run them."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import aiohttp
from aiohttp import web

from agent_runtime import Gateway
from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.testing.scripted_model import ScriptedModel
from examples.host_app.app import build
from tests.stories.serving import serving

ROOT = Path(__file__).resolve().parents[2]
SAID = "This is plain text from the scripted model"


async def test_the_python_quickstart_prints_what_the_agent_says() -> None:
    async with serving() as server:
        command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "[[script:text]]"]
        output = await run(command, server.url, server.token)
    assert SAID in output


async def test_the_javascript_quickstart_prints_what_the_agent_says(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "quickstart.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "clients" / "node_modules")
    async with serving() as server:
        command = ["node", str(tmp_path / "quickstart.mjs"), "[[script:text]]"]
        output = await run(command, server.url, server.token)
    assert SAID in output


async def test_the_snippets_in_readme_are_the_examples() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for example in ("quickstart.py", "quickstart.mjs"):
        code = (ROOT / "examples" / example).read_text(encoding="utf-8")
        begin = code.index("const url") if example.endswith("mjs") else code.index("headers, over")
        end = len(code) if example.endswith("mjs") else code.index("    print()\n")
        for line in code[begin:end].splitlines():
            assert line.strip() in readme, f"{example}: {line}"


async def test_a_host_mounts_the_runtime_and_its_users_do_not_see_each_other(tmp_path: Path) -> None:
    owners = {"alices-secret-key": "alice", "bobs-secret-key": "bob"}
    async with ScriptedModel() as model:
        app = build(
            tmp_path, owners, Gateway([Anthropic(model.url, api_key="the-hosts-key")], tmp_path / "gateway")
        )
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with client(url, "alices-secret-key") as alice, client(url, "bobs-secret-key") as bob:
                async with alice.get("/") as response:
                    assert await response.text() == "The host's own page."
                async with alice.post(
                    "/agents/api/sessions", json={"agentProfileRef": "reviewer"}
                ) as response:
                    assert response.status == 201
                    session_id = (await response.json())["sessionId"]
                async with alice.post(
                    f"/agents/api/sessions/{session_id}/messages",
                    json={"content": "[[script:text]]"},
                    headers={"Accept": "application/x-ndjson"},
                ) as response:
                    assert SAID in await response.text()
                async with bob.get(f"/agents/api/sessions/{session_id}") as response:
                    assert response.status == 404
                async with bob.get("/agents/api/sessions") as response:
                    assert (await response.json())["sessions"] == []
                async with alice.post(f"/agents/api/sessions/{session_id}/stop") as response:
                    assert response.status == 200, "a host that closes leaves its sandboxes to the next start"
            tools = {tool["name"] for tool in model.requests[-1].body["tools"]}
            assert "Bash" not in tools, "a profile's tools really restrict"
            assert "Read" in tools
        finally:
            await runner.cleanup()


def client(url: str, key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"})


async def run(command: list[str], url: str, token: str) -> str:
    """Run an example against a server; its output."""
    environment = {**os.environ, "AGENT_RUNTIME_URL": url, "AGENT_RUNTIME_TOKEN": token}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()
