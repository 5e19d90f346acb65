"""A launcher may wait before there is a sandbox to launch; it is of use once, and nobody's burden."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from agent_runtime.testing.runner_talk import gateway, greeted
from agent_runtime_adapters.sandboxes.launchers import Launchers
from agent_runtime_adapters.sandboxes.launching import Plan, launch
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.processes import ProcessMark
from tests.adapters.sandboxes.machine import needs_local_sandboxes, place
from tests.waiting import eventually

SAY_WHO_WAITS = """
import asyncio
from agent_runtime_adapters.sandboxes.launchers import Launchers
async def main():
    launchers = Launchers()
    await launchers.make_ready()
    print(launchers.waiting, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@asynccontextmanager
async def waiting_launchers(calm_s: float = 0.0) -> AsyncIterator[Launchers]:
    launchers = Launchers(calm_s)
    await launchers.make_ready()
    try:
        yield launchers
    finally:
        await launchers.close()


async def launched(launchers: Launchers, folder: Path) -> ProcessMark:
    """Have a program started that says that it is up, and ends when it has been looked at."""
    marks: list[ProcessMark] = []
    plan = Plan(("/bin/sh", "-c", "echo ready >&5; exec sleep 60 5>&-"), str(folder), {})
    await launch(plan, folder / "log", lambda mark, _: marks.append(mark), launchers)
    return marks[0]


def is_there(pid: int) -> bool:
    return ProcessMark.of(pid) is not None


async def test_who_waits_launches_the_next_program_and_another_one_comes_to_wait(tmp_path: Path) -> None:
    async with waiting_launchers() as launchers:
        first = launchers.waiting
        assert first is not None
        program = await launched(launchers, tmp_path)
        assert not is_there(first)  # it was the parent of what it launched
        await eventually(lambda: launchers.waiting is not None)
        program.kill()
        await program.gone()
        last = launchers.waiting
        assert last not in {None, first}
    assert last is not None
    assert not is_there(last)


async def test_without_anybody_who_waits_one_is_started(tmp_path: Path) -> None:
    async with waiting_launchers(calm_s=60) as launchers:
        programs = [await launched(launchers, tmp_path) for _ in range(2)]
        assert launchers.waiting is None
        for program in programs:
            program.kill()
            await program.gone()


async def test_one_that_was_ended_while_it_waited_costs_nothing_but_time(tmp_path: Path) -> None:
    async with waiting_launchers(calm_s=60) as launchers:
        assert launchers.waiting is not None
        mark = ProcessMark.of(launchers.waiting)
        assert mark is not None
        os.kill(mark.pid, signal.SIGKILL)
        await eventually(lambda: not mark.running())
        program = await launched(launchers, tmp_path)
        program.kill()
        await program.gone()


async def test_it_ends_with_a_runtime_that_is_killed() -> None:
    runtime = await asyncio.create_subprocess_exec(sys.executable, "-c", SAY_WHO_WAITS, stdout=PIPE)
    assert runtime.stdout is not None
    pid = int(await runtime.stdout.readline())
    assert is_there(pid)
    runtime.kill()
    await runtime.wait()
    await eventually(lambda: not is_there(pid))


@needs_local_sandboxes
async def test_sandboxes_come_up_with_one_that_waits_and_leave_none_when_the_provider_is_closed() -> None:
    with place() as root, gateway() as spec:
        provider = LocalSandboxes(root, ahead=True)
        try:
            assert (await provider.probe()).available
            for number in range(2):
                sandbox = await provider.create(replace(spec, session_id=f"session-{number}"))
                assert (await greeted(sandbox))["k"] == "hello"
                await sandbox.stop()
        finally:
            await provider.close()
