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

import pytest
from structlog.testing import capture_logs

from agent_runtime.testing.runner_talk import gateway, greeted
from agent_runtime_adapters.sandboxes import launch as launch_program
from agent_runtime_adapters.sandboxes.launchers import Launchers
from agent_runtime_adapters.sandboxes.launching import Plan, launch
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.processes import ProcessMark
from tests.adapters.sandboxes.machine import needs_local_sandboxes, place
from tests.waiting import eventually

LAUNCH = launch_program.__file__.encode()

HAVE_ONE_WAIT = """
import asyncio
from agent_runtime_adapters.sandboxes.launchers import Launchers
async def main():
    launchers = Launchers()
    await launchers.make_ready()
    print("ready", flush=True)
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


async def end(program: ProcessMark) -> None:
    program.kill()
    await program.gone()


def waiting(runtime: int) -> set[int]:
    """The launchers of a runtime: children of its process that have launched nothing yet."""
    children = {
        int(pid)
        for listing in Path(f"/proc/{runtime}/task").glob("*/children")
        for pid in listing.read_text().split()
    }
    return {pid for pid in children if LAUNCH in Path(f"/proc/{pid}/cmdline").read_bytes()}


def only(pids: set[int]) -> int:
    (pid,) = pids
    return pid


def is_there(pid: int) -> bool:
    return ProcessMark.of(pid) is not None


def is_unburied(pid: int) -> bool:
    """Whether there is a process, or what is left of one until its parent asks for it."""
    return Path(f"/proc/{pid}").exists()


async def test_who_waits_launches_the_next_program_and_another_one_comes_to_wait(tmp_path: Path) -> None:
    async with waiting_launchers() as launchers:
        first = only(waiting(os.getpid()))
        program = await launched(launchers, tmp_path)
        assert not is_there(first)  # it was the parent of what it launched
        last = only(await eventually(lambda: waiting(os.getpid())))
        await end(program)
        assert last != first
    assert not is_there(last)


async def test_without_anybody_who_waits_one_is_started(tmp_path: Path) -> None:
    async with waiting_launchers(calm_s=60) as launchers:
        programs = [await launched(launchers, tmp_path) for _ in range(2)]
        assert not waiting(os.getpid())
        for program in programs:
            await end(program)


async def test_one_that_was_ended_while_it_waited_costs_nothing_but_time(tmp_path: Path) -> None:
    async with waiting_launchers(calm_s=60) as launchers:
        pid = only(waiting(os.getpid()))
        mark = ProcessMark.of(pid)
        assert mark is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not mark.running())
        await end(await launched(launchers, tmp_path))


async def test_one_that_was_stopped_while_it_waited_goes_on_or_is_ended(tmp_path: Path) -> None:
    async with waiting_launchers(calm_s=60) as launchers:
        os.kill(only(waiting(os.getpid())), signal.SIGSTOP)
        await end(await launched(launchers, tmp_path))
        await launchers.make_ready()
        last = only(waiting(os.getpid()))
        os.kill(last, signal.SIGSTOP)
        async with asyncio.timeout(5):
            await launchers.close()
    assert not is_there(last)


async def test_one_that_gets_stuck_ends_with_the_start_that_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cgroup.procs")  # as a control group that lets nobody in, and does not say so
    plan = Plan(("/bin/true",), str(tmp_path), {}, cgroups=(str(tmp_path),))
    async with waiting_launchers(calm_s=60) as launchers:
        stuck = only(waiting(os.getpid()))
        start = launch(plan, tmp_path / "log", lambda *_: None, launchers)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await start
        assert not is_unburied(stuck), "whoever gave up has ended it, and waited for that"


async def test_after_one_that_could_not_be_started_another_one_waits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchers = Launchers(calm_s=0)
    try:
        with monkeypatch.context() as patch, capture_logs() as logged:
            patch.setattr(sys, "executable", str(tmp_path / "not-here"))
            with pytest.raises(FileNotFoundError):
                await launchers.make_ready()
            patch.undo()
            await launchers.make_ready()
            assert waiting(os.getpid())
            patch.setattr(sys, "executable", str(tmp_path / "not-here"))
            await end(await launched(launchers, tmp_path))
            await eventually(lambda: any(line["event"] == "background_task_failed" for line in logged))
            assert not waiting(os.getpid())
        await end(await launched(launchers, tmp_path))
        assert await eventually(lambda: waiting(os.getpid()))
    finally:
        await launchers.close()
    assert not waiting(os.getpid())


async def test_none_is_left_by_who_is_closed_while_the_first_one_is_made_ready() -> None:
    for instants in range(12):
        launchers = Launchers()
        async with asyncio.TaskGroup() as both:
            both.create_task(launchers.make_ready())
            for _ in range(instants):
                await asyncio.sleep(0)
            await launchers.close()
        assert not waiting(os.getpid())


async def test_it_ends_with_a_runtime_that_is_killed() -> None:
    runtime = await asyncio.create_subprocess_exec(sys.executable, "-c", HAVE_ONE_WAIT, stdout=PIPE)
    assert runtime.stdout is not None
    assert await runtime.stdout.readline() == b"ready\n"
    pid = only(waiting(runtime.pid))
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
