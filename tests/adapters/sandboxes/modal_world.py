"""A place for tests of the Modal provider: a local Modal that the real SDK talks to, for both backends.

async with modal_world(v2=True) as it:
    it.local                what the server saw, and ways to make it fail
    it.provider()           a provider over it, as a runtime finds it after a start
    await it.inside(sandbox, "ps ax")   what a command, run as root inside, says
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import modal
import pytest

from agent_runtime.ports import Sandbox
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.provider import ModalSandboxes
from agent_runtime_adapters.sandboxes.modal.sandbox import ModalSandbox
from agent_runtime_modal_local import LocalModal

needs_users = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="a local Modal has a user for the agent only where root runs it",
)

QUICK = ModalOptions(start_within_s=20, call_within_s=5)


class ModalWorld:
    """A local Modal and who uses it."""

    def __init__(self, local: LocalModal, root: Path) -> None:
        self.local = local
        self._root = root
        self._providers: list[ModalSandboxes] = []

    def provider(self, options: ModalOptions = QUICK) -> ModalSandboxes:
        """A provider that knows nothing yet; closed in the end."""
        self._providers.append(ModalSandboxes(options))
        return self._providers[-1]

    def environment(self) -> dict[str, str]:
        """For a process that is to talk to this server."""
        return {**os.environ, **self.local.environment()}

    def leftovers(self) -> list[str]:
        """What the server keeps of sandboxes: a folder for each."""
        return sorted(str(path.relative_to(self._root)) for path in self._root.glob("*/sandboxes/*"))

    async def living(self) -> list[dict[str, Any]]:
        """The sandboxes that run, as the server tells of them."""
        return [told for told in await self.local.sandboxes() if told["ended"] is None]

    @staticmethod
    async def inside(sandbox: Sandbox, script: str, *, user: str | None = None) -> str:
        """What a shell says there, on both outputs: root's, or another user's as its agent is."""
        assert isinstance(sandbox, ModalSandbox)
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--") if user else ()
        handle = await sandbox.handle()
        process = await handle.exec.aio(*as_user, "sh", "-c", f"exec 2>&1; {script}")
        said: str = await process.stdout.read.aio()
        return said

    async def close(self) -> None:
        """Let go of everything, the SDK's client too."""
        for provider in self._providers:
            await provider.close()
        client = await modal.Client.from_env.aio()
        await client.close.aio()


@asynccontextmanager
async def modal_world(*, v2: bool = True) -> AsyncIterator[ModalWorld]:
    """A server of its own, for one of the SDK's two backends; nothing of it is left afterwards."""
    with TemporaryDirectory(prefix="modal-world-") as folder:
        async with LocalModal(Path(folder)) as local:
            with local.in_environment({"MODAL_SANDBOX_V2": "1" if v2 else "0"}):
                world = ModalWorld(local, Path(folder))
                try:
                    yield world
                finally:
                    await world.close()
