"""What a profile allows its sandbox to reach, from the profile's file to a command of the agent's."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent_runtime.testing.script import Call, Say
from tests.stories.serving import Server, serving
from tests.stories.viewer import new_session, viewing


class HereAlone:
    """A network with one name in it, of a host on this machine."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host == "packages.test" else []

    def may_go_to(self, address: str) -> bool:
        return address == "127.0.0.1"

    def close(self) -> None:
        pass


@asynccontextmanager
async def packages() -> AsyncIterator[int]:
    """A host that says one line to whoever connects; gives its port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\nConnection: close\r\n\r\npackages for all")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def said(server: Server, profile: str, script: str) -> tuple[dict[str, Any], str]:
    """The turn of a new session, and all that its viewer was told."""
    session_id = await new_session(server, agentProfileRef=profile)
    async with viewing(server, session_id) as viewer:
        await viewer.send(session_id, f"[[script:{script}]]", "first")
        (turn,) = await viewer.turns_ended(1)
        return turn, json.dumps(viewer.events)


async def test_a_session_reaches_the_hosts_of_its_profile_and_another_does_not(tmp_path: Path) -> None:
    async with packages() as port:
        # As a tunnel, for plain HTTP leads nowhere; what is printed is not what the command says.
        fetch = f"curl -sS --proxytunnel http://packages.test:{port}/ || echo $((40 + 2)) ways out"
        scripts = {"fetch": [[Call("Bash", {"command": fetch, "description": "fetch"})], [Say("So it is.")]]}
        _profiles(
            tmp_path,
            open={"sandbox": {"egress": {"hosts": [f"packages.test:{port}"]}}},
            elsewhere={"sandbox": {"egress": {"hosts": ["elsewhere.test"]}}},
            closed={},
        )
        async with serving(data=tmp_path, scripts=scripts, network=HereAlone()) as server:
            for profile, reached in (("open", True), ("elsewhere", False), ("closed", False)):
                turn, told = await said(server, profile, "fetch")
                assert turn["status"] == "completed"
                assert ("packages for all" in told) is reached
                assert ("42 ways out" in told) is not reached


async def test_an_agent_is_kept_to_the_models_of_its_profile(tmp_path: Path) -> None:
    _profiles(
        tmp_path,
        kept={"model": "claude-large-1", "sandbox": {"egress": {"models": ["claude-small-*"]}}},
        free={"model": "claude-small-1", "sandbox": {"egress": {"models": ["claude-*"]}}},
    )
    async with serving(data=tmp_path) as server:
        turn, _ = await said(server, "kept", "text")
        assert turn["status"] == "failed"
        assert not turn["error"]["retryable"]
        assert server.model.requests == ()
        turn, _ = await said(server, "free", "text")
        assert turn["status"] == "completed"
        assert {asked.body["model"] for asked in server.model.requests} == {"claude-small-1"}


def _profiles(data: Path, **profiles: dict[str, Any]) -> None:
    folder = data / "profiles"
    folder.mkdir()
    for name, profile in profiles.items():
        (folder / f"{name}.yaml").write_text(json.dumps(profile))
