"""One sandbox on Modal, as this process knows it: its handle, and the trunk that leads into it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import modal
import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime_adapters.sandboxes.modal import endings, labels
from agent_runtime_adapters.sandboxes.modal.account import Account
from agent_runtime_adapters.sandboxes.modal.calls import GONE, call, repeated
from agent_runtime_adapters.sandboxes.modal.channel import ModalChannel
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.trunk import Route, Trunk
from agent_runtime_sandbox import image as inside

CONTROL: Final = "/run/agent-runtime/control"
"""The runner's folder: its socket and its journal. Nobody enters it but root and trunks."""
GATEWAY: Final = "/run/agent-runtime/gateway/s"
"""The socket of the agent's model, inside."""
_ENDED_PAUSE_S: Final = 0.25
_DAY_S: Final = 24 * 3600

_log = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[Any]"]


class ModalSandbox:
    """A `ports.Sandbox`.

    Args:
        account: finds its handle again where that was let go.
        spawn: owns the task of the trunk.
        ended: told when it was ended here.
        handle: where it is known already.
    """

    def __init__(
        self,
        account: Account,
        options: ModalOptions,
        ref: SandboxRef,
        *,
        spawn: Spawn,
        ended: Callable[[ModalSandbox], None],
        handle: modal.Sandbox | None = None,
    ) -> None:
        self._account = account
        self._options = options
        self._ref = ref
        self._spawn = spawn
        self._tell_ended = ended
        self._handle = handle
        self._trunk: Trunk | None = None
        self._running: asyncio.Task[Any] | None = None
        self._gateway: Path | None = None
        self._ended = False

    @property
    def ref(self) -> SandboxRef:
        """How to find it again."""
        return self._ref

    @property
    def expires_at(self) -> datetime | None:
        """When Modal ends it."""
        return labels.expiry(self._ref)

    async def handle(self) -> modal.Sandbox:
        """The SDK's object. Raises `SandboxFault`."""
        if self._handle is None:
            self._handle = await self._account.sandbox(labels.checked_id(self._ref))
        return self._handle

    async def serve(self, gateway: Path) -> None:
        """Join the agent's requests to this socket from now on, whether anybody connects or not."""
        if gateway != self._gateway or self._running is None or self._running.done():
            await self._let_go_of_the_trunk()
            self._gateway = gateway
            self._open_trunk()

    async def until_ready(self) -> None:
        """Return when its runner is there. Raises `SandboxFault`."""
        await self._open_trunk().ready()

    async def connect(self) -> ModalChannel:
        """Open a stream to the runner. Raises `SandboxFault` (`sandbox_lost`)."""
        if self._ended:
            raise SandboxFault(GONE, code="sandbox_lost")
        return ModalChannel(await self._open_trunk().connect())

    async def alive(self) -> bool:
        """Whether it runs, as Modal sees it. Raises `SandboxFault` where Modal does not answer."""
        return not self._ended and await self.exit_code() is None

    async def exit_code(self) -> int | None:
        """With which code its runner ended, -1 where that is not known; None while it runs."""
        try:
            handle = await self.handle()
            return await repeated(handle.poll.aio, self._options.call_within_s)
        except SandboxFault as fault:
            if fault.code != "sandbox_lost":
                raise
            return -1

    async def mishap(self) -> SandboxFault | None:
        """What ended it, where Modal tells. Raises `SandboxFault` where Modal does not answer."""
        if self._ended or await self.exit_code() is None or self._handle is None:
            return None
        return endings.cause(self._handle)

    async def assign(self, session_id: str) -> None:
        """Note whose it is. Raises `SandboxFault`."""
        if not await self.alive():
            raise SandboxFault(GONE, code="sandbox_lost")
        handle, within_s = await self.handle(), self._options.call_within_s
        tags = await repeated(handle.get_tags.aio, within_s)
        await repeated(lambda: handle.set_tags.aio({**tags, labels.SESSION: session_id}), within_s)

    async def snapshot(self) -> SandboxSnapshot:
        """Keep its files. What the runner keeps is emptied by whichever runner finds it there."""
        handle, within_s = await self.handle(), self._options.snapshot_within_s
        image = await call(
            handle.snapshot_filesystem.aio(int(within_s), ttl=self._options.snapshot_days * _DAY_S),
            within_s + self._options.call_within_s,
        )
        return SandboxSnapshot(
            snapshot_id=image.object_id, provider=self._ref.provider, taken_at=datetime.now(UTC)
        )

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it; with a grace its runner is told first. Idempotent. Raises `SandboxFault`."""
        if self._ended:
            return
        if grace_s:
            await self._ask_to_end(grace_s)
        await self._let_go_of_the_trunk()
        try:
            handle = await self.handle()
            await repeated(lambda: handle.terminate.aio(wait=True), self._options.call_within_s)
        except SandboxFault as fault:
            if fault.code != "sandbox_lost":
                raise
        self._ended = True
        self._tell_ended(self)
        await self.let_go()
        _log.debug("sandbox_ended", sandbox_id=self._ref.sandbox_id)

    async def let_go(self) -> None:
        """Close what this process holds of it; it goes on. Idempotent."""
        await self._let_go_of_the_trunk()
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(SandboxFault):
                await call(handle.detach.aio(), self._options.call_within_s)  # type: ignore[no-untyped-call]

    def renew(self) -> None:
        """Look the handle up again when it is needed; the old one may be in use, and closes by itself."""
        self._handle = None

    def _open_trunk(self) -> Trunk:
        if self._trunk is None or self._running is None or self._running.done():
            route = Route(
                python=inside.PYTHON,
                control=CONTROL,
                gateway_inside=GATEWAY,
                gateway=self._gateway,
                start_within_s=self._options.start_within_s,
                call_within_s=self._options.call_within_s,
            )
            self._trunk = Trunk(self, route)
            self._running = self._spawn(self._trunk.run())
        return self._trunk

    async def _let_go_of_the_trunk(self) -> None:
        (running, trunk), self._running, self._trunk = (self._running, self._trunk), None, None
        if running is not None and trunk is not None and not running.done():
            trunk.close()
            running.cancel()
            await asyncio.wait([running])

    async def _ask_to_end(self, grace_s: float) -> None:
        with suppress(SandboxFault, TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._open_trunk().ask_to_end()
                while await self.alive():  # noqa: ASYNC110 - only Modal knows, and has to be asked
                    await asyncio.sleep(_ENDED_PAUSE_S)
