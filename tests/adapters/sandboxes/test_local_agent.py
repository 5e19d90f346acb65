"""The real agent in a real local sandbox: its model behind the gateway, its tools inside."""

import json
import tempfile
import uuid
from pathlib import Path

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.ports import Channel, SandboxSpec
from agent_runtime.testing.sandbox_contract import RUNTIME_ID
from agent_runtime.testing.script import Call, Say
from agent_runtime.testing.scripted_model import ScriptedModel
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_sandbox import frames
from tests.adapters.sandboxes.machine import needs_local_sandboxes, place
from tests.seen_from_outside import files_of

LOOK = "id -un; pwd; env; python3 -c 'import sys; print(sys.path)'; echo x > made.txt"


@needs_local_sandboxes
async def test_the_agent_answers_and_uses_its_tools_inside() -> None:
    script = [[Call("Bash", {"command": LOOK, "description": "look around"})], [Say("That was it.")]]
    with place() as root, tempfile.TemporaryDirectory() as folder:
        async with ScriptedModel({"look": script}, default="look") as model:
            gateway = Gateway([Anthropic(model.url, api_key="sk-the-real-one")], Path(folder) / "run")
            endpoint = await gateway.open("session-1")
            sandbox = await LocalSandboxes(root).create(
                SandboxSpec("session-1", RUNTIME_ID, endpoint.socket, 60.0)
            )
            try:
                channel = await sandbox.connect()
                lines = await _one_turn(channel, endpoint.token)
                await channel.close()
                made = files_of(root / sandbox.ref.sandbox_id) / "made.txt"
                assert made.read_text() == "x\n"
            finally:
                await sandbox.stop()
                await gateway.aclose()
    said = json.dumps(lines)
    assert "That was it." in said
    assert r"agent\n/workspace" in said
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "/opt/agent-runtime/lib"):
        assert name not in said
    assert "sk-the-real-one" not in said
    assert str(root) not in said


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
