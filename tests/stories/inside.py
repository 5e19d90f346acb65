"""Stories about what is inside a sandbox: a real server, a real sandbox, no agent that matters.

async with inside(kind) as place:       kind: `local`, `modal` or `unsafe-subprocess`
    place.world                         how to speak to the server
    await place.serve(PROGRAM)          run a server in the sandbox; the port that it prints
    await place.shown(port)             the address that shows it
"""

import asyncio
import base64
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from agent_runtime.ports import GatewayEndpoint, SandboxProvider
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.adapters.sandboxes.machine import needs_local_sandboxes, processes_of
from tests.adapters.sandboxes.modal_world import modal_world, needs_users
from tests.runtime.transport.world import ANNA, Viewer, World, world
from tests.waiting import eventually

everywhere = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("local", marks=needs_local_sandboxes),
        pytest.param("modal", marks=needs_users),
        "unsafe-subprocess",
    ],
)
"""Modal is a local one, which the real SDK takes for it."""


class SocketGateway:
    """A way out that leads nowhere: a socket that nobody answers at."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._path = folder / "gateway.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()

    async def open(self, session_id: str, **_: object) -> GatewayEndpoint:
        return GatewayEndpoint(self._path, "dummy")

    async def close(self, session_id: str) -> None:
        return None

    async def aclose(self) -> None:
        self._socket.close()


@dataclass
class Shell:
    """A terminal of a viewer, as a person has it."""

    viewer: Viewer
    terminal_id: str
    shown: bytes = b""
    exited: dict[str, Any] | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, event: str, told: Any) -> None:
        if event == "terminal_output" and told["terminalId"] == self.terminal_id:
            self.shown += base64.b64decode(told["data"])
        if event == "terminal_exit" and told["terminalId"] == self.terminal_id:
            self.exited = told
        self._more.set()

    async def type(self, text: str | bytes) -> dict[str, Any]:
        raw = text.encode() if isinstance(text, str) else text
        data = base64.b64encode(raw).decode()
        return await self.viewer.ask("terminal:input", {"terminalId": self.terminal_id, "data": data})

    async def until(self, wanted: str) -> re.Match[bytes]:
        """Wait until what was shown has the pattern; that and the text before it are forgotten."""
        while not (found := re.search(wanted.encode(), self.shown)):
            assert self.exited is None, (self.exited, self.shown[-500:])
            self._more.clear()
            await self._more.wait()
        self.shown = self.shown[found.end() :]
        return found

    async def run(self, command: str, wanted: str) -> re.Match[bytes]:
        assert (await self.type(command + "\n"))["ok"]
        return await self.until(wanted)

    async def exit(self) -> dict[str, Any]:
        while self.exited is None:
            self._more.clear()
            await self._more.wait()
        return self.exited


@dataclass
class Inside:
    """A session with a sandbox, and who looks at it."""

    world: World
    viewer: Viewer
    session_id: str
    root: Path
    provider: SandboxProvider

    async def shell(self, *, rows: int = 24, cols: int = 80, viewer: Viewer | None = None) -> Shell:
        viewer = viewer or self.viewer
        shell = Shell(viewer, "")
        heard = viewer.hear

        async def hear(event: str, *arguments: Any) -> None:
            shell.hear(event, *arguments)
            await heard(event, *arguments)

        viewer.client.on("*", hear)
        viewer.hear = hear  # type: ignore[method-assign]
        asked = {"sessionId": self.session_id, "rows": rows, "cols": cols}
        answer = await viewer.ask("session:terminal", asked)
        assert answer["ok"], answer
        shell.terminal_id = answer["terminalId"]
        for event, *arguments in list(viewer.heard):
            if arguments and isinstance(arguments[0], dict) and "terminalId" in arguments[0]:
                shell.hear(event, arguments[0])
        return shell

    async def serve(self, program: str) -> int:
        """Run a Python program of the workspace; it prints `listening PORT`."""
        shell = await self.shell(cols=200)
        found = await shell.run(f"exec python3 {program}", r"listening (\d+)")
        return int(found[1])

    async def shown(self, port: int) -> str:
        """The address that shows a port, whole."""
        status, answer, _ = await self.world.call("POST", f"/api/sessions/{self.session_id}/ports/{port}")
        assert status == 201, answer
        return urljoin(self.world.url, answer["url"])

    async def phase(self) -> str:
        _, answer, _ = await self.world.call("GET", f"/api/sessions/{self.session_id}")
        found: str = answer["session"]["runtime"]["phase"]
        return found

    async def wake(self) -> None:
        """Have a sandbox, by opening a terminal and closing it."""
        shell = await self.shell()
        await self.viewer.ask("terminal:close", {"terminalId": shell.terminal_id})


@asynccontextmanager
async def provider_of(kind: str, root: Path) -> AsyncIterator[SandboxProvider]:
    if kind == "modal":
        async with modal_world() as modal:
            yield modal.provider()
    else:
        yield LocalSandboxes(root) if kind == "local" else UnsafeSubprocess(root)


@asynccontextmanager
async def inside(
    kind: str = "unsafe-subprocess",
    files: Mapping[str, str] | None = None,
    profile: str = "default",
    prefix: str = "",
    **options: Any,
) -> AsyncIterator[Inside]:
    """A server with a session of Anna's, these files in its workspace. No process may be left of it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-runtime-inside-")))
        gateway = SocketGateway(folder / "gateway")
        provider = await stack.enter_async_context(provider_of(kind, folder / "sandboxes"))
        w = await stack.enter_async_context(
            world(sandboxes=provider, gateway=gateway, prefix=prefix or None, **options)
        )
        path = f"{prefix}/socket.io".lstrip("/")
        viewer = await stack.enter_async_context(w.viewer(ANNA, socketio_path=path))
        w.url += prefix
        given = [{"path": path, "content": text} for path, text in (files or {}).items()]
        session = await w.session(workspaceFiles=given, agentProfileRef=profile)
        place = Inside(w, viewer, session, folder / "sandboxes", provider)
        try:
            yield place
        finally:
            await w.manager.stop_all()
            for ref in await provider.list("agent-runtime"):  # of a story that closed the server itself
                await (await provider.attach(ref)).stop()
            await eventually(lambda: not processes_of(place.root))
