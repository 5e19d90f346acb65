"""What the tests of this folder see of the machine from outside, and a way to run code inside."""

import asyncio
import functools
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.ports import Sandbox
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
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
def why_there_are_no_local_sandboxes() -> str | None:
    """The reason that a probe gives, or None."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(LocalSandboxes(Path(folder)).probe())
    return None if found.available else " ".join(found.reasons)


needs_local_sandboxes = pytest.mark.skipif(
    why_there_are_no_local_sandboxes() is not None, reason=str(why_there_are_no_local_sandboxes())
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@contextmanager
def place() -> Iterator[Path]:
    """A folder for sandboxes; in the end no process, device or control group may have to do with it."""
    before = groups()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sandboxes"
        yield root
        assert processes_of(root) == []
        deadline = time.monotonic() + 5  # the kernel gives back devices a moment after the last process
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
    async with asyncio.timeout(5):
        while await sandbox.alive():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def inside(root: Path) -> AsyncIterator[Inside]:
    provider = LocalSandboxes(root, runner=("-c", OBEDIENT))
    with gateway() as spec:
        sandbox = await provider.create(spec)
        try:
            yield Inside(sandbox, root)
        finally:
            await sandbox.stop()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
