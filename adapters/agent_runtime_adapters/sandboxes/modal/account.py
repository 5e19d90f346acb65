"""The account as this process uses it: one client, one app, the images.

The client is Modal's own single one for this process (`Client.from_env`): connections, tokens and
retries are shared. Each thing is looked up once, by whoever needs it first; what failed is tried
again by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import modal
from modal import experimental

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime_adapters.sandboxes.modal.calls import call, repeated
from agent_runtime_adapters.sandboxes.modal.image import Images
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.packages import recipe_for


class Account:
    """What sandboxes are made with and found by. All methods raise `SandboxFault`."""

    def __init__(self, options: ModalOptions) -> None:
        self._options = options
        self._app: modal.App | None = None
        self._images: Images | None = None
        self._lock = asyncio.Lock()

    async def client(self) -> modal.Client:
        """The client of this process; where it was closed, the next one."""
        return await call(modal.Client.from_env.aio(), self._options.call_within_s)

    async def app(self) -> modal.App:
        """The app; it is made where it is not there."""
        async with self._lock:
            if self._app is None:
                client = await self.client()
                missing = f"Modal has no environment called '{self._options.environment}'."
                self._app = await call(
                    modal.App.lookup.aio(
                        self._options.app,
                        client=client,
                        environment_name=self._options.environment,
                        create_if_missing=True,
                    ),
                    self._options.call_within_s,
                    missing=_not_had(missing),
                )
            return self._app

    async def image(self, spec: SandboxSpec) -> modal.Image:
        """What a sandbox begins with: its snapshot, the named image, or the one that its needs describe."""
        client, app = await self.client(), await self.app()
        if spec.snapshot is not None:
            return modal.Image.from_id(spec.snapshot.snapshot_id, client=client)
        if (name := spec.needs.image or self._options.image) is not None:
            named = modal.Image.from_name(name, environment_name=self._options.environment, client=client)
            missing = f"Modal has no image '{name}': publish it with `agent-runtime deploy-image`."
            return await call(named.build.aio(app), self._options.call_within_s, missing=_not_had(missing))
        if self._images is None:
            self._images = Images(app, environment=self._options.environment)
        return await self._images.of(recipe_for(spec.needs.dependencies))

    async def sandbox(self, sandbox_id: str) -> modal.Sandbox:
        """A sandbox by its id."""
        client = await self.client()
        return await repeated(
            lambda: modal.Sandbox.from_id.aio(sandbox_id, client=client), self._options.call_within_s
        )

    async def sandboxes(self, tags: Mapping[str, str]) -> list[modal.Sandbox]:
        """Those that run and have at least these tags."""
        client, app = await self.client(), await self.app()

        async def listed() -> list[modal.Sandbox]:
            found: Any = modal.Sandbox.list.aio(app_id=app.app_id, tags=dict(tags), client=client)
            return await _all(found)

        return await repeated(listed, self._options.call_within_s)

    async def forget(self, image_id: str) -> None:
        """Delete an image; one that is not there is deleted already."""
        client = await self.client()
        try:
            await repeated(
                lambda: experimental.image_delete.aio(image_id, client=client), self._options.call_within_s
            )
        except SandboxFault as fault:
            if fault.code != "sandbox_lost":
                raise

    def closed(self) -> None:
        """Forget what belongs to a client that may be closed."""
        self._app = self._images = None


async def _all(found: AsyncIterator[modal.Sandbox]) -> list[modal.Sandbox]:
    async with aclosing(found) as sandboxes:  # type: ignore[type-var]
        return [sandbox async for sandbox in sandboxes]


def _not_had(detail: str) -> SandboxFault:
    return SandboxFault(detail, code="sandbox_unavailable", retryable=False)


async def close_client() -> None:
    """Close the client of this process, where its server is about to go. Whoever asks next gets another."""
    client = await modal.Client.from_env.aio()
    await client.close.aio()
