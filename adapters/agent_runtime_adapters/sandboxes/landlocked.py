"""Sandboxes without namespaces: for machines where ordinary users cannot have any, such as most containers.

What such a sandbox may do with files, processes and the network is told to the kernel by `landlock`, which
also keeps it. Everything lies where it lies on the host: what is not on the list can be seen to exist and not
be opened. What this tier lacks beside bubblewrap is said in `tiers`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent_runtime_adapters.sandboxes import bubblewrap, cgroups, landlock, processes, seccomp
from agent_runtime_adapters.sandboxes.bounds import Bounds
from agent_runtime_adapters.sandboxes.dependencies import DependencyStore
from agent_runtime_adapters.sandboxes.descriptors import hold
from agent_runtime_adapters.sandboxes.keeper import Job, until_gone
from agent_runtime_adapters.sandboxes.launching import (
    FIRST_FREE_PLACE,
    NO_SITE,
    Plan,
    interpreter,
    variables_place,
)
from agent_runtime_adapters.sandboxes.processes import ProcessMark
from agent_runtime_adapters.sandboxes.registry import Record
from agent_runtime_adapters.sandboxes.toolchain import (
    INSIDE,
    Mount,
    find_toolchain,
    runner_folder,
    toolchain_here,
)
from agent_runtime_sandbox import frames

RULES_PLACE: Final = FIRST_FREE_PLACE
GATEWAY_PLACE: Final = FIRST_FREE_PLACE + 1
"""The descriptor of the folder that the gateway's socket is in."""
PASSABLE: Final = 0o711
"""A sandbox's own user must get through to its folders; what is in there it can neither list nor read."""
_ALSO_READ: Final = ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/gitconfig", "/proc", "/usr")
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Landlocked:
    """A `keeper.Manner`."""

    runner: tuple[str, ...]
    dependencies: DependencyStore
    script: str
    name: str
    isolation: str
    bounds: Bounds

    def plan(self, job: Job, stack: ExitStack) -> Plan:
        """The keeper, with rules that it reads from a descriptor."""
        rules = self._rules(job)
        # The keeper goes by this descriptor: the folders above may be shut to its uid.
        folder = os.open(job.spec.gateway_socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        return Plan(
            argv=(rules["python"], "-I", "-S", landlock.__file__, str(RULES_PLACE)),
            cwd="/",
            places={
                **job.places,
                **variables_place(job.spec, stack),
                RULES_PLACE: hold(json.dumps(rules).encode(), stack),
                GATEWAY_PLACE: folder,
            },
            limits=self.bounds.limits(job.resources),
            uid=job.record.uid,
        )

    def _rules(self, job: Job) -> dict[str, Any]:
        toolchain = find_toolchain()
        library, workspace, home = (job.folder / name for name in ("lib", "workspace", "home"))
        library.mkdir()
        (library / runner_folder().name).symlink_to(runner_folder())
        if job.record.uid is not None:
            for folder in (job.folder, job.folder.parent):
                folder.chmod(PASSABLE)
        mounts = [*toolchain.mounts, Mount(str(library), str(INSIDE / "lib"))]
        python = _here(toolchain.python, mounts)
        command = interpreter(
            (python, NO_SITE), self.runner, job.spec, *self.bounds.watched_disk(job.resources)
        )
        tools = self.dependencies.tools(job.spec.needs.dependencies, toolchain_here())
        packages = [mount.source for mount in mounts]
        return {
            "python": python,
            "argv": ["/bin/sh", "-c", self.script, "sh", *command],
            "env": {
                **_environment(toolchain.env, mounts, job, home=home, workspace=workspace),
                **tools.environment("/usr/local/bin:/usr/bin:/bin"),
            },
            "cwd": str(workspace),
            "make": str(home / "tmp"),
            "read": [
                *(*bubblewrap.SYSTEM_FOLDERS, *bubblewrap.SYSTEM_FILES, *_ALSO_READ),
                *(*packages, *tools.folders, str(runner_folder())),
            ],
            "own": [str(workspace), str(home)],
            "devices": _DEVICES,
            "gateway": str(job.spec.gateway_socket),
            "gateway_folder": GATEWAY_PLACE,
            "machine": platform.machine(),
            "filter": seccomp.program(namespaces=False).hex(),
        }

    async def ask_to_end(self, record: Record, within_s: float) -> None:
        """The runner is the keeper's child."""
        if record.inner is not None:
            await until_gone(record.inner.children(), within_s)

    async def end(self, record: Record) -> None:
        """See `end`."""
        await end(record)


async def end(record: Record) -> None:
    """End the keeper of a sandbox and whatever began in it. Idempotent. The caller bounds the wait."""
    cgroups.forbid_new_processes(record.cgroups)
    while members := list(_members(record)):
        for mark in members:
            mark.kill()
        await asyncio.sleep(0.002)
    if record.keeper is not None:
        record.keeper.kill()
        await record.keeper.gone()


def _members(record: Record) -> Iterator[ProcessMark]:
    """The processes of a sandbox, but for its keeper: by descent, by control group, by uid."""
    keeper = record.keeper.pid if record.keeper is not None and record.keeper.running() else None
    found = cgroups.members(record.cgroups)
    parents = {pid: about[0] for pid in processes.all_pids() if (about := processes.parent_and_session(pid))}
    family = {keeper}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    found |= {pid for pid in family if pid is not None}
    if record.uid is not None:
        found |= processes.owned_by(record.uid)
    if keeper is None:  # somebody killed it: what it cannot end any more is known by its environment
        sign = f"{record.sandbox_id}/home".encode()
        found |= {pid for pid in parents if any(sign in line for line in processes.environment(pid))}
    for pid in found - {keeper}:
        mark = ProcessMark.of(pid)
        if mark is not None and mark.running():
            yield mark


def _environment(
    toolchain: Mapping[str, str], mounts: list[Mount], job: Job, *, home: Path, workspace: Path
) -> dict[str, str]:
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "USER": "agent",
        "SHELL": "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        **{
            name: ":".join(_here(path, mounts) for path in value.split(":"))
            for name, value in toolchain.items()
        },
        frames.GATEWAY_ENV: str(job.spec.gateway_socket),
        frames.WORKSPACE_ENV: str(workspace),
        frames.HOME_ENV: str(home),
    }


def _here(path: str, mounts: list[Mount]) -> str:
    """Where on this machine lies what others see there inside."""
    for mount in mounts:
        if path == mount.target or path.startswith(f"{mount.target}/"):
            return mount.source + path.removeprefix(mount.target)
    return path
