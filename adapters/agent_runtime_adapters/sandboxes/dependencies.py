"""A profile's packages on this machine: what is installed for it, and how a sandbox sees it.

The same description as that of images (`agent_runtime_sandbox.image`) says what there is and where it
is inside. A folder of packages is installed once for each content and shared by all sandboxes that
want it; how it is kept is in `package_folders`, how it is filled in `installers`. Installing goes on
when whoever waits for it gives up: the next one finds it done.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Dependencies
from agent_runtime.tasks import Tasks
from agent_runtime_adapters.sandboxes.installers import check_system, install_node, install_python
from agent_runtime_adapters.sandboxes.package_folders import Install, PackageFolders
from agent_runtime_adapters.sandboxes.packages import packages_of
from agent_runtime_adapters.sandboxes.toolchain import Mount, Toolchain, find_node
from agent_runtime_sandbox.image import NODE_PACKAGES, PYTHON_PACKAGES, Packages, digest_of

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a sandbox has besides for a profile's packages: mounts, folders of programs, variables.

    `folders`: what it has to be able to read on this machine, mounted or not.
    """

    mounts: tuple[Mount, ...] = ()
    folders: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def environment(self, path: str) -> dict[str, str]:
        """The variables for the agent and its tools, where PATH would be `path` without them."""
        return {**self.env, "PATH": ":".join((*self.path, path))}


class DependencyStore:
    """The packages of one provider.

    Args:
        root: a folder of its own; made when it is needed.
        mounted: whether sandboxes see packages at the places of images; else where they lie.
    """

    def __init__(self, root: Path, *, mounted: bool) -> None:
        self._root = root.absolute()
        self._folders = PackageFolders(self._root)
        self._mounted = mounted
        self._tasks = Tasks()
        self._opening = asyncio.Lock()
        self._opened = False
        self._in_system: set[tuple[str, ...]] = {()}
        self._under_way: dict[str, asyncio.Task[SandboxFault | bool]] = {}

    async def prepare(self, wanted: Dependencies, toolchain: Toolchain) -> None:
        """Have everything there. Raises `SandboxFault`.

        `dependency_missing` where this machine's operator has to bring something, `dependencies_failed`
        where packages could not be installed, `invalid_dependency` for what is no package.
        """
        if not wanted:
            return
        packages = packages_of(wanted)
        if packages.apt not in self._in_system:
            await check_system(packages.apt)
            self._in_system.add(packages.apt)
        installs = list(self._installs(packages, toolchain).items())
        for task in [await self._started(key, install) for key, install in installs]:
            await _outcome(task)

    def tools(self, wanted: Dependencies, toolchain: Toolchain) -> Tools:
        """How what was prepared is seen inside. Raises `SandboxFault`."""
        if not wanted:
            return Tools()
        packages, mounts, path, env = packages_of(wanted), list[Mount](), list[str](), dict[str, str]()
        if packages.pip:
            key, seen_at = self._python(packages, toolchain)
            mounts.append(Mount(str(self._root / key), seen_at))
            path.append(f"{seen_at}/bin")
        if packages.npm:
            key, seen_at = self._node(packages)
            node = find_node()
            mounts += [Mount(str(self._root / key), seen_at), *node.mounts]
            path.append(f"{seen_at}/node_modules/.bin")
            if node.mounts:
                path.append(node.folder if self._mounted else node.folder_here)
            env["NODE_PATH"] = f"{seen_at}/node_modules"
        folders = tuple(mount.source for mount in mounts)
        return Tools(tuple(mounts) if self._mounted else (), folders, tuple(path), env)

    async def close(self) -> None:
        """Stop installing; nothing half is left. Idempotent."""
        self._opened = False
        await self._tasks.close()

    def _installs(self, packages: Packages, toolchain: Toolchain) -> dict[str, Install]:
        wanted: dict[str, Install] = {}
        if packages.pip:
            key, seen_at = self._python(packages, toolchain)
            wanted[key] = partial(install_python, packages=packages.pip, toolchain=toolchain, seen_at=seen_at)
        if packages.npm:
            find_node()
            wanted[self._node(packages)[0]] = partial(install_node, packages=packages.npm)
        return wanted

    def _python(self, packages: Packages, toolchain: Toolchain) -> tuple[str, str]:
        """The folder's name and where it is seen. Wheels are for one interpreter, scripts name it."""
        interpreter = (sys.version, sysconfig.get_platform(), toolchain.python, sorted(toolchain.env.items()))
        digest = digest_of(packages.pip, interpreter, "" if self._mounted else str(self._root))
        return self._place("python", digest, PYTHON_PACKAGES)

    def _node(self, packages: Packages) -> tuple[str, str]:
        return self._place("node", digest_of(packages.npm, sysconfig.get_platform()), NODE_PACKAGES)

    def _place(self, kind: str, digest: str, inside: str) -> tuple[str, str]:
        key = f"{kind}-{digest[:32]}"
        return key, inside if self._mounted else str(self._root / key)

    async def _started(self, key: str, install: Install) -> asyncio.Task[SandboxFault | bool]:
        async with self._opening:
            if not self._opened:
                await self._tasks.open()
                self._opened = True
        if key not in self._under_way:
            task = self._tasks.spawn(self._have(key, install))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return self._under_way[key]

    async def _have(self, key: str, install: Install) -> SandboxFault | bool:
        """True where it is there."""
        try:
            seconds = await self._folders.have(key, install)
        except SandboxFault as fault:
            _log.warning("dependencies_failed", key=key, code=fault.code, detail=fault.detail)
            return fault
        if seconds is not None:
            _log.info("dependencies_installed", key=key, seconds=round(seconds, 1))
        return True


async def _outcome(task: asyncio.Task[SandboxFault | bool]) -> None:
    """Wait for what goes on without us too. Raises `SandboxFault`."""
    await asyncio.wait([task])
    if task.cancelled():
        raise SandboxFault("The packages were not installed: the runtime is stopping.")
    outcome = task.result()
    if isinstance(outcome, SandboxFault):
        raise SandboxFault(outcome.detail, code=outcome.code, retryable=outcome.retryable)
    if outcome is not True:  # a defect of ours, which is in the log
        raise SandboxFault("The packages could not be installed.", code="dependencies_failed")
