"""The disk of a sandbox: an ext4 file system in a file, so that it has a size that nothing can exceed.

The file lies in the sandbox's folder, sparse: it takes what is written. `launch` mounts it by way of
a loop device that gives itself free, in a mount namespace that ends with the sandbox: whoever is killed
at whatever moment, neither mount nor device stays. Where that cannot be had, the runner watches what
its files take (`agent_runtime_sandbox.usage`), which is softer. The journal lies outside of it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault

IMAGE_NAME: Final = "disk"
NO_MKFS: Final = "`mkfs.ext4` is not installed (`apt-get install e2fsprogs`)."
NOT_ROOT: Final = "only a runtime that is root can mount a file system for each sandbox."
NO_NAMESPACES: Final = "it would have to be mounted for all to see."
NO_LOOP: Final = (
    "loop devices cannot be had here (in Docker: `--privileged`, or `--device` for each of them)."
)

_SIZES_KEPT: Final = 8
_BLOCK: Final = 4096
_OPTIONS: Final = (
    # No journal: nobody mounts it again. Tables are not written before they are needed.
    *("-q", "-F", "-b", str(_BLOCK), "-i", "8192", "-m", "0", "-O", "^has_journal,^resize_inode"),
    *("-E", "lazy_itable_init=1,nodiscard"),
)


def find_mkfs() -> str | None:
    """The program that makes an empty file system; administrators' programs are not on everybody's path."""
    return shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class DiskImages:
    """Makes empty file systems. Of each size one is made by mkfs; the others are copies of it."""

    def __init__(self, mkfs: str) -> None:
        self._mkfs = mkfs
        self._known: OrderedDict[int, list[tuple[int, bytes]]] = OrderedDict()

    async def make(self, file: Path, size: int) -> None:
        """Make one. Raises `OSError`, `SandboxFault`."""
        size -= size % _BLOCK
        with file.open("xb") as made:
            made.truncate(size)
            for place, data in self._known.get(size, ()):
                os.pwrite(made.fileno(), data, place)
        if size in self._known:
            self._known.move_to_end(size)
            return
        process = await asyncio.create_subprocess_exec(
            self._mkfs, *_OPTIONS, str(file), env={}, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        if code != 0:
            raise SandboxFault("No file system could be made for the sandbox's files.")
        self._known[size] = list(_contents(file))
        if len(self._known) > _SIZES_KEPT:
            self._known.popitem(last=False)


def _contents(file: Path) -> Iterator[tuple[int, bytes]]:
    """What a sparse file holds, and where."""
    with file.open("rb") as opened:
        descriptor, place = opened.fileno(), 0
        with suppress(OSError):  # ENXIO: nothing behind this place
            while True:
                begin = os.lseek(descriptor, place, os.SEEK_DATA)
                place = os.lseek(descriptor, begin, os.SEEK_HOLE)
                yield begin, os.pread(descriptor, place - begin, begin)
