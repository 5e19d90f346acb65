"""An account at a local Modal, seen through the real SDK, for each of its two backends."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modal
import pytest

from agent_runtime_modal_local import LocalModal

BACKENDS = {"v2": "1", "v1": "0"}
both_backends = pytest.mark.parametrize("backend", list(BACKENDS))


@dataclass
class Account:
    server: LocalModal
    client: modal.Client
    app: modal.App

    async def create(self, *args: str, **options: Any) -> modal.Sandbox:
        # The SDK keeps its usual image for a whole process, and each test has a server of its own.
        options.setdefault("image", modal.Image.debian_slim())
        return await modal.Sandbox.create.aio(*args, app=self.app, client=self.client, **options)

    async def again(self, sandbox: modal.Sandbox) -> modal.Sandbox:
        """A second handle, as another process would get it."""
        return await modal.Sandbox.from_id.aio(sandbox.object_id, client=self.client)

    async def listed(self, **tags: str) -> set[str]:
        found = modal.Sandbox.list.aio(app_id=self.app.app_id, tags=tags, client=self.client)
        return {sandbox.object_id async for sandbox in found}

    async def report(self, sandbox: modal.Sandbox) -> dict[str, Any]:
        """What the server tells of a sandbox."""
        (found,) = [s for s in await self.server.sandboxes() if s["sandboxId"] == sandbox.object_id]
        return found


@asynccontextmanager
async def account(root: Path, backend: str = "v2") -> AsyncIterator[Account]:
    async with LocalModal(root) as server, client_of(server, backend) as client:
        app = await modal.App.lookup.aio("tests", create_if_missing=True, client=client)
        yield Account(server, client, app)


@asynccontextmanager
async def client_of(server: LocalModal, backend: str = "v2") -> AsyncIterator[modal.Client]:
    with server.in_environment({"MODAL_SANDBOX_V2": BACKENDS[backend]}):
        credentials = os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
        client = await modal.Client.from_credentials.aio(*credentials)
        try:
            yield client
        finally:
            await client.close.aio()


async def run(sandbox: modal.Sandbox, *argv: str, **options: Any) -> str:
    """What a command prints; it has to end well."""
    process = await sandbox.exec.aio(*argv, text=False, **options)
    out, err = await process.stdout.read.aio(), await process.stderr.read.aio()
    assert await process.wait.aio() == 0, (out + err).decode()
    return out.decode().replace("\r\n", "\n").strip()


async def python(sandbox: modal.Sandbox, code: str) -> str:
    """What Python code prints inside, with the interpreter that every sandbox has."""
    return await run(sandbox, "/opt/agent-runtime/bin/python", "-c", code)
