"""What of this machine's Python goes into a sandbox, and where it lies there.

The interpreter and its packages may lie anywhere here (a home folder, a venv that points to pyenv or
uv, /usr). Inside they lie at neutral places, read-only, so that nothing of the host's folders shows:

    /opt/agent-runtime/python           the interpreter's prefix, unless it is part of /usr
    /opt/agent-runtime/site-packages    the packages of the running environment (agents come with them)
    /opt/agent-runtime/lib              the runner's package and nothing beside it
    /opt/agent-runtime/agents           agents' binaries that can be run and not read (`execute_only`)
    /opt/agent-runtime/node             Node's prefix, where packages of npm are wanted, unless part of /usr
"""

from __future__ import annotations

import asyncio
import compileall
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from agent_runtime.errors import SandboxFault

RUNNER_PACKAGE: Final = "agent_runtime_sandbox"
INSIDE: Final = PurePosixPath("/opt/agent-runtime")
SYSTEM: Final = Path("/usr")
AGENT_LIBRARY: Final = "claude_agent_sdk"
_IMPORT_WITHIN_S: Final = 60.0
"""Far more than it takes; a server must not wait for ever for what only saves time."""
AGENTS: Final = {"claude": (AGENT_LIBRARY, "_bundled/claude")}
"""By the name of the runner's driver: the package that an agent's binary comes with, and its place in it."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host at a place inside; read-only unless `writable`."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The mounts that a runner needs, the interpreter's path inside, the variables and options it needs."""

    mounts: tuple[Mount, ...]
    python: str
    env: dict[str, str]
    options: tuple[str, ...] = ()


def find_toolchain(agents: Mapping[str, Path] = MappingProxyType({})) -> Toolchain:
    """Look at the running interpreter. Raises `SandboxFault` (`sandbox_unavailable`).

    `agents`: by driver, the copies of their binaries that are to be started (`execute_only`).
    """
    prefix = Path(sys.base_prefix).resolve()
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    _check(prefix, executable)
    mounts = [Mount(str(runner_folder()), str(INSIDE / "lib" / RUNNER_PACKAGE))]
    env = {}
    if not prefix.is_relative_to(SYSTEM):
        mounts.append(Mount(str(prefix), str(INSIDE / "python")))
        if sysconfig.get_config_var("Py_ENABLE_SHARED"):
            # The library's place is often built into the interpreter, and is another one inside.
            env["LD_LIBRARY_PATH"] = str(INSIDE / "python" / "lib")
    search = [str(INSIDE / "lib")]
    for number, folder in enumerate(_package_folders()):
        inside = _inside(folder, prefix)
        if inside is None:
            inside = str(INSIDE / ("site-packages" + (f"-{number + 1}" if number else "")))
            mounts.append(Mount(str(folder), inside))
        search.append(inside)
    env["PYTHONPATH"] = ":".join(search)
    python = _inside(executable, prefix)
    assert python is not None
    mounts += [Mount(str(copy), _agent_inside(driver)) for driver, copy in agents.items()]
    options = tuple(f"--agent={driver}={_agent_inside(driver)}" for driver in agents)
    return Toolchain(tuple(mounts), python, env, options)


def toolchain_here() -> Toolchain:
    """The running interpreter as it is on this machine, for what runs here without a sandbox."""
    return Toolchain((), getattr(sys, "_base_executable", sys.executable), {})


async def write_bytecode() -> None:
    """Have what a runner imports compiled, where that was not done when it was installed.

    Inside nobody may write there, so each runner would compile all of it for itself (the runner's own
    package costs more than a tenth of a second). A folder that may not be written stays as it is.
    """
    with suppress(OSError):
        await asyncio.to_thread(compileall.compile_dir, runner_folder(), quiet=2)
        if not _is_compiled(AGENT_LIBRARY):
            await _import_once()


def _is_compiled(package: str) -> bool:
    """Whether its installer saw to it, or somebody has imported it."""
    spec = importlib.util.find_spec(package)
    return spec is None or spec.cached is None or Path(spec.cached).exists()


async def _import_once() -> None:
    """In a process of its own, with the interpreter's own rules for what is compiled and kept where."""
    search = os.pathsep.join((str(runner_folder().parent), *map(str, _package_folders())))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *(toolchain_here().python, "-P", "-S", "-c", f"import {RUNNER_PACKAGE}.drivers.claude"),
        env={**env, "PYTHONPATH": search},
        stdin=null,
        stdout=null,
        stderr=null,
    )
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_IMPORT_WITHIN_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Node:
    """The mounts that Node needs, the folder of its programs inside, and that folder on this machine."""

    mounts: tuple[Mount, ...]
    folder: str
    folder_here: str


def find_node() -> Node:
    """Look for this machine's Node. Raises `SandboxFault` (`dependency_missing`, `sandbox_unavailable`)."""
    found = shutil.which("node")
    if found is None:
        detail = "Node is not installed on this machine: `apt-get install nodejs npm`."
        raise SandboxFault(detail, code="dependency_missing", retryable=False)
    here = Path(found).resolve().parent
    if here.is_relative_to(SYSTEM):
        return Node((), str(here), str(here))
    prefix = here.parent
    home = Path.home().resolve()
    if home.is_relative_to(prefix) or prefix == home / ".local":
        raise _unusable("Node is installed into a folder that holds private files as well")
    inside = INSIDE / "node"
    return Node((Mount(str(prefix), str(inside)),), str(inside / "bin"), str(here))


def runner_folder() -> Path:
    """The folder of the runner's package on this machine. Raises `SandboxFault`."""
    spec = importlib.util.find_spec(RUNNER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SandboxFault("The runner's package is not installed.", code="sandbox_unavailable")
    return Path(spec.submodule_search_locations[0]).resolve()


def agent_binaries() -> dict[str, Path]:
    """The agents' binaries on this machine, by the driver that starts them."""
    found = {}
    for driver, (package, place) in AGENTS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (Path(folder) / place).is_file():
                found[driver] = Path(folder) / place
    return found


def _agent_inside(driver: str) -> str:
    return str(INSIDE / "agents" / driver)


def _check(prefix: Path, executable: Path) -> None:
    home = Path.home().resolve()
    if home.is_relative_to(prefix) or prefix == home / ".local":
        raise _unusable("Python is installed into a folder that holds private files as well")
    if not executable.is_relative_to(prefix):
        raise _unusable("The Python interpreter lies outside of its own installation")


def _unusable(why: str) -> SandboxFault:
    detail = f"{why}; use one of the system, or of a version manager."
    return SandboxFault(detail, code="sandbox_unavailable", retryable=False)


def _package_folders() -> Iterator[Path]:
    """The folders of installed packages on the import path, in its order."""
    seen = set()
    for entry in sys.path:
        folder = Path(os.path.realpath(entry))
        if folder.name in {"site-packages", "dist-packages"} and folder.is_dir() and folder not in seen:
            seen.add(folder)
            yield folder


def _inside(path: Path, prefix: Path) -> str | None:
    """Where a path is found inside without a mount of its own."""
    if path.is_relative_to(SYSTEM):
        return str(path)
    if path.is_relative_to(prefix):
        return str(INSIDE / "python" / path.relative_to(prefix))
    return None
