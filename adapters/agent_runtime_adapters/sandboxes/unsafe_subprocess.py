"""The runner as a plain process of this machine: no isolation at all. Only ever chosen by name.

For machines where no sandbox can be had and where the agent is trusted with everything the user
has: files, network, other processes. What it shares with `local` is that it outlives the runtime
and is found again. Its processes are ended as well as can be: one that leaves its kernel session
*and* its parent *and* throws away its environment is not found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities, Sandbox, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime_adapters.sandboxes import processes
from agent_runtime_adapters.sandboxes.bounds import Bounds
from agent_runtime_adapters.sandboxes.dependencies import DependencyStore
from agent_runtime_adapters.sandboxes.keeper import Job, Keeper, no_snapshots, until_gone
from agent_runtime_adapters.sandboxes.launching import (
    RUNNER,
    SAY_READY_THEN_RUN,
    Plan,
    interpreter,
    variables_place,
)
from agent_runtime_adapters.sandboxes.processes import ProcessMark
from agent_runtime_adapters.sandboxes.registry import Record
from agent_runtime_adapters.sandboxes.toolchain import toolchain_here
from agent_runtime_sandbox import frames

PROVIDER: Final = "unsafe-subprocess"
ISOLATION: Final = "none"
WARNING: Final = (
    "There is no isolation: the agent runs as this user, with this user's files, network and processes."
)
ELSEWHERE: Final = "Only Linux is supported: processes are told apart by /proc."

_log = structlog.get_logger(__name__)


class UnsafeSubprocess:
    """A `ports.SandboxProvider` without isolation; says so in the log and in its capabilities.

    Args:
        root: a folder of this provider's own; made when it is needed.
        runner: what the interpreter is told to run; tests put something smaller there.
    """

    def __init__(self, root: Path, *, runner: tuple[str, ...] = RUNNER) -> None:
        self._dependencies = DependencyStore(root / "dependencies", mounted=False)
        self._keeper = Keeper(root, _PlainProcess(runner, self._dependencies))
        _log.warning("unsafe_subprocess", detail=WARNING)

    @property
    def name(self) -> str:
        """`unsafe-subprocess`."""
        return PROVIDER

    async def probe(self) -> Capabilities:
        """There is nothing to find out but the platform."""
        if sys.platform != "linux":
            return Capabilities(
                PROVIDER, available=False, isolation=ISOLATION, reasons=("Only Linux is supported.",)
            )
        return Capabilities(PROVIDER, available=True, isolation=ISOLATION, reasons=(WARNING,))

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Start a runner. Raises `SandboxFault`: as the port says, and as `DependencyStore.prepare` does."""
        found = await self.probe()
        if not found.available:
            raise SandboxFault(" ".join(found.reasons), code="sandbox_unavailable", retryable=False)
        await self._dependencies.prepare(spec.needs.dependencies, toolchain_here())
        return await self._keeper.create(spec)

    async def attach(
        self,
        ref: SandboxRef,
        *,
        gateway_socket: Path | None = None,  # noqa: ARG002 - the path that was made reachable is the same
    ) -> Sandbox:
        """Find a living one again. Raises `SandboxFault` (`sandbox_lost`)."""
        return await self._keeper.attach(ref)

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """All living ones with this label."""
        return await self._keeper.list(runtime_id)

    async def forget(self, snapshot: SandboxSnapshot) -> None:  # noqa: ARG002
        """There are none. Raises `SandboxFault` (`unsupported`)."""
        raise no_snapshots()

    async def close(self) -> None:
        """The processes are init's children and go on; packages are installed no further."""
        await self._dependencies.close()


@dataclass(frozen=True)
class _PlainProcess:
    """The `keeper.Manner` of this provider."""

    runner: tuple[str, ...]
    dependencies: DependencyStore
    name: str = PROVIDER
    isolation: str = ISOLATION
    bounds: Bounds = field(default_factory=Bounds)

    def plan(self, job: Job, stack: ExitStack) -> Plan:
        """A clean environment, and folders of its own, which nothing keeps it to."""
        home, workspace = str(job.folder / "home"), str(job.folder / "workspace")
        command = interpreter((sys.executable,), self.runner, job.spec)
        tools = self.dependencies.tools(job.spec.needs.dependencies, toolchain_here())
        return Plan(
            argv=("/bin/sh", "-c", SAY_READY_THEN_RUN, "sh", *command),
            cwd=workspace,
            places={**job.places, **variables_place(job.spec, stack)},
            env={
                **tools.environment("/usr/local/bin:/usr/bin:/bin"),
                "HOME": home,
                "LANG": "C.UTF-8",
                "TERM": "dumb",
                frames.GATEWAY_ENV: str(job.spec.gateway_socket),
                frames.WORKSPACE_ENV: workspace,
                frames.HOME_ENV: home,
            },
        )

    async def ask_to_end(self, record: Record, within_s: float) -> None:
        """What was started has become the runner."""
        if record.keeper is not None:
            await until_gone([record.keeper], within_s)

    async def end(self, record: Record) -> None:
        """Again and again until none is found: what is being killed may be forking."""
        while members := list(_members(record)):
            for mark in members:
                mark.kill()
            for mark in members:
                await mark.gone()


def _members(record: Record) -> Iterator[ProcessMark]:
    """The runner and its kernel session, all with its home in their environment, children of these."""
    runner = record.keeper.pid if record.keeper is not None and record.keeper.running() else None
    family: set[int] = set()
    ancestry = {pid: found for pid in processes.all_pids() if (found := processes.parent_and_session(pid))}
    for pid, (_, session) in ancestry.items():
        if runner in (pid, session) or _has_home_of(record, pid):
            family.add(pid)
    while children := {pid for pid, (parent, _) in ancestry.items() if parent in family} - family:
        family |= children
    for pid in family:
        mark = ProcessMark.of(pid)
        if mark is not None and mark.running():
            yield mark


def _has_home_of(record: Record, pid: int) -> bool:
    """The runner's environment is inherited by what it starts, also by what detaches itself."""
    name, sandbox = frames.HOME_ENV.encode() + b"=", record.sandbox_id.encode()
    return any(e.startswith(name) and sandbox in e for e in processes.environment(pid))
