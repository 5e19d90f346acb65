"""Folders of installed packages: each made once, whole or not at all, and removed when nobody wants it.

    <root>/<key>                  kind and digest of what is in it
           <key>.lock             held while the folder is made, taken or removed
           .draft-<key>           one that is being made; it gets its name when it is whole
           .removed-<key>-...     one that is being removed

The locks are the kernel's, so they hold between runtimes that share the root, and end with them. What
is in the folders is the business of `dependencies`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault

KEPT_FOR_S: Final = 14 * 24 * 3600.0
"""How long a folder is kept that no sandbox begins with."""
MOST_KEPT: Final = 64
"""How many are kept at most; more only while they are used."""
SPARED_S: Final = 3600.0
"""What was taken so recently is about to be used."""
LOOK_AGAIN_S: Final = 0.05

_LOCK: Final = ".lock"
_DRAFT: Final = ".draft-"
_REMOVED: Final = ".removed-"

Install = Callable[[Path, int], Awaitable[None]]
"""Fills an empty folder; the descriptor is to be open in whatever is at work there. Raises `SandboxFault`."""


class PackageFolders:
    """The folders under one root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def have(self, key: str, install: Install) -> float | None:
        """Have the folder of that name there: the seconds that it took, None where it was there.

        Raises `SandboxFault`; then nothing is left of it.
        """
        began = time.monotonic()
        try:
            async with self.locked(key) as held:
                folder = self._root / key
                if folder.is_dir():
                    os.utime(folder)
                    return None
                await self._make(key, install, held)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "unknown error")
            detail = f"This machine refused what the profile's packages need ({kind})."
            raise SandboxFault(detail, code="dependencies_failed") from error
        seconds = time.monotonic() - began
        with suppress(OSError):  # another time: what was wanted is there
            await asyncio.to_thread(self.sweep)
        return seconds

    def sweep(self) -> None:
        """Remove what was not taken for long, or is too much, and no process sees; finish removals.

        Raises `OSError`.
        """
        kept = [name for name in self._names() if name[0] != "." and not name.endswith(_LOCK)]
        ages = {name: self._age(name) for name in kept}
        youngest_first = sorted(ages, key=ages.__getitem__)
        doomed = [
            name
            for place, name in enumerate(youngest_first)
            if ages[name] > KEPT_FOR_S or (place >= MOST_KEPT and ages[name] > SPARED_S)
        ]
        for name in set(doomed) - _seen_by_processes(doomed):
            self._remove(name)
        for name in self._names():
            if name.startswith(_REMOVED):
                _delete(self._root / name)
            elif name.startswith(_DRAFT):
                self._remove_draft(name)

    async def _make(self, key: str, install: Install, held: int) -> None:
        draft = self._root / f"{_DRAFT}{key}"
        try:
            await asyncio.to_thread(_delete, draft)  # a runtime that was killed left it
            draft.mkdir(mode=0o755)
            await install(draft, held)
            draft.rename(self._root / key)
        except BaseException:
            _delete(draft)
            (self._root / f"{key}{_LOCK}").unlink(missing_ok=True)
            raise

    def _remove(self, key: str) -> None:
        with suppress(BlockingIOError, FileNotFoundError):
            lock = _try_lock(self._root / f"{key}{_LOCK}")
            try:
                folder = self._root / key
                if self._age(key) > SPARED_S:
                    gone = self._root / f"{_REMOVED}{key}-{secrets.token_hex(4)}"
                    folder.rename(gone)
                    (self._root / f"{key}{_LOCK}").unlink()
                    _delete(gone)
            finally:
                os.close(lock)

    def _remove_draft(self, name: str) -> None:
        with suppress(BlockingIOError):
            lock = _try_lock(self._root / f"{name.removeprefix(_DRAFT)}{_LOCK}")
            try:
                _delete(self._root / name)
                (self._root / f"{name.removeprefix(_DRAFT)}{_LOCK}").unlink()
            finally:
                os.close(lock)

    def _age(self, key: str) -> float:
        """Seconds since it was taken."""
        return time.time() - (self._root / key).stat().st_mtime

    def _names(self) -> list[str]:
        return [entry.name for entry in self._root.iterdir()]

    @asynccontextmanager
    async def locked(self, key: str) -> AsyncIterator[int]:
        """Hold a folder while the block runs, which is given the lock's descriptor. Raises `OSError`."""
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)  # to be passed through, not listed
        lock = None
        while lock is None:
            try:
                lock = _try_lock(self._root / f"{key}{_LOCK}")
            except BlockingIOError:
                await asyncio.sleep(LOOK_AGAIN_S)
        try:
            yield lock
        finally:
            os.close(lock)


def _try_lock(path: Path) -> int:
    """A descriptor with the lock. Raises `BlockingIOError` where another one has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed together with its folder, between the two calls


def _seen_by_processes(keys: Collection[str]) -> set[str]:
    """Which of the folders processes of this machine see, by a mount or in their variables."""
    seen = set[str]()
    if keys:
        for process in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            for source in ("mountinfo", "environ"):
                with suppress(OSError):
                    text = (process / source).read_bytes()
                    seen |= {key for key in keys if key.encode() in text}
    return seen


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
