"""The Modal provider: sandboxes in somebody's Modal account, by the real SDK.

A sandbox begins with our runner, as root only as long as it takes to become the agent's user
(`agent_runtime_sandbox.identity`). It has no network: connections to the runner and the agent's
requests to its model go through one process that we start inside (`trunk`). It carries tags from
birth, by which every process finds it again; what is held here is remembered for speed only. This
module and those beside it import `modal`, which is slow: only who has chosen Modal imports them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import modal
import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities, Sandbox, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime.tasks import Tasks, unhindered
from agent_runtime_adapters.sandboxes.bounds import granted
from agent_runtime_adapters.sandboxes.launching import relay_options
from agent_runtime_adapters.sandboxes.modal import labels
from agent_runtime_adapters.sandboxes.modal.account import Account
from agent_runtime_adapters.sandboxes.modal.calls import call, repeated
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.sandbox import CONTROL, GATEWAY, ModalSandbox
from agent_runtime_adapters.sandboxes.probe import probe_spec
from agent_runtime_sandbox import frames, identity, trunk
from agent_runtime_sandbox import image as inside

PROVIDER: Final = "modal"
ISOLATION: Final = "gvisor"
ENFORCES: Final = ("cpu", "memory_bytes")
REASONS: Final = (
    "Processes of a sandbox are bounded by Modal's own limits only.",
    "The disk of a sandbox is watched: one that takes more is ended.",
)
SETTLE_S: Final = 10.0
"""How long a creation that nobody wants any more may take to tell what it made."""
_MIB: Final = 1024 * 1024
_ASKED_AT_ONCE: Final = 8
_RESERVED_CPU: Final = 1.0
_RESERVED_MIB: Final = 1024
"""What is reserved of what a sandbox may use: Modal bills the greater of the reserved and the used."""

_log = structlog.get_logger(__name__)


class ModalSandboxes:
    """A `ports.SandboxProvider`.

    Args:
        options: where and how.
        name: the provider's name in records; another one where it is not Modal that answers.
        isolation: what holds a sandbox there, in a word or two.
    """

    def __init__(
        self, options: ModalOptions | None = None, *, name: str = PROVIDER, isolation: str = ISOLATION
    ) -> None:
        self._options = options or ModalOptions()
        self._name = name
        self._isolation = isolation
        self._account = Account(self._options)
        self._tasks: Tasks | None = None
        self._opening = asyncio.Lock()
        self._held: dict[str, ModalSandbox] = {}
        self._found: Capabilities | None = None

    @property
    def name(self) -> str:
        """`modal`, unless it was given another."""
        return self._name

    async def probe(self) -> Capabilities:
        """Run a sandbox for a moment; what was found is remembered once it is good."""
        if self._found is None:
            reason = await self._what_is_wrong()
            found = Capabilities(
                self._name,
                available=reason is None,
                isolation=self._isolation,
                reasons=REASONS if reason is None else (reason,),
                enforces=ENFORCES,
                snapshots=True,
            )
            if reason is not None:
                return found
            self._found = found
        return self._found

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox and wait for its runner. Raises `SandboxFault`; then nothing is left."""
        if not spec.gateway_socket.is_socket():
            raise SandboxFault("The model gateway's socket is missing.")
        creation = _Creation(uuid.uuid4().hex)
        try:
            image = await self._account.image(spec)
            tasks = await self._own_tasks()
            creation.task = tasks.spawn(self._make(spec, image, creation))
            await creation.settled.wait()
            if creation.fault is not None:
                raise creation.fault
            sandbox = self._hold(creation.ref(), creation.handle)
            await sandbox.serve(spec.gateway_socket)
            await self._until_ready(sandbox)
        except BaseException:
            await unhindered(self._undo(creation))
            raise
        return sandbox

    async def attach(self, ref: SandboxRef, *, gateway_socket: Path | None = None) -> Sandbox:
        """Find a living sandbox again. Raises `SandboxFault`: `sandbox_lost`, or its mishap."""
        sandbox_id = labels.checked_id(ref)
        sandbox = self._held.get(sandbox_id)
        if sandbox is None:
            handle = await self._account.sandbox(sandbox_id)
            found = await self._ref_of(handle)
            if found is None:
                raise SandboxFault("The sandbox is none of ours.", code="sandbox_lost")
            await self._own_tasks()
            sandbox = self._hold(found, handle)
        if not await sandbox.alive():
            mishap = await sandbox.mishap()
            await self._let_go(sandbox)
            raise mishap or SandboxFault("The sandbox is gone.", code="sandbox_lost")
        if gateway_socket is not None:
            await sandbox.serve(gateway_socket)
        return sandbox

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """All living ones with this label. Raises `SandboxFault`."""
        handles = await self._account.sandboxes({labels.RUNTIME: runtime_id})
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def asked(handle: modal.Sandbox) -> SandboxRef | None:
            if (held := self._held.get(handle.object_id)) is not None:
                return held.ref
            async with gate:
                return await self._ref_of(handle)

        refs = await asyncio.gather(*(asked(handle) for handle in handles))
        return tuple(sorted(filter(None, refs), key=lambda ref: (ref.started_at, ref.sandbox_id)))

    async def forget(self, snapshot: SandboxSnapshot) -> None:
        """Remove a snapshot. Idempotent. Raises `SandboxFault`."""
        await self._account.forget(snapshot.snapshot_id)

    async def close(self) -> None:
        """Let go of all sandboxes, which go on. The client is the process's own and stays."""
        held, self._held = list(self._held.values()), {}
        for sandbox in held:
            await sandbox.let_go()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            await tasks.close()
        self._account.closed()

    async def _make(self, spec: SandboxSpec, image: modal.Image, creation: _Creation) -> None:
        """Ask for the sandbox. Its creator may be gone when the answer comes."""
        try:
            app, client = await self._account.app(), await self._account.client()
            asked = self._arguments(spec, creation)
            creation.handle = await call(
                modal.Sandbox.create.aio(*self._command(spec), app=app, image=image, client=client, **asked),
                self._options.start_within_s,
                missing=_what_is_missing(spec),
            )
        except SandboxFault as fault:
            creation.fault = fault
        finally:
            creation.settled.set()

    def _arguments(self, spec: SandboxSpec, creation: _Creation) -> dict[str, Any]:
        lifetime_s = min(self._options.lifetime_s, int(spec.needs.lifetime_s or self._options.lifetime_s))
        created = datetime.now(UTC)
        expires = created + timedelta(seconds=lifetime_s)
        creation.tags = labels.written(
            spec, creation=creation.id, isolation=self._isolation, created=created, expires=expires
        )
        creation.provider = self._name
        resources = granted(spec.needs.resources)
        cpu = resources.cpu or _RESERVED_CPU
        memory_mib = (resources.memory_bytes or 0) // _MIB or _RESERVED_MIB
        return {
            "tags": creation.tags,
            "env": _environment(spec),
            "timeout": lifetime_s,
            "idle_timeout": self._options.idle_s,
            "workdir": "/",
            "block_network": True,
            "region": list(self._options.regions) or None,
            "cloud": self._options.cloud,
            "cpu": (min(cpu, _RESERVED_CPU), cpu),
            "memory": (min(memory_mib, _RESERVED_MIB), memory_mib),
        }

    def _command(self, spec: SandboxSpec) -> tuple[str, ...]:
        """The runner's own command line: the sandbox lives as long as it does."""
        return (
            *(inside.PYTHON, "-P", "-s", "-m", "agent_runtime_sandbox", "--user", inside.USER),
            *("--listen", f"{CONTROL}/{trunk.SOCKET}", "--journal", f"{CONTROL}/journal"),
            *("--orphan-timeout", f"{spec.orphan_timeout_s:g}"),
            *(f"--ignore={name}" for name in spec.file_rules.ignore),
            *("--max-file-bytes", str(spec.file_rules.max_file_bytes)),
            *("--max-files", str(spec.file_rules.max_files)),
            *_bounds_and_relay(spec),
        )

    async def _until_ready(self, sandbox: ModalSandbox) -> None:
        try:
            await sandbox.until_ready()
        except SandboxFault as fault:
            if fault.code != "sandbox_lost":
                raise
            code = await sandbox.exit_code()
            told = f" (exit code {code})" if code is not None and code >= 0 else ""
            raise SandboxFault(f"The sandbox ended while it started{told}.") from fault

    async def _undo(self, creation: _Creation) -> None:
        """End what a creation made that failed or was given up, also where its answer was lost."""
        if creation.task is None:
            return
        try:
            await asyncio.wait([creation.task], timeout=SETTLE_S)
            creation.task.cancel()
            if creation.handle is not None:
                await self._end(creation.handle)
            else:
                for handle in await self._account.sandboxes({labels.CREATION: creation.id}):
                    await self._end(handle)
        except SandboxFault as fault:  # why the creation failed is what is told; the reaper finds the rest
            _log.warning("sandbox_not_undone", creation=creation.id, detail=fault.detail)

    async def _end(self, handle: modal.Sandbox) -> None:
        if (held := self._held.pop(handle.object_id, None)) is not None:
            await held.stop()
        else:
            await repeated(lambda: handle.terminate.aio(wait=True), self._options.call_within_s)

    async def _ref_of(self, handle: modal.Sandbox) -> SandboxRef | None:
        """What its tags say; None of one that is gone by now, or is not ours."""
        try:
            tags = await repeated(handle.get_tags.aio, self._options.call_within_s)
        except SandboxFault as fault:
            if fault.code != "sandbox_lost":
                raise
            return None
        return labels.read(handle.object_id, tags, self._name)

    def _hold(self, ref: SandboxRef, handle: modal.Sandbox | None) -> ModalSandbox:
        assert self._tasks is not None
        sandbox = ModalSandbox(
            self._account, self._options, ref, spawn=self._tasks.spawn, handle=handle, ended=self._drop
        )
        self._held[ref.sandbox_id] = sandbox
        return sandbox

    def _drop(self, sandbox: ModalSandbox) -> None:
        self._held.pop(sandbox.ref.sandbox_id, None)

    async def _let_go(self, sandbox: ModalSandbox) -> None:
        self._drop(sandbox)
        await sandbox.let_go()

    async def _own_tasks(self) -> Tasks:
        async with self._opening:
            if self._tasks is None:
                tasks = Tasks()
                await tasks.open()
                self._tasks = tasks
            return self._tasks

    async def _what_is_wrong(self) -> str | None:
        try:
            with probe_spec() as spec:
                short = spec.needs.model_copy(update={"lifetime_s": 300.0})
                sandbox = await self.create(replace(spec, needs=short))
                await sandbox.stop()
        except SandboxFault as fault:
            return fault.detail
        return None


