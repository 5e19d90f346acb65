"""The local provider: bubblewrap, a seccomp filter, a network namespace and control groups of its own.

Sandboxes outlive the runtime and are found again by `list` and `attach`. A runtime that is root
gives each sandbox a uid and a disk of its own and is never root when it runs bubblewrap; an ordinary
user's sandboxes run as that user. What is inside is in `bubblewrap` and `toolchain`, how it is started
in `launching`, how it is kept in `keeper`, how it is bounded in `bounds`. Which of this can be had here
is found by trying (`tiers`).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities, Sandbox, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime_adapters.sandboxes import bubblewrap, landlocked, seccomp
from agent_runtime_adapters.sandboxes.bounds import Bounds
from agent_runtime_adapters.sandboxes.dependencies import DependencyStore, Tools
from agent_runtime_adapters.sandboxes.descriptors import hold
from agent_runtime_adapters.sandboxes.disk import IMAGE_NAME
from agent_runtime_adapters.sandboxes.execute_only import IS_ANY_OPEN, NO_COPY, NOT_SHUT, AgentCopies
from agent_runtime_adapters.sandboxes.keeper import Job, Keeper, Manner, no_snapshots, until_gone
from agent_runtime_adapters.sandboxes.landlocked import Landlocked
from agent_runtime_adapters.sandboxes.launchers import Launchers
from agent_runtime_adapters.sandboxes.launching import (
    NO_SITE,
    RUN_THEN_SAY_READY,
    RUNNER,
    SAY_READY_THEN_RUN,
    STAGE,
    Plan,
    interpreter,
    relay_options,
    variables_place,
)
from agent_runtime_adapters.sandboxes.probe import probe_spec
from agent_runtime_adapters.sandboxes.registry import Record
from agent_runtime_adapters.sandboxes.tiers import WITHOUT_NAMESPACES, Found, Tier, find_best
from agent_runtime_adapters.sandboxes.toolchain import (
    Mount,
    Toolchain,
    find_toolchain,
    toolchain_here,
    write_bytecode,
)
from agent_runtime_sandbox import frames

PROVIDER: Final = "local"
REACH_THE_GATEWAY: Final = """
import contextlib, os, socket
from agent_runtime_sandbox import frames
with contextlib.suppress(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as door:
    door.connect(os.environ[frames.GATEWAY_ENV])
"""
"""Run in place of a runner: fails where the runner's package or the gateway's socket is out of reach."""


class LocalSandboxes:
    """A `ports.SandboxProvider`.

    Args:
        root: a folder of this provider's own, on this machine; made when it is needed. Its path
            shows inside (in /proc/self/mountinfo): no secrets in it.
        runner: what the interpreter inside is told to run; tests put something smaller there.
        tiers: those that may be used; the best that can be had is.
        ahead: have a process wait for the next sandbox (8 MiB), which is there 20 ms earlier then; `close`
            ends it.
    """

    def __init__(
        self,
        root: Path,
        *,
        runner: tuple[str, ...] = RUNNER,
        tiers: tuple[Tier, ...] = tuple(Tier),
        ahead: bool = False,
    ) -> None:
        self._ahead = ahead
        self._launchers = Launchers()
        self._root = root
        self._runner = runner
        self._tiers = tiers
        self._capabilities: Capabilities | None = None
        self._probing = asyncio.Lock()
        self._dependencies = DependencyStore(root / "dependencies", mounted=True)
        self._dependencies_here = DependencyStore(root / "dependencies", mounted=False)
        self._agents = AgentCopies(root / ".agents")
        self._keeper = Keeper(root, _Bubblewrap(runner, self._dependencies, self._agents))

    @property
    def name(self) -> str:
        """`local`."""
        return PROVIDER

    async def probe(self) -> Capabilities:
        """Run a real sandbox, once; say how to get what is missing."""
        async with self._probing:
            if self._capabilities is None:
                await write_bytecode()
                found = await find_best(self._tiers, self._attempt)
                if found.tier is not None:
                    manner = self._manner(found.tier, found.bounds, self._runner)
                    self._keeper = Keeper(self._root, manner, self._launchers)
                    found = replace(found, reasons=(*found.reasons, *await self._is_open(found)))
                self._capabilities = found.capabilities(PROVIDER)
                if self._ahead and found.tier is not None:
                    with suppress(OSError):  # what is wrong is told to whoever wants a sandbox
                        await self._launchers.make_ready()
            return self._capabilities

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox. Raises `SandboxFault`: as the port says, and as `DependencyStore.prepare` does."""
        found = await self.probe()
        if not found.available:
            raise SandboxFault(" ".join(found.reasons), code="sandbox_unavailable", retryable=False)
        if found.isolation in WITHOUT_NAMESPACES:
            await self._dependencies_here.prepare(spec.needs.dependencies, toolchain_here())
        else:
            await self._agents.make()
            await self._dependencies.prepare(spec.needs.dependencies, find_toolchain())
        return await self._keeper.create(spec)

    async def attach(
        self,
        ref: SandboxRef,
        *,
        gateway_socket: Path | None = None,  # noqa: ARG002 - the path that was made reachable is the same
    ) -> Sandbox:
        """Find a living sandbox again. Raises `SandboxFault` (`sandbox_lost`)."""
        return await self._keeper.attach(ref)

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """All living sandboxes with this label."""
        return await self._keeper.list(runtime_id)

    async def forget(self, snapshot: SandboxSnapshot) -> None:  # noqa: ARG002
        """There are none. Raises `SandboxFault` (`unsupported`)."""
        raise no_snapshots()

    async def close(self) -> None:
        """Sandboxes are init's children and go on; packages are installed no further."""
        await self._launchers.close()
        await self._dependencies.close()
        await self._dependencies_here.close()

    async def _is_open(self, found: Found) -> tuple[str, ...]:
        """Why the agent is not shut to its tools, where it is not and nothing has been said of it."""
        assert found.tier is not None
        if found.tier in WITHOUT_NAMESPACES:
            return ()
        if not await self._agents.make():
            return (NO_COPY,)
        try:
            await self._attempt(found.tier, found.bounds, ("-c", IS_ANY_OPEN))
        except SandboxFault:
            return (NOT_SHUT,)
        return ()

    async def _attempt(
        self, tier: Tier, bounds: Bounds, runner: tuple[str, ...] = ("-c", REACH_THE_GATEWAY)
    ) -> None:
        """Make a sandbox that does its work and ends. Raises `SandboxFault`."""
        manner = self._manner(tier, bounds, runner, script=RUN_THEN_SAY_READY)
        with probe_spec() as spec:
            sandbox = await Keeper(self._root, manner).create(spec)
            await sandbox.stop()

    def _manner(
        self, tier: Tier, bounds: Bounds, runner: tuple[str, ...], *, script: str = SAY_READY_THEN_RUN
    ) -> Manner:
        if tier in WITHOUT_NAMESPACES:
            return Landlocked(runner, self._dependencies_here, script, PROVIDER, tier.value, bounds)
        return _Bubblewrap(
            runner, self._dependencies, self._agents, script=script, isolation=tier.value, bounds=bounds
        )


@dataclass(frozen=True)
class _Bubblewrap:
    """The `keeper.Manner` of this provider."""

    runner: tuple[str, ...]
    dependencies: DependencyStore
    agents: AgentCopies
    script: str = SAY_READY_THEN_RUN
    name: str = PROVIDER
    isolation: str = Tier.BUBBLEWRAP.value
    bounds: Bounds = field(default_factory=Bounds)

    def plan(self, job: Job, stack: ExitStack) -> Plan:
        """Everything inside, and the descriptors that carry it."""
        toolchain = find_toolchain(self.agents.found)
        tools = self.dependencies.tools(job.spec.needs.dependencies, toolchain)
        gateway, gateway_path = _gateway(job.spec.gateway_socket)
        mounts = [
            *toolchain.mounts,
            *tools.mounts,
            gateway,
            Mount(self._folder(job, "workspace"), bubblewrap.WORKSPACE, writable=True),
            Mount(self._folder(job, "home"), bubblewrap.HOME, writable=True),
        ]
        staged = tuple(mount.source for mount in mounts) if self.bounds.own_uid else ()
        if staged:
            mounts = [replace(mount, source=f"{STAGE}/{i}") for i, mount in enumerate(mounts)]
        options = bubblewrap.arguments(
            mounts, _environment(toolchain, tools, gateway_path), memory_bytes=job.resources.memory_bytes
        )
        watch = self.bounds.watched_disk(job.resources)
        more = (*toolchain.options, *watch, *relay_options(job.spec))
        inside = interpreter((toolchain.python, NO_SITE), self.runner, job.spec, *more)
        return Plan(
            argv=bubblewrap.command(_program(), self.bounds.set_inside(job.resources) + self.script, inside),
            cwd="/",
            places={**job.places, **variables_place(job.spec, stack), **_data_places(options, stack)},
            limits=self.bounds.limits(job.resources),
            stage_sources=staged,
            disk=job.folder / IMAGE_NAME if self.bounds.disks is not None else None,
            uid=job.record.uid,
            tells_inner=True,
        )

    def _folder(self, job: Job, name: str) -> str:
        """A folder of the sandbox's own disk, where it has one."""
        return str(job.folder / name) if self.bounds.disks is None else name

    async def ask_to_end(self, record: Record, within_s: float) -> None:
        """The runner is the child of the sandbox's first process, which takes no signals itself."""
        if record.inner is not None:
            await until_gone(record.inner.children(), within_s)

    async def end(self, record: Record) -> None:
        """The first process of a PID namespace takes all others with it.

        One that is not noted yet would wait for ever for a keeper that is gone.
        """
        if record.inner is not None and record.inner == record.keeper:
            await landlocked.end(record)  # it was made where there were no namespaces
            return
        marks = [mark for mark in (record.inner, record.keeper) if mark is not None]
        if record.inner is None and record.keeper is not None:
            await record.keeper.halt()
            marks = [*record.keeper.children(), record.keeper]
        for mark in marks:
            mark.kill()
        for mark in marks:
            await mark.gone()


def _environment(toolchain: Toolchain, tools: Tools, gateway: str) -> dict[str, str]:
    return {
        **tools.environment("/usr/local/bin:/usr/bin:/bin"),
        "HOME": bubblewrap.HOME,
        "USER": "agent",
        "SHELL": "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        **toolchain.env,
        frames.GATEWAY_ENV: gateway,
        frames.WORKSPACE_ENV: bubblewrap.WORKSPACE,
        frames.HOME_ENV: bubblewrap.HOME,
    }


def _gateway(socket: Path) -> tuple[Mount, str]:
    """Its folder where nothing else is in it: then a runtime that is started anew can bind it anew."""
    folder = socket.parent
    if list(folder.iterdir()) == [socket]:
        return Mount(str(folder), bubblewrap.GATEWAY_FOLDER), f"{bubblewrap.GATEWAY_FOLDER}/{socket.name}"
    inside = f"{bubblewrap.GATEWAY_FOLDER}/gateway.sock"
    return Mount(str(socket), inside), inside


def _data_places(options: bytes, stack: ExitStack) -> dict[int, int]:
    contents = {
        bubblewrap.ARGUMENTS_PLACE: options,
        bubblewrap.SECCOMP_PLACE: seccomp.program(),
        **{place: bubblewrap.DATA_FILES[path].encode() for path, place in bubblewrap.DATA_PLACES.items()},
    }
    return {place: hold(data, stack) for place, data in contents.items()}


def _program() -> str:
    program = shutil.which("bwrap")
    if program is None or sys.platform != "linux":
        raise SandboxFault("bubblewrap is gone.", code="sandbox_unavailable", retryable=False)
    return program
