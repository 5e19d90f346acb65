"""One folder and one small record per sandbox: how sandboxes are found again after a restart.

    <root>/<sandbox_id>/record.json    labels, owner, processes
                       /workspace      the session's files; the sandbox's /workspace
                       /home           the agent's own files
                       /journal        the runner writes it through a descriptor
                       /control.sock   the runner listens on it, through a descriptor
                       /runner.log     what the runner complains about
                       /disk           workspace and home in a file system of their own, where they have one

Only workspace and home are ever visible inside. A lock on the root makes taking an id and a uid
one step, also between runtimes that share the root. The root belongs to one machine. Nothing here
starts or ends a process: that is for `keeper`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agent_runtime.errors import SandboxFault
from agent_runtime.frozen import Frozen
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import SandboxRef
from agent_runtime_adapters.sandboxes.disk import IMAGE_NAME
from agent_runtime_adapters.sandboxes.processes import ProcessMark, boot_id, owners

FIRST_UID: Final = 200_001
"""Uids from here on are given to sandboxes, one each, when the runtime is root."""
UIDS: Final = 300_000
"""So many are there: enough that two runtimes of a machine do not choose the same."""
STARTING_FOR: Final = timedelta(minutes=2)
"""A record whose sandbox did not come up within this time is a leftover, even where its maker lives."""

_SANDBOX_ID: Final = re.compile(r"sb-[0-9a-f]{16}\Z")
_REMOVED: Final = ".removed-"


class Record(Frozen):
    """What is kept of a sandbox. `keeper` is the process whose end is the end of all of it.

    `inner` is the sandbox's own first process, where there is one besides the keeper; it is absent
    until the sandbox is up. `uid` is absent where the sandbox runs as the runtime's own user. `maker`
    is the process that creates it: what that leaves half made stays half made. `cgroups` are the groups
    that it was given; `memory_bytes` is the bound that is enforced by them. At `expires` it ends.
    """

    sandbox_id: str
    provider: str
    isolation: str
    runtime_id: str
    session_id: str
    created: datetime
    boot: str
    lane: str | None = None
    expires: datetime | None = None
    uid: int | None = None
    maker: ProcessMark | None = None
    keeper: ProcessMark | None = None
    inner: ProcessMark | None = None
    cgroups: tuple[str, ...] = ()
    memory_bytes: int | None = None

    @property
    def ref(self) -> SandboxRef:
        """The record as the session keeps it."""
        return SandboxRef(
            sandbox_id=self.sandbox_id,
            provider=self.provider,
            isolation=self.isolation,
            started_at=self.created,
            lane=self.lane,
        )

    def alive(self) -> bool:
        """Whether its processes run, as far as /proc tells."""
        if self.boot != boot_id() or self.inner is None:
            return False
        return self.inner.running()

    def expired(self) -> bool:
        """Whether it has lived for as long as it was to."""
        return self.expires is not None and datetime.now(UTC) >= self.expires

    def starting(self) -> bool:
        """Whether it may yet come up."""
        if self.boot != boot_id() or self.inner is not None:
            return False
        made_still = self.maker is None or self.maker.running()
        return made_still and datetime.now(UTC) - self.created < STARTING_FOR


def new_sandbox_id() -> str:
    """An id that nobody has had, and that is safe as the name of a folder."""
    return f"sb-{secrets.token_hex(8)}"


class Registry:
    """The folders under one root. All paths stay in here and in the processes it describes."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def folder(self, sandbox_id: str) -> Path:
        """Where a sandbox lives. Raises `SandboxFault` (`sandbox_lost`) for what is no id of ours."""
        if not _SANDBOX_ID.match(sandbox_id):
            raise SandboxFault("There is no such sandbox.", code="sandbox_lost")
        return self._root / sandbox_id

    def make(
        self,
        sandbox_id: str,
        provider: str,
        isolation: str,
        spec: SandboxSpec,
        *,
        own_uid: bool,
        cgroups: tuple[str, ...] = (),
        memory_bytes: int | None = None,
    ) -> Record:
        """Make a folder with its record; with `own_uid`, workspace and home belong to a uid of their own."""
        created, lifetime_s = datetime.now(UTC), spec.needs.lifetime_s
        with self._locked():
            record = Record(
                sandbox_id=sandbox_id,
                provider=provider,
                isolation=isolation,
                runtime_id=spec.runtime_id,
                session_id=spec.session_id,
                created=created,
                expires=None if lifetime_s is None else created + timedelta(seconds=lifetime_s),
                cgroups=cgroups,
                memory_bytes=memory_bytes,
                boot=boot_id(),
                lane=spec.lane,
                maker=ProcessMark.of(os.getpid()),
                uid=self._free_uid() if own_uid else None,
            )
            folder = self.folder(record.sandbox_id)
            folder.mkdir(mode=0o700)
            self.save(record)
        for name in ("workspace", "home"):
            (folder / name).mkdir(mode=0o700)
            if record.uid is not None:
                os.chown(folder / name, record.uid, record.uid)
        return record

    def save(self, record: Record) -> None:
        """Write a record; a reader sees the old one or the new one, never half of it."""
        folder = self.folder(record.sandbox_id)
        draft = folder / "record.new"
        draft.write_text(json.dumps(record.to_json()))
        draft.replace(folder / "record.json")

    def load(self, sandbox_id: str) -> Record | None:
        """One record, or None where there is none, or nothing that is one. Raises `OSError`."""
        try:
            return Record.model_validate_json((self.folder(sandbox_id) / "record.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def all(self) -> tuple[Record, ...]:
        """Every record under the root, of living and of dead sandboxes, in order of creation."""
        found = (self.load(name) for name in self._names() if _SANDBOX_ID.match(name))
        return tuple(sorted((r for r in found if r is not None), key=lambda record: record.created))

    async def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox's folder, whatever was put into it. Idempotent."""
        folder = self.folder(sandbox_id)
        doomed = self._root / f"{_REMOVED}{sandbox_id}"
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.rename(doomed)
        if doomed.exists():
            await _delete(doomed)

    async def tidy(self) -> None:
        """Finish removals that a crash has interrupted."""
        with self._locked():
            torn = [n for n in self._names() if _SANDBOX_ID.match(n) and self.load(n) is None]
        for name in torn:
            await self.remove(name)
        for name in self._names():
            if name.startswith(_REMOVED):
                await _delete(self._root / name)

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in self._root.iterdir()]
        except FileNotFoundError:
            return []

    def _free_uid(self) -> int:
        """One by chance: a runtime with another root may choose at the same time and not see ours."""
        taken = {record.uid for record in self.all()} | owners()
        while (uid := FIRST_UID + secrets.randbelow(UIDS)) in taken:
            pass
        return uid

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


async def _delete(folder: Path) -> None:
    """`rm`, because an agent can nest folders deeper than Python's own removal can follow."""
    if await asyncio.to_thread(_delete_unused, folder):  # a full disk takes a while
        return
    await _run("rm", "-rf", "--", folder)
    if _exists(folder):  # not root, and the agent took the permissions of its folders away
        await _run("chmod", "-R", "u+rwX", "--", folder)
        await _run("rm", "-rf", "--", folder)


def _delete_unused(folder: Path) -> bool:
    """Remove a folder that no agent has worked in. Takes no descriptor and no process: there may be none."""
    try:
        for name in ("workspace", "home"):
            (folder / name).rmdir()
        for name in ("record.json", "record.new", "journal", "control.sock", "runner.log", IMAGE_NAME):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return False
    return True


def _exists(folder: Path) -> bool:
    return folder.exists()


async def _run(*argv: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await process.wait()
