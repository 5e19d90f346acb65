"""The server: all parts put together, two gRPC ports and an admin port, from start to end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grpclib.server import Server

from agent_runtime_modal_local.accounts import Account
from agent_runtime_modal_local.admin import LINE_BYTES, Admin
from agent_runtime_modal_local.background import Background
from agent_runtime_modal_local.clock import Clock
from agent_runtime_modal_local.enclosure import Enclosures
from agent_runtime_modal_local.faults import Faults
from agent_runtime_modal_local.folders import folder_of_a_server
from agent_runtime_modal_local.images import Images
from agent_runtime_modal_local.router import Router
from agent_runtime_modal_local.rpc import Replies, Service, StatusDetails
from agent_runtime_modal_local.sandbox_calls import SandboxCalls
from agent_runtime_modal_local.sandboxes import Sandboxes
from agent_runtime_modal_local.tokens import Tokens

LOOPBACK: Final = "127.0.0.1"


class Port:
    """One service on one port of the loopback, which can be taken away and brought back."""

    def __init__(self, service: Service, port: int = 0) -> None:
        self._service = service
        self._server: Any = None
        self.port = port

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://{LOOPBACK}:{self.port}"

    async def set_power(self, up: bool) -> None:
        """Serve, or break all connections and refuse new ones."""
        if up and self._server is None:
            # Only where it is said to be TCP does asyncio send each answer at once, and not 40 ms later.
            listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((LOOPBACK, self.port))
            self.port = listening.getsockname()[1]
            self._server = Server([self._service], status_details_codec=StatusDetails())
            await self._server.start(sock=listening)
        elif not up and self._server is not None:
            server, self._server = self._server, None
            # grpclib lets connections end in peace, which is not what a broken machine does.
            for connection in list(server._handlers):  # noqa: SLF001
                for stream in list(connection._tasks):  # noqa: SLF001
                    stream._transport.abort()  # noqa: SLF001
            server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await server.wait_closed()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves: what others need to talk to it."""

    control: Port
    admin: Admin
    admin_port: int
    account: Account
    as_root: bool
    folder: Path

    def environment(self) -> dict[str, str]:
        """The variables that make the SDK talk to this server, and to nobody else."""
        return {
            "MODAL_SERVER_URL": self.control.url,
            "MODAL_TOKEN_ID": self.account.token_id,
            "MODAL_TOKEN_SECRET": self.account.token_secret,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CONFIG_PATH": str(self.folder / "no-modal.toml"),
            "MODAL_DISABLE_API_PROXY": "1",
        }

    def announcement(self) -> dict[str, Any]:
        """The one line that a server prints."""
        return {
            "url": self.control.url,
            "environment": self.environment(),
            "admin": {"port": self.admin_port, "token": self.admin.token},
            "users": ["root", "agent"] if self.as_root else ["root"],
            "pid": os.getpid(),
        }


@asynccontextmanager
async def serving(root: Path, port: int = 0) -> AsyncIterator[Running]:
    """Serve until the block ends; then no process and no file is left.

    Args:
        root: where the server makes a folder of its own.
        port: of the control plane; 0 takes any.

    Raises:
        NoEnclosure: sandboxes cannot be made on this machine.
    """
    with folder_of_a_server(root) as folder:
        async with asyncio.TaskGroup() as group:
            background = Background(group)
            parts = _Parts(folder, background)
            try:
                yield await parts.start(port)
            finally:
                await parts.stop()
                background.cancel()


class _Parts:
    def __init__(self, folder: Path, background: Background) -> None:
        self._folder = folder
        self._account, self._clock, self._faults, self._tokens = Account(), Clock(), Faults(), Tokens()
        enclosures = Enclosures(folder / "stage")
        images = Images(folder, enclosures)
        replies = Replies(background)
        self._as_root = enclosures.as_root
        self._sandboxes = Sandboxes(folder / "sandboxes", enclosures, images, self._clock, background)
        router = Router(self._faults, replies, self._account, self._tokens, self._sandboxes)
        calls = SandboxCalls(self._faults, replies, self._account, images, self._tokens)
        self._data = Port(router)
        calls.sandboxes, calls.router_url = self._sandboxes, lambda: self._data.url
        self._calls = calls
        self._admin = Admin(
            faults=self._faults,
            tokens=self._tokens,
            clock=self._clock,
            images=images,
            sandboxes=self._sandboxes,
            router=router,
            power=self._data.set_power,
        )

    async def start(self, port: int) -> Running:
        self._control = Port(self._calls, port)
        await self._control.set_power(True)
        await self._data.set_power(True)
        self._lines = await asyncio.start_server(self._admin.serve, LOOPBACK, 0, limit=LINE_BYTES)
        admin_port = self._lines.sockets[0].getsockname()[1]
        return Running(self._control, self._admin, admin_port, self._account, self._as_root, self._folder)

    async def stop(self) -> None:
        self._lines.close()
        await self._control.set_power(False)
        await self._data.set_power(False)
        await self._sandboxes.close()
