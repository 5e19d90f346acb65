"""What all providers of this machine share: make a sandbox and note it, find it again, end it.

A provider adds two things (`Manner`): the plan of what to start, and how to end what was started. The
keeper sees to it that nothing is left of a creation that failed at any step, and that what died is
cleared away by whoever looks next. It holds nothing that a restart would lose.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Final, Protocol

import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Resources
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime_adapters.sandboxes import cgroups, channel
from agent_runtime_adapters.sandboxes.bounds import Bounds, clear, granted
from agent_runtime_adapters.sandboxes.launchers import Launchers
from agent_runtime_adapters.sandboxes.launching import JOURNAL_PLACE, LISTEN_PLACE, Plan, launch
from agent_runtime_adapters.sandboxes.processes import ProcessMark, boot_id
from agent_runtime_adapters.sandboxes.registry import Record, Registry, new_sandbox_id

END_WITHIN_S: Final = 10.0
_MIB: Final = 1024 * 1024
_MISHAPS_KEPT: Final = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A sandbox to be started. `places` are the descriptors of the runner: listener and journal.

    `resources` are those of the spec with none left open.
    """

    record: Record
    folder: Path
    spec: SandboxSpec
    resources: Resources
    places: Mapping[int, int]


class Manner(Protocol):
    """How one provider starts and ends."""

    @property
    def name(self) -> str:
        """The provider's name."""
        ...

    @property
    def isolation(self) -> str:
        """The tier."""
        ...

    @property
    def bounds(self) -> Bounds:
        """What holds its sandboxes to their resources, and whether each has a uid of its own."""
        ...

    def plan(self, job: Job, stack: ExitStack) -> Plan:
        """What to start. Descriptors that it needs besides the job's are closed with the stack."""
        ...

    async def ask_to_end(self, record: Record, within_s: float) -> None:
        """Have the runner end its agent and itself; return when it has, or the time is over."""
        ...

    async def end(self, record: Record) -> None:
        """End every process of the sandbox; return when they are gone. Idempotent."""
        ...


