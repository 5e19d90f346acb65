"""The real agent in a real local sandbox: its model behind the gateway, its tools inside."""

import json
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.needs import Dependencies, Resources, SandboxNeeds
from agent_runtime.ports import Channel, Sandbox, SandboxSpec
from agent_runtime.testing.sandbox_contract import RUNTIME_ID
from agent_runtime.testing.script import Call, Say
from agent_runtime.testing.scripted_model import ScriptedModel
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
from agent_runtime_sandbox import frames
from tests.adapters.sandboxes.machine import needs_disks, needs_groups, needs_local_sandboxes, place
from tests.adapters.sandboxes.registries import make_wheel, npm_registry, use_wheels_of
from tests.seen_from_outside import files_of

NOTHING = SandboxNeeds()
TAKE_MEMORY = "python3 -c 'held = []\nwhile True: held.append(b\"x\" * (1 << 20))'; echo it ended with $?"
TAKE_DISK = "dd if=/dev/zero of=big bs=1M; echo it ended with $?"
LOOK = "id -un; pwd; env; python3 -c 'import sys; print(sys.path)'; echo x > made.txt"


@needs_local_sandboxes
async def test_the_agent_answers_and_uses_its_tools_inside() -> None:
    with place() as root:
        async with _agent_that_runs(LOOK, root) as (sandbox, channel, token):
            said = json.dumps(await _one_turn(channel, token))
            made = files_of(root / sandbox.ref.sandbox_id) / "made.txt"
            assert made.read_text() == "x\n"
    assert "That was it." in said
    assert r"agent\n/workspace" in said
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "/opt/agent-runtime/lib"):
        assert name not in said
    assert "sk-the-real-one" not in said
    assert str(root) not in said


@needs_local_sandboxes
async def test_the_agents_shell_has_the_packages_of_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    python = "tinypy-greet; python3 -c 'import tinypy; print(tinypy.__file__)'"
    use = f"{python}; tinyjs-greet; node -p 'require(\"tinyjs\")'"
    wanted = SandboxNeeds(dependencies=Dependencies(pip=("tinypy",), npm=("tinyjs",)))
    with place() as root, tempfile.TemporaryDirectory() as wheels, npm_registry(monkeypatch) as npm:
        make_wheel(Path(wheels), "tinypy", "1.0")
        use_wheels_of(Path(wheels), monkeypatch)
        npm.add("tinyjs", "1.0.0")
        async with _agent_that_runs(use, root, wanted) as (_, channel, token):
            said = json.dumps(await _one_turn(channel, token))
    assert "hello from python" in said
    assert "/opt/agent-runtime/deps/python/lib/" in said
    assert said.count("hello from node") >= 2
    assert str(root) not in said


@needs_local_sandboxes
@pytest.mark.parametrize(
    ("command", "bounds", "told"),
    [
        pytest.param(TAKE_MEMORY, {"memory_bytes": 1024**3}, "it ended with 137", marks=needs_groups),
        pytest.param(TAKE_DISK, {"disk_bytes": 64 * 1024**2}, "No space left on device", marks=needs_disks),
    ],
)
async def test_the_agent_outlives_a_tool_that_takes_all_there_is(
    command: str, bounds: dict[str, float], told: str
) -> None:
    needs = SandboxNeeds(resources=Resources.model_validate(bounds))
    with place() as root:
        async with _agent_that_runs(command, root, needs) as (sandbox, channel, token):
            said = json.dumps(await _one_turn(channel, token))
            assert await sandbox.alive()
    assert told in said
    assert "That was it." in said


@asynccontextmanager
async def _agent_that_runs(
    command: str, root: Path, needs: SandboxNeeds = NOTHING, *, tiers: tuple[Tier, ...] = tuple(Tier)
) -> AsyncIterator[tuple[Sandbox, Channel, str]]:
    """A sandbox whose agent, told to look, runs this in its shell; a channel to it, and the agent's token."""
    script = [[Call("Bash", {"command": command, "description": "look around"})], [Say("That was it.")]]
    async with ScriptedModel({"look": script}, default="look") as model:
        with tempfile.TemporaryDirectory() as folder:
            gateway = Gateway([Anthropic(model.url, api_key="sk-the-real-one")], Path(folder) / "run")
            endpoint = await gateway.open("session-1")
            provider = LocalSandboxes(root, tiers=tiers)
            sandbox = await provider.create(
                SandboxSpec("session-1", RUNTIME_ID, endpoint.socket, 60.0, needs=needs)
            )
            try:
                channel = await sandbox.connect()
                yield sandbox, channel, endpoint.token
                await channel.close()
            finally:
                await sandbox.stop()
                await gateway.aclose()
                await provider.close()


async def _one_turn(channel: Channel, token: str) -> list[dict[str, object]]:
    """Start the agent, send a message, return the agent's lines up to its result."""
    for command in (
        {"k": "attach", "after": 0},
        {"k": "start", "id": "1", "driver": "claude", "options": {"gatewayToken": token}},
        {"k": "message", "id": "2", "uuid": str(uuid.uuid4()), "content": "look"},
    ):
        await channel.send(frames.encode(command))
    splitter = frames.LineSplitter()
    lines: list[dict[str, object]] = []
    while all(line.get("type") != "result" for line in lines):  # others may follow it in the same bytes
        data = await channel.receive()
        assert data, "the runner is gone"
        for frame in map(frames.decode, splitter.feed(data)):
            assert frame.get("ok") is not False, frame
            if frame["k"] == "agent":
                lines.append(frame["line"])
    return lines
