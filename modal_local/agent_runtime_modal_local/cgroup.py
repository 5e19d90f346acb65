"""A bound on the memory of a sandbox, with what the machine has: control groups of version 1 or 2.

Where neither can be written, nothing is bounded and `of` says so by returning None. Groups of a
server that is no more are removed by the next one (`sweep`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "modal-local-"
MEGABYTE: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Group:
    """The control group of one sandbox."""

    folder: Path

    @property
    def door(self) -> Path:
        """Whoever writes its process id here is inside."""
        return self.folder / "cgroup.procs"

    def killed_for_memory(self) -> bool:
        """Whether the kernel has ended something in it for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            with suppress(OSError):
                words = (self.folder / name).read_text().split()
                return dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", "0") != "0"
        return False

    def remove(self) -> bool:
        """Remove it, as soon as nothing is in it any more. Whether it is gone."""
        with suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


class Groups:
    """The groups of one server."""

    def __init__(self) -> None:
        self._parent = parent_of_groups()
        self._folder: Path | None = None
        if self._parent is not None:
            sweep(self._parent)

    def of(self, sandbox_id: str, megabytes: int) -> Group | None:
        """A group with a bound, or None where this machine offers none."""
        if self._parent is None or not megabytes:
            return None
        self._folder = self._parent / f"{PREFIX}{os.getpid()}"
        group = Group(self._folder / sandbox_id)
        try:
            self._folder.mkdir(exist_ok=True)
            _delegate(self._folder)
            group.folder.mkdir()
            _bound(group.folder, megabytes * MEGABYTE)
        except OSError:
            group.remove()
            return None
        return group

    def close(self) -> None:
        """Remove the folder of this server."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.rmdir()


def within(group: Group | None, argv: Sequence[str]) -> list[str]:
    """The command that enters a group before it becomes `argv`."""
    if group is None:
        return list(argv)
    return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.door), *argv]


def sweep(parent: Path) -> None:
    """Remove the groups of servers that are no more."""
    for folder in parent.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX)
        if pid.isdigit() and not _is_a_server(pid):
            for group in [each for each in folder.iterdir() if each.is_dir()]:
                Group(group).remove()
            Group(folder).remove()


def _is_a_server(pid: str) -> bool:
    """Also false for a process that is dead and not buried, and for another one with the same number."""
    try:
        return b"agent_runtime_modal_local" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def parent_of_groups() -> Path | None:
    """The group that this process is in, or None where none can be made below it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            folder = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
        elif not controllers:
            folder = Path("/sys/fs/cgroup") / path.lstrip("/")
        else:
            continue
        offered = (folder / "memory.limit_in_bytes").exists() or (
            (folder / "cgroup.controllers").exists()
            and "memory" in (folder / "cgroup.controllers").read_text()
        )
        if offered and os.access(folder, os.W_OK):
            return folder
    return None


def _delegate(folder: Path) -> None:
    """In version 2 a group has to be told that those below it bound memory."""
    if (folder / "cgroup.controllers").exists():
        for each in (folder.parent, folder):
            with suppress(OSError):
                (each / "cgroup.subtree_control").write_text("+memory")


def _bound(folder: Path, most: int) -> None:
    version_1 = folder / "memory.limit_in_bytes"
    if version_1.exists():
        version_1.write_text(str(most))
        with suppress(OSError):  # only where swap is accounted
            (folder / "memory.memsw.limit_in_bytes").write_text(str(most))
        return
    (folder / "memory.max").write_text(str(most))
    with suppress(OSError):
        (folder / "memory.swap.max").write_text("0")