class Keeper:
    """Creates, finds and ends the sandboxes of one provider under one root.

    Args:
        launchers: who starts them; one's own, which has none wait, unless told otherwise.
    """

    def __init__(self, root: Path, manner: Manner, launchers: Launchers | None = None) -> None:
        self._launchers = launchers or Launchers()
        self._registry = Registry(root)
        self._manner = manner
        self._mishaps: dict[str, SandboxFault] = {}

    async def create(self, spec: SandboxSpec) -> MachineSandbox:
        """Make a sandbox whose runner can be connected to. Raises `SandboxFault`; then nothing is left."""
        if spec.snapshot is not None:
            raise no_snapshots()
        if spec.needs.image is not None:
            detail = "The profile names an image; sandboxes of this machine are made of what is on it."
            raise SandboxFault(detail, code="unsupported", retryable=False)
        with _translated():
            if not spec.gateway_socket.is_socket():
                raise SandboxFault("The model gateway's socket is missing.")
        sandbox_id, bounds = new_sandbox_id(), self._manner.bounds
        resources = granted(spec.needs.resources)
        try:
            with _translated():
                record = self._registry.make(
                    *(sandbox_id, self._manner.name, self._manner.isolation, spec),
                    own_uid=bounds.own_uid,
                    cgroups=bounds.cgroups.paths(sandbox_id) if bounds.cgroups is not None else (),
                    memory_bytes=resources.memory_bytes if "memory_bytes" in bounds.enforces else None,
                )
                await self._start(record, spec, resources)
                return MachineSandbox(self, self._registry.load(sandbox_id) or record)
        except BaseException:
            await self._undo(sandbox_id)
            raise

    async def attach(self, ref: SandboxRef) -> MachineSandbox:
        """Find a living sandbox. Raises `SandboxFault` (`sandbox_lost`, or why it ended)."""
        with _translated():
            record = self._registry.load(ref.sandbox_id)
            ours = record is not None and record.provider == self._manner.name
            if record is not None and ours and record.alive():
                return MachineSandbox(self, record)
            if record is not None and ours and not record.starting():
                await self.stop(ref.sandbox_id)
            known = self._mishaps.pop(ref.sandbox_id, None)
            raise known or SandboxFault("The sandbox is gone.", code="sandbox_lost")

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """The living ones of a runtime.

        On the way the dead of all runtimes are cleared away, and those that have outlived their lifetime.
        """
        living = []
        with _translated():
            await self._registry.tidy()
            for record in self._registry.all():
                if record.provider != self._manner.name or record.starting():
                    continue
                if not record.alive() or record.expired():
                    await self.stop(record.sandbox_id)
                elif record.runtime_id == runtime_id:
                    living.append(record.ref)
        await asyncio.to_thread(self._manner.bounds.sweep)
        return tuple(living)

    async def connect(self, record: Record) -> channel.UnixChannel:
        """A stream to the runner. Raises `SandboxFault`."""
        with _translated():
            if not record.alive():
                raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
            return await channel.connect(self._registry.folder(record.sandbox_id))

    def assign(self, sandbox_id: str, session_id: str) -> Record:
        """Note whose a sandbox is. Raises `SandboxFault` (`sandbox_lost`)."""
        with _translated():
            record = self._registry.load(sandbox_id)
            if record is None:
                raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
            assigned = record.model_copy(update={"session_id": session_id})
            self._registry.save(assigned)
            return assigned

    async def stop(self, sandbox_id: str, grace_s: float = 0.0) -> None:
        """End a sandbox and remove its folder. Idempotent. Raises `SandboxFault` if it does not end."""
        with _translated():
            # The record on disk knows more than the one that creation began with.
            record = self._registry.load(sandbox_id)
            if record is not None and record.boot == boot_id():
                if grace_s and record.alive():
                    await self._manner.ask_to_end(record, grace_s)
                self._remember_mishap(record)
                async with asyncio.timeout(END_WITHIN_S):
                    await self._manner.end(record)
                    await clear(record.cgroups)
            await self._registry.remove(sandbox_id)
        _log.debug("sandbox_ended", sandbox_id=sandbox_id)

    def mishap(self, record: Record, known_kills: int) -> SandboxFault | None:
        """What happened to a sandbox, also to one that was cleared away meanwhile."""
        return self._mishaps.pop(record.sandbox_id, None) or mishap(record, known_kills=known_kills)

    def _remember_mishap(self, record: Record) -> None:
        """Whoever clears away a dead sandbox is not the one who asks why it died."""
        if not record.alive() and (known := mishap(record)) is not None:
            self._mishaps[record.sandbox_id] = known
            if len(self._mishaps) > _MISHAPS_KEPT:
                self._mishaps.pop(next(iter(self._mishaps)))

    async def _undo(self, sandbox_id: str) -> None:
        """After a creation that failed. What cannot be undone now is cleared away by the next `list`."""
        try:
            await self.stop(sandbox_id)
        except SandboxFault as fault:
            _log.warning("sandbox_not_undone", sandbox_id=sandbox_id, detail=fault.detail)

    async def _start(self, record: Record, spec: SandboxSpec, resources: Resources) -> None:
        folder = self._registry.folder(record.sandbox_id)
        await self._manner.bounds.prepare(record.sandbox_id, folder, resources)

        def note(keeper: ProcessMark, inner: ProcessMark | None) -> None:
            self._registry.save(record.model_copy(update={"keeper": keeper, "inner": inner}))

        with ExitStack() as stack:
            listener = stack.enter_context(channel.listen(folder))
            journal = stack.enter_context(
                FileIO(os.open(folder / "journal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
            )
            places = {LISTEN_PLACE: listener.fileno(), JOURNAL_PLACE: journal.fileno()}
            plan = self._manner.plan(Job(record, folder, spec, resources, places), stack)
            await launch(replace(plan, cgroups=record.cgroups), folder / "runner.log", note, self._launchers)


class MachineSandbox:
    """A `ports.Sandbox` on this machine."""

    def __init__(self, keeper: Keeper, record: Record) -> None:
        self._keeper = keeper
        self._record = record
        self._known_kills = cgroups.out_of_memory(record.cgroups)

    @property
    def ref(self) -> SandboxRef:
        """How to find it again."""
        return self._record.ref

    @property
    def expires_at(self) -> datetime | None:
        """The runner ends itself then; whoever lists sandboxes ends one that did not."""
        return self._record.expires

    async def connect(self) -> channel.UnixChannel:
        """Open a stream to the runner. Raises `SandboxFault` (`sandbox_lost`)."""
        return await self._keeper.connect(self._record)

    async def alive(self) -> bool:
        """Whether its processes run."""
        with _translated():
            return self._record.alive()

    async def mishap(self) -> SandboxFault | None:
        """Memory that was used up since this was asked last, or the end of its lifetime."""
        kills = cgroups.out_of_memory(self._record.cgroups)
        known, self._known_kills = self._known_kills, kills
        return self._keeper.mishap(self._record, known)

    async def assign(self, session_id: str) -> None:
        """Note whose it is. Raises `SandboxFault`."""
        self._record = self._keeper.assign(self._record.sandbox_id, session_id)

    async def snapshot(self) -> SandboxSnapshot:
        """There are none. Raises `SandboxFault` (`unsupported`)."""
        raise no_snapshots()

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it with all its processes and remove its files. Idempotent."""
        await self._keeper.stop(self._record.sandbox_id, grace_s)


async def until_gone(marks: Iterable[ProcessMark], within_s: float) -> None:
    """Ask processes to end with SIGTERM; return when they have, or the time is over."""
    asked = list(marks)
    for mark in asked:
        mark.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            for mark in asked:
                await mark.gone()


def mishap(record: Record, *, known_kills: int = 0) -> SandboxFault | None:
    """What the system did to a sandbox, as far as it can be seen from here. None: nothing known."""
    if cgroups.out_of_memory(record.cgroups) > known_kills:
        bound = f" of {record.memory_bytes // _MIB} MiB" if record.memory_bytes is not None else ""
        detail = f"The sandbox's memory{bound} was used up; the system ended what took it."
        return SandboxFault(detail, code="sandbox_out_of_memory", retryable=False)
    if record.expired():
        return SandboxFault("The sandbox reached the end of its lifetime.", code="sandbox_expired")
    return None


def no_snapshots() -> SandboxFault:
    """What a provider of this machine answers to whoever wants a snapshot."""
    return SandboxFault("Local sandboxes keep no snapshots.", code="unsupported", retryable=False)


@contextmanager
def _translated() -> Iterator[None]:
    """What the machine refuses, as a fault that names the kind of refusal and no path."""
    try:
        yield
    except TimeoutError as error:
        raise SandboxFault("The sandbox's processes do not end.") from error
    except OSError as error:
        kind = errno.errorcode.get(error.errno or 0, "unknown error")
        raise SandboxFault(f"This machine refused what a sandbox needs ({kind}).") from error