@dataclass(slots=True)
class _Creation:
    """One sandbox being asked for: found by its id among the tags where the answer is lost."""

    id: str
    task: asyncio.Task[Any] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    handle: modal.Sandbox | None = None
    fault: SandboxFault | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    provider: str = ""

    def ref(self) -> SandboxRef:
        """The reference of what was made."""
        assert self.handle is not None
        ref = labels.read(self.handle.object_id, self.tags, self.provider)
        assert ref is not None
        return ref


def _bounds_and_relay(spec: SandboxSpec) -> tuple[str, ...]:
    disk_bytes = granted(spec.needs.resources).disk_bytes
    return ("--disk-bytes", str(disk_bytes), *relay_options(spec))


def _environment(spec: SandboxSpec) -> dict[str, str]:
    """The runner's own variables, and the agent's, which the runner takes out of one of them.

    Whatever we start inside finds the runner's package by PYTHONPATH, and nothing else beside its own.
    """
    return {
        "PYTHONPATH": inside.RUNNER_PARENT,
        frames.GATEWAY_ENV: GATEWAY,
        frames.WORKSPACE_ENV: inside.WORKSPACE,
        frames.HOME_ENV: inside.HOME,
        identity.ENVIRONMENT: json.dumps({**spec.needs.env, **spec.secrets}),
    }


def _what_is_missing(spec: SandboxSpec) -> SandboxFault:
    if spec.snapshot is not None:
        return SandboxFault("Modal has that snapshot no more.", code="snapshot_lost", retryable=False)
    detail = "Modal does not find the image, the region or the cloud that the settings name."
    return SandboxFault(detail, code="sandbox_unavailable", retryable=False)
