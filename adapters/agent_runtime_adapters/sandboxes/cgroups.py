"""Control groups: memory, processes and CPU of a sandbox, counted and bounded by the kernel.

Both generations are known: v1, where each controller has a tree of its own, and v2, where this
process needs a part of the one tree that is delegated to it. Sandboxes get groups below the one that
the runtime is in, so that what bounds the runtime bounds them too. A group's name is the sandbox's;
the sandbox's record holds its path, so that whoever ends the sandbox removes it, also after a restart.
Who joins, and when, is the business of `launch`. Nothing of this is visible inside.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_runtime.needs import Resources

PROCESSES: Final = "cgroup.procs"
FIELDS: Final = {"cpu": "cpu", "memory": "memory_bytes", "pids": "processes"}
"""Controllers that are used, and the field of `Resources` that each enforces."""
RUNTIMES_LEAF: Final = "agent-runtime"
"""With v2, a group with controllers for its children holds no processes itself: the runtime moves here."""
REMOVE_WITHIN_S: Final = 5.0
_SURELY_STARTED_S: Final = 300.0
"""A group that is younger may be of a sandbox that is being made."""
_PERIOD_US: Final = 100_000
_PREFIX: Final = "agent-runtime-"

NOT_MOUNTED: Final = "Control groups are not mounted here."
NOT_OURS: Final = (
    "The runtime may not make control groups: run it as root, in a service with `Delegate=yes`, or as "
    "`systemd-run --user --scope -p Delegate=yes agent-runtime serve`; in Docker: `--cgroupns=private` and "
    "a writable /sys/fs/cgroup."
)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where this process may make groups: a folder for each controller; with v2 the same for all."""

    version: int
    folders: Mapping[str, Path]

    @property
    def enforces(self) -> tuple[str, ...]:
        """The fields of `Resources` that are bounded."""
        return tuple(field for controller, field in FIELDS.items() if controller in self.folders)

    def paths(self, sandbox_id: str) -> tuple[str, ...]:
        """The groups of a sandbox."""
        name = _PREFIX + sandbox_id
        return tuple(dict.fromkeys(str(folder / name) for folder in self.folders.values()))

    def make(self, sandbox_id: str, resources: Resources) -> None:
        """Make a sandbox's groups with these bounds. Raises `OSError`."""
        for path in map(Path, self.paths(sandbox_id)):
            path.mkdir(exist_ok=True)
        for controller, folder in self.folders.items():
            bound = getattr(resources, FIELDS[controller])
            if bound is not None:
                _SETTERS[self.version, controller](folder / (_PREFIX + sandbox_id), bound)

    def sweep(self) -> None:
        """Remove groups that nobody will: those without processes whose sandbox's folder was thrown away."""
        for folder in dict.fromkeys(self.folders.values()):
            for group in folder.glob(f"{_PREFIX}sb-*"):
                with suppress(OSError):  # one with processes cannot be removed
                    if time.time() - group.stat().st_mtime > _SURELY_STARTED_S:
                        group.rmdir()


def find_cgroups(proc: Path = Path("/proc")) -> Cgroups | str:
    """Look for groups in which this process may make others; else why there are none, and how to get them."""
    try:
        own = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
        mounts = list(_mounts((proc / "self/mountinfo").read_text()))
    except OSError:
        return NOT_MOUNTED
    if not mounts:
        return NOT_MOUNTED
    for version, found in ((1, _first(own, mounts)), (2, _second(own, mounts))):
        usable = {controller: folder for controller, folder in found.items() if _usable(version, folder)}
        if "memory" in usable and "pids" in usable:
            return Cgroups(version, usable)
    return NOT_OURS


async def remove(paths: Iterable[str]) -> None:
    """Remove groups whose processes have been ended. Idempotent. Raises `OSError` where they stay."""
    for path in paths:
        async with asyncio.timeout(REMOVE_WITHIN_S):
            while not _removed(path):  # noqa: ASYNC110
                await asyncio.sleep(0.005)  # nothing tells when the last process is forgotten


def out_of_memory(paths: Iterable[str]) -> int:
    """How many processes of these groups were ended because the memory bound was reached."""
    for path in map(Path, paths):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError, KeyError):
                fields = dict(line.split() for line in (path / name).read_text().splitlines())
                return int(fields["oom_kill"])
    return 0


def forbid_new_processes(paths: Iterable[str]) -> None:
    """From now on nothing in these groups can fork: what is being ended cannot outrun its end."""
    for path in map(Path, paths):
        with suppress(OSError):
            if (path / "pids.max").exists():
                _write(path / "pids.max", 0)


