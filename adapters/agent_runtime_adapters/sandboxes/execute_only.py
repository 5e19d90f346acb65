"""Copies of agents' binaries that can be run and not read.

Agent and tools are one user in a local sandbox, and one user's processes may look into each other:
/proc/<pid>/fd and /mem, ptrace. Not so into a process whose program its user may not read: the kernel
makes that one "not dumpable", and what it starts in turn is an ordinary process again. So the agent is
started from a copy with the mode 0111, bound read-only into the sandbox, where nobody can change the
mode. A copy is made once per binary, in the user's cache folder, and shared by all sandboxes: its pages
are in memory once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent_runtime_adapters.sandboxes.toolchain import agent_binaries

EXECUTE_ONLY: Final = 0o111
UNUSED_FOR_S: Final = 30 * 86400.0
"""Copies that nobody asked for in so long are removed when another one is made."""
_PIECE_BYTES: Final = 64 * 1024 * 1024

NO_COPY: Final = (
    "Tools can reach into the agent's process: no copy of its program could be made that can be run and "
    "not read; the cache folder (XDG_CACHE_HOME) must be on a file system with modes, with room for it."
)
NOT_SHUT: Final = (
    "Tools can reach into the agent's process: this kernel, or the cache folder's file system, does not "
    "shut a process whose program can be run and not read."
)
IS_ANY_OPEN: Final = (
    "import sys; from agent_runtime_sandbox import process; "
    "agents = [word.split('=', 2)[2] for word in sys.argv if word.startswith('--agent=')]; "
    "sys.exit(any(map(process.is_open, agents)))"
)
"""Python, run in place of a runner: fails where the agent's process would be open to its tools."""


class AgentCopies:
    """The copies of this machine's agents. `found`: by driver, those that there are.

    Args:
        spare: a folder for them where the user's cache folder cannot be used.
    """

    def __init__(self, spare: Path) -> None:
        self._spare = spare
        self._one_at_a_time = asyncio.Lock()
        self.found: Mapping[str, Path] = MappingProxyType({})

    async def make(self) -> bool:
        """Make what is missing, and what somebody has changed; whether all are there."""
        async with self._one_at_a_time:
            binaries = await asyncio.to_thread(agent_binaries)
            made = {driver: await asyncio.to_thread(self._made, path) for driver, path in binaries.items()}
        self.found = MappingProxyType({driver: path for driver, path in made.items() if path is not None})
        return len(self.found) == len(binaries)

    def _made(self, binary: Path) -> Path | None:
        for cache in (cache_folder(), self._spare):
            with suppress(OSError):
                return execute_only(binary, cache)
        return None


def cache_folder() -> Path:
    """Where this user's copies are, unless the host says otherwise: `$XDG_CACHE_HOME/agent-runtime`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "agent-runtime"


def execute_only(binary: Path, cache: Path) -> Path:
    """The copy of a binary, made where there is none. Blocks while copying. Raises `OSError`."""
    source = binary.resolve()
    facts = source.stat()
    sign = f"{source}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}"
    folder = cache / hashlib.sha256(sign.encode()).hexdigest()[:32]
    copy = folder / binary.name
    if not _is_whole(copy, facts.st_size):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _copy(source, copy)
        _remove_unused(cache)
    os.utime(folder)
    return copy


def _is_whole(copy: Path, size: int) -> bool:
    try:
        facts = copy.lstat()
    except FileNotFoundError:
        return False
    wanted = (stat.S_IFREG | EXECUTE_ONLY, size, os.geteuid())
    return (facts.st_mode, facts.st_size, facts.st_uid) == wanted


def _copy(source: Path, target: Path) -> None:
    """Appears whole or not at all; whoever else makes it at the same time makes the same."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with (
            source.open("rb", buffering=0) as reader,
            FileIO(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as writer,
        ):
            _pour(reader.fileno(), writer.fileno())
            os.fchmod(writer.fileno(), EXECUTE_ONLY)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _pour(source: int, target: int) -> None:
    """The file system shares the bytes where it can. It may be unable to, or may begin and stop."""
    with suppress(OSError):
        while os.copy_file_range(source, target, _PIECE_BYTES):
            pass
    while os.sendfile(target, source, None, _PIECE_BYTES):
        pass


def _remove_unused(cache: Path) -> None:
    """A sandbox that runs from a copy keeps it, removed or not."""
    for folder in cache.iterdir():
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - UNUSED_FOR_S:
                shutil.rmtree(folder)
