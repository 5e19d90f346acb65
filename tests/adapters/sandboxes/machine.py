"""What the tests of this folder see of the machine from outside, and a way to run code inside."""

import asyncio
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.ports import Sandbox
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes import cgroups, disk
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.seen_from_outside import devices_of, groups, is_empty, processes_of

OBEDIENT = """
import json, os, socket, subprocess, sys
from agent_runtime_sandbox import process
environment = dict(os.environ)
process.harden()
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as stream:
        for line in stream:
            command = [sys.executable, "-c", json.loads(line)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            stream.write(json.dumps([done.stdout, done.stderr]).encode() + b"\\n")
            stream.flush()
"""
"""A runner that protects itself as the real one does, and runs what it is told as an agent would."""


@functools.cache
def why_not(tiers: tuple[Tier, ...]) -> str | None:
    """The reason that a probe gives for there being no sandboxes of these tiers, or None."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        found = asyncio.run(LocalSandboxes(Path(folder), tiers=tiers).probe())
    return None if found.available else " ".join(found.reasons)


def why_there_are_no_local_sandboxes() -> str | None:
    """The reason that a probe gives, or None."""
    return why_not((Tier.CGROUP, Tier.BUBBLEWRAP))


needs_local_sandboxes = pytest.mark.skipif(
    why_there_are_no_local_sandboxes() is not None, reason=str(why_there_are_no_local_sandboxes())
)
needs_groups = pytest.mark.skipif(isinstance(cgroups.find_cgroups(), str), reason=str(cgroups.find_cgroups()))
needs_disks = pytest.mark.skipif(
    os.geteuid() != 0 or disk.find_mkfs() is None, reason="a disk of its own needs root and mkfs.ext4"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@contextmanager
def place() -> Iterator[Path]:
    """A folder for sandboxes; in the end no process, device or control group may have to do with it."""
    before = groups()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # where there are no namespaces, a sandbox's own user passes through
        root = Path(folder) / "sandboxes"
        yield root
        assert processes_of(root) == []
        # The kernel gives back devices a moment after the last process; groups may be of tests beside us.
        deadline = time.monotonic() + 30
        while left := [*devices_of(root), *filter(is_empty, groups() - before)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def is_saying(pid: int, words: str) -> bool:
    """Whether a process was started with these words."""
    return words.encode() in _read(pid, "cmdline")


@dataclass
class Inside:
    """Runs Python in a sandbox. What the code prints as JSON is returned."""

    sandbox: Sandbox
    root: Path

    async def run(self, code: str, **values: Any) -> Any:
        given = "import ctypes, errno, json, os, socket, subprocess, sys\n" + "".join(
            f"{name} = {value!r}\n" for name, value in values.items()
        )
        channel = await self.sandbox.connect()
        try:
            await channel.send(json.dumps(given + code).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = await channel.receive()
                if not piece:
                    raise ConnectionResetError("the runner is gone")
                answer += piece
        finally:
            await channel.close()
        printed, complaints = json.loads(answer)
        assert complaints == "", complaints
        return json.loads(printed)


async def death_of(sandbox: Sandbox) -> None:
    """Wait until it is seen to be dead: a connection may end a moment before the process does."""
    async with asyncio.timeout(20):
        while await sandbox.alive():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def inside(
    root: Path, *, tiers: tuple[Tier, ...] = tuple(Tier), **bounds: float
) -> AsyncIterator[Inside]:
    """A sandbox with these bounds (the fields of `Resources`)."""
    provider = LocalSandboxes(root, runner=("-c", OBEDIENT), tiers=tiers)
    with gateway() as spec:
        needs = SandboxNeeds(resources=Resources.model_validate(bounds))
        sandbox = await provider.create(replace(spec, needs=needs))
        try:
            yield Inside(sandbox, root)
        finally:
            await sandbox.stop()


ORDINARY_USER = 1500
ORDINARY = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": [], "cwd": "/"}


async def as_ordinary_user(program: str, *, join: Sequence[Path] = (), is_root: bool = False) -> Any:
    """Run Python as a user who is not root, in these control groups; the JSON that it printed last.

    With `is_root`: as root after all, with a Python that others can run too.
    """
    python = await asyncio.to_thread(interpreter_for_everybody)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", 'read go; exec "$@"', "sh", python, "-c", program),
        env={
            "PYTHONPATH": packages(),
            "HOME": "/nonexistent",
            "PATH": os.environ["PATH"],
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **({} if is_root else ORDINARY),
    )
    for group in join:
        (group / "cgroup.procs").write_text(str(process.pid))
    try:
        printed, complaints = await process.communicate(b"go\n")
    finally:
        with suppress(ProcessLookupError):
            process.kill()  # a test that takes too long leaves nothing
    assert process.returncode == 0, complaints.decode()
    return json.loads(printed.splitlines()[-1])


def packages() -> str:
    """Our import path, without what is this interpreter's own."""
    return ":".join(path for path in sys.path if path and not path.startswith(f"{sys.base_prefix}/"))


def interpreter_for_everybody() -> str:
    """A Python of our version that another user may run, with our packages."""
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            done = subprocess.run(
                [python, "-c", "import sys, pydantic_core, agent_runtime; print(sys.version_info[:2])"],
                env={"PYTHONPATH": packages()},
                **ORDINARY,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.stdout.strip() == str(sys.version_info[:2]):
                return python
    wanted = ".".join(map(str, sys.version_info[:2]))
    why = f"no Python {wanted} can be run by other users: install one below /usr (apt-get install python3)"
    pytest.skip(why)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
