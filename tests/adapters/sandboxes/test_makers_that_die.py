"""A runtime is killed while it makes a local sandbox: whatever is on its way by then ends by itself, or is
ended by the next one that looks."""

import asyncio
import json
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.sandbox_contract import RUNTIME_ID
from agent_runtime_adapters.sandboxes.launching import INFO_PLACE
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.processes import ProcessMark, all_pids
from tests.adapters.sandboxes.machine import is_saying, needs_local_sandboxes, place, processes_of
from tests.waiting import eventually

ORPHAN_TIMEOUT_S = 1.0

MAKE_ONE = """
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
async def main():
    provider = LocalSandboxes(Path(sys.argv[1]))
    assert (await provider.probe()).available
    os.environ["PATH"] = sys.argv[2] + ":" + os.environ["PATH"]
    with gateway() as spec:
        await provider.create(replace(spec, orphan_timeout_s=float(sys.argv[3])))
        await asyncio.sleep(60)
asyncio.run(main())
"""

MAKE_ONE_WHEN_TOLD = """
import asyncio, sys
from pathlib import Path
from agent_runtime.testing.runner_talk import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
async def main():
    provider = LocalSandboxes(Path(sys.argv[1]), tiers=(Tier(sys.argv[2]),))
    print("ready" if (await provider.probe()).available else "no", flush=True)
    sys.stdin.readline()
    with gateway() as spec:
        await provider.create(spec)
        await asyncio.sleep(60)
asyncio.run(main())
"""
WAIT_FOR_THE_MAKERS_DEATH = "echo here > {step}; while [ ! -e {go_on} ]; do /bin/sleep 0.01; done"
FILL_THE_PIPE = f"/usr/bin/head -c 65536 /dev/zero >&{INFO_PLACE}"


@needs_local_sandboxes
@pytest.mark.parametrize("moment", ["before bubblewrap tells", "before the runner is up"])
async def test_without_any_runtime_everything_ends_by_itself(moment: str) -> None:
    with place() as root, _gate() as gate:
        script = WAIT_FOR_THE_MAKERS_DEATH if moment == "before bubblewrap tells" else ""
        async with _maker(root, gate.program(script)) as maker:
            await eventually(lambda: _stands(root, gate, moment), within=20)
            maker.kill()
            ((record, _),) = _kept(root)
        gate.open()
        await eventually(lambda: _nothing_runs(root, record), within=ORPHAN_TIMEOUT_S + 20)
        assert await LocalSandboxes(root).list(RUNTIME_ID) == ()
        assert [path.name for path in root.iterdir()] == [".lock"]


@needs_local_sandboxes
async def test_the_next_runtime_ends_a_bubblewrap_in_the_middle_of_its_setup() -> None:
    with place() as root, _gate() as gate:
        # Bubblewrap cannot tell of its first process, which waits for it.
        script = f"{WAIT_FOR_THE_MAKERS_DEATH}; {FILL_THE_PIPE}"
        async with _maker(root, gate.program(script)) as maker:
            await eventually(lambda: _stands(root, gate, "before bubblewrap tells"), within=20)
            maker.kill()
            ((record, _),) = _kept(root)
        gate.open()
        keeper = ProcessMark.model_validate(record["keeper"])
        await eventually(lambda: any(is_saying(mark.pid, "--args") for mark in keeper.children()))
        assert await LocalSandboxes(root).list(RUNTIME_ID) == ()
        await eventually(lambda: _nothing_runs(root, record))


@needs_local_sandboxes
@pytest.mark.parametrize("tier", ["bubblewrap+seccomp+netns+cgroup", "bubblewrap+seccomp+netns"])
@pytest.mark.parametrize("first_ms", [0, 6, 12])
async def test_at_whatever_moment_it_dies_the_next_one_leaves_nothing(tier: str, first_ms: int) -> None:
    """No process, folder, mount, loop device or control group (`place` looks)."""
    with place() as root:
        for after_ms in range(first_ms, 90, 18):
            maker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", MAKE_ONE_WHEN_TOLD, str(root), tier), stdin=PIPE, stdout=PIPE
            )
            assert maker.stdin is not None
            assert maker.stdout is not None
            while (line := await maker.stdout.readline()) not in (b"ready\n", b"no\n", b""):
                pass  # it logs as well
            if line != b"ready\n":
                pytest.skip(f"{tier} cannot be had here")
            maker.stdin.write(b"go\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(after_ms / 1000):
                    await maker.wait()
            maker.kill()
            await maker.wait()
        provider = LocalSandboxes(root)
        async with asyncio.timeout(30):
            while [path.name for path in root.iterdir()] != [".lock"]:
                for ref in await provider.list(RUNTIME_ID):
                    await (await provider.attach(ref)).stop()


class _Gate:
    """A bubblewrap that runs something before itself, and where it waits."""

    def __init__(self, folder: Path) -> None:
        self.reached, self._go_on, self._folder = folder / "step", folder / "go-on", folder

    def program(self, script: str) -> Path:
        """The folder of a `bwrap` that does this first."""
        first = script.format(step=self.reached, go_on=self._go_on)
        program = self._folder / "bwrap"
        program.write_text(f'#!/bin/sh\n{first}\nexec {shutil.which("bwrap")} "$@"\n')
        program.chmod(0o755)
        return self._folder

    def open(self) -> None:
        self._go_on.touch()


@contextmanager
def _gate() -> Iterator[_Gate]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o777)  # the sandbox's own user writes there
        yield _Gate(Path(folder))


@asynccontextmanager
async def _maker(root: Path, programs: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A runtime that makes a sandbox; killed inside of the block, and gone after it."""
    maker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAKE_ONE, str(root), str(programs), str(ORPHAN_TIMEOUT_S))
    )
    try:
        yield maker
        async with asyncio.timeout(10):
            await maker.wait()
    finally:
        if maker.returncode is None:
            maker.kill()
            await maker.wait()


def _nothing_runs(root: Path, record: dict[str, Any]) -> bool:
    """Also what hides, as bubblewrap does while it sets things up, is known by its uid, where it has one."""
    marks = [mark for pid in all_pids() if (mark := ProcessMark.of(pid)) is not None and mark.running()]
    hidden = [mark for mark in marks if record["uid"] is not None and _owner(mark.pid) == record["uid"]]
    return processes_of(root) == [] and hidden == []


def _owner(pid: int) -> int | None:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}").stat().st_uid
    return None


def _stands(root: Path, gate: _Gate, moment: str) -> bool:
    if moment == "before bubblewrap tells":
        return gate.reached.exists()
    return any(record.get("inner") for record, _ in _kept(root))


def _kept(root: Path) -> list[tuple[dict[str, Any], Path]]:
    found = []
    for file in root.glob("sb-*/record.json"):
        try:
            found.append((json.loads(file.read_text()), file.parent))
        except FileNotFoundError:
            continue
    return found
