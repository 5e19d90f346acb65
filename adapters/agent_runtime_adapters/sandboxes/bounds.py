"""Bounds: what holds a sandbox of this machine to its resources, and what does not.

Control groups (`cgroups`) and a disk of its own (`disk`) where they can be had; limits of single
processes where they cannot, which are weak: each process has its own, and shared memory is not counted.
What is really bounded is in `enforces`, what is not in `lacks`, in sentences that say how to get it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_runtime.needs import DEFAULT_RESOURCES, Resources
from agent_runtime_adapters.sandboxes import cgroups as groups
from agent_runtime_adapters.sandboxes.cgroups import Cgroups
from agent_runtime_adapters.sandboxes.disk import IMAGE_NAME, DiskImages

LIMITS: Final = {"NOFILE": 4096, "CORE": 0, "FSIZE": 2 * 1024**3}
"""Bounds of each process: open descriptors, bytes of a core dump, bytes of one file."""
LEAST_DATA: Final = 1024**3
"""Bytes of a process's own memory; with less, engines for JavaScript do not start."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is used to bound a sandbox. `lacks` says in sentences why something is not bounded."""

    cgroups: Cgroups | None = None
    disks: DiskImages | None = None
    own_uid: bool = False
    lacks: tuple[str, ...] = ()

    @property
    def enforces(self) -> tuple[str, ...]:
        """The fields of `Resources` that are really bounded."""
        found = set(self.cgroups.enforces if self.cgroups is not None else ())
        if self.own_uid:
            found.add("processes")
        if self.disks is not None:
            found.add("disk_bytes")
        return tuple(name for name in Resources.model_fields if name in found)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not bounded, and how to get it."""
        missing = [_NAMES[name] for name in Resources.model_fields if name not in self.enforces]
        if not missing:
            return ()
        listed = " and ".join((", ".join(missing[:-1]), missing[-1]) if len(missing) > 1 else missing)
        return (f"Not bounded in a sandbox: {listed}.", *self.lacks)

    async def prepare(self, sandbox_id: str, folder: Path, resources: Resources) -> None:
        """Make what a sandbox is put into. Raises `OSError`, `SandboxFault`; `clear` removes it."""
        if self.cgroups is not None:
            self.cgroups.make(sandbox_id, resources)
        if self.disks is not None and resources.disk_bytes is not None:
            await self.disks.make(folder / IMAGE_NAME, resources.disk_bytes)

    def limits(self, resources: Resources) -> dict[str, int]:
        """Bounds of each process of the sandbox."""
        limits = dict(LIMITS)
        if resources.disk_bytes is not None:
            limits["FSIZE"] = min(limits["FSIZE"], resources.disk_bytes)
        if self.own_uid and resources.processes is not None:  # else all that have the uid are counted
            limits["NPROC"] = resources.processes
        if "memory_bytes" not in self.enforces and resources.memory_bytes is not None:
            limits["DATA"] = max(resources.memory_bytes, LEAST_DATA)
        return limits

    def set_inside(self, resources: Resources) -> str:
        """What a shell inside does before all else, where an ordinary user's sandbox has namespaces.

        Linux counts a user's processes in each user namespace by itself (since 5.14), so that a bound
        which is set within one is that sandbox's own. Elsewhere it may leave no room to begin: not set.
        """
        if self.own_uid or resources.processes is None:
            return ""
        bound = resources.processes  # one shell names it -u, another -p
        tried = f"if (ulimit $kind {bound} && (:)) 2>/dev/null; then ulimit $kind {bound}; break; fi"
        return f"for kind in -u -p; do {tried}; done; "

    def watched_disk(self, resources: Resources) -> tuple[str, ...]:
        """Options for a runner that has to watch its disk itself."""
        if self.disks is not None or resources.disk_bytes is None:
            return ()
        return ("--disk-bytes", str(resources.disk_bytes))

    def sweep(self) -> None:
        """Remove what was left behind by those whose records are gone."""
        if self.cgroups is not None:
            self.cgroups.sweep()


async def clear(cgroups: tuple[str, ...]) -> None:
    """Remove what remains of a sandbox's bounds after its processes. Idempotent. Raises `OSError`."""
    await groups.remove(cgroups)


def granted(resources: Resources) -> Resources:
    """What a sandbox gets: what was asked for, the default elsewhere."""
    asked = {name: value for name, value in resources if value is not None}
    return DEFAULT_RESOURCES.model_copy(update=asked)


_NAMES: Final = {
    "cpu": "CPU",
    "memory_bytes": "memory (but for a limit of each process)",
    "processes": "processes (but for a count that Linux keeps for each user namespace, from 5.14 on)",
    "disk_bytes": "disk (it is watched: a sandbox that takes more is ended)",
}