def members(paths: Iterable[str]) -> set[int]:
    """The processes in these groups."""
    found: set[int] = set()
    for path in map(Path, paths):
        with suppress(OSError):
            found.update(int(pid) for pid in (path / PROCESSES).read_text().split())
    return found


def _removed(path: str) -> bool:
    """Whether a group is gone. Raises `OSError` where it will never be."""
    try:
        Path(path).rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _mounts(mountinfo: str) -> Iterable[tuple[str, frozenset[str], str, Path]]:
    """Kind, options, root and place of each mounted tree of groups."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            root, place = before.split(" ")[3:5]
            yield kind, frozenset(options.split(",")), root, Path(place)


Mounts = list[tuple[str, frozenset[str], str, Path]]


def _first(own: list[list[str]], mounts: Mounts) -> dict[str, Path]:
    """The folders of v1: for each controller the group that this process is in."""
    groups = {name: path for _, names, path in own for name in names.split(",")}
    found: dict[str, Path] = {}
    for kind, options, root, place in mounts:
        for controller in FIELDS:
            if kind == "cgroup" and controller in options and controller in groups:
                found.setdefault(controller, _below(place, root, groups[controller]))
    return found


def _second(own: list[list[str]], mounts: Mounts) -> dict[str, Path]:
    """The folder of v2, for each controller that its children can have."""
    path = next((path for number, names, path in own if number == "0" and not names), None)
    tree = next(((root, place) for kind, _, root, place in mounts if kind == "cgroup2"), None)
    if path is None or tree is None:
        return {}
    folder = _below(tree[1], tree[0], path)
    if folder.name == RUNTIMES_LEAF:
        folder = folder.parent
    with suppress(OSError):
        enabled = _share(folder)
        return {controller: folder for controller in FIELDS if controller in enabled}
    return {}


def _share(folder: Path) -> set[str]:
    """Let children of this group have controllers; which ones they have. Raises `OSError`.

    The processes that are in it, the runtime's own, go into one of the children.
    """
    offered = (folder / "cgroup.controllers").read_text().split()
    enabled = set((folder / "cgroup.subtree_control").read_text().split())
    wanted = [controller for controller in FIELDS if controller in offered and controller not in enabled]
    if wanted and (folder / "cgroup.type").exists():  # the root of all has none
        leaf = folder / RUNTIMES_LEAF
        leaf.mkdir(exist_ok=True)
        for pid in (folder / PROCESSES).read_text().split():
            with suppress(ProcessLookupError):
                _write(leaf / PROCESSES, pid)
    for controller in wanted:
        with suppress(OSError):
            _write(folder / "cgroup.subtree_control", f"+{controller}")
            enabled.add(controller)
    return enabled


def _below(place: Path, root: str, group: str) -> Path:
    """Where a group lies: a container may see its own part of the tree only, and name it in full."""
    relative = os.path.relpath(group, root)
    return place if relative.startswith("..") else place / relative


def _usable(version: int, folder: Path) -> bool:
    """Whether a group can be made here, and taken away."""
    trial = folder / f"{_PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return version == 2 or (folder / PROCESSES).exists()  # noqa: PLR2004 - the generation


def _write(file: Path, value: object) -> None:
    file.write_text(f"{value}\n")


def _memory_first(group: Path, bound: int) -> None:
    _write(group / "memory.limit_in_bytes", bound)
    with suppress(OSError):  # without swap there are no such files
        _write(group / "memory.memsw.limit_in_bytes", bound)


def _memory_second(group: Path, bound: int) -> None:
    """No `memory.oom.group`: what is ended is the process that takes too much, not the agent beside it."""
    _write(group / "memory.max", bound)
    with suppress(OSError):
        _write(group / "memory.swap.max", 0)


def _processes(group: Path, bound: int) -> None:
    _write(group / "pids.max", bound)


def _cpu_first(group: Path, cores: float) -> None:
    _write(group / "cpu.cfs_period_us", _PERIOD_US)
    _write(group / "cpu.cfs_quota_us", round(cores * _PERIOD_US))


def _cpu_second(group: Path, cores: float) -> None:
    _write(group / "cpu.max", f"{round(cores * _PERIOD_US)} {_PERIOD_US}")


_SETTERS: Final = {
    (1, "memory"): _memory_first,
    (1, "pids"): _processes,
    (1, "cpu"): _cpu_first,
    (2, "memory"): _memory_second,
    (2, "pids"): _processes,
    (2, "cpu"): _cpu_second,
}
