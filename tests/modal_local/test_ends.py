"""How sandboxes end: by their lifetime, by idleness, for want of memory, or from outside."""

import asyncio
from pathlib import Path

import modal
import pytest
from modal.exception import NotFoundError, SandboxTerminatedError, SandboxTimeoutError

from agent_runtime_modal_local import LocalModalError
from agent_runtime_modal_local.cgroup import parent_of_groups
from agent_runtime_modal_local.sandboxes import OUTPUTS_KEPT
from tests.modal_local.account import Account, account, both_backends, python, run

needs_groups = pytest.mark.skipif(
    parent_of_groups() is None, reason="memory is bounded only where control groups can be made"
)

A_WHILE_S = 60
"""What nothing here takes: within so much of its end nobody asks whether a sandbox still lives."""


async def end_of(mine: Account, sandbox: modal.Sandbox) -> str:
    """How it ended, as the server tells; it has to be soon."""
    async with asyncio.timeout(20):
        while (report := await mine.report(sandbox))["ended"] is None:
            await asyncio.sleep(0.02)
    return str(report["ended"])


@both_backends
async def test_a_lifetime_ends_whatever_runs(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create(timeout=3600)
        await sandbox.exec.aio("sleep", "86400")
        await mine.server.advance(3600 - A_WHILE_S)
        assert await sandbox.poll.aio() is None
        await mine.server.advance(A_WHILE_S)
        assert await end_of(mine, sandbox) == "lifetime"
        assert await sandbox.poll.aio() == 124
        with pytest.raises(SandboxTimeoutError):
            await sandbox.wait.aio()


@both_backends
async def test_a_short_lifetime_needs_no_help(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create(timeout=1)
        with pytest.raises(SandboxTimeoutError):
            await sandbox.wait.aio()


@both_backends
async def test_an_idle_sandbox_ends_without_a_word(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create(idle_timeout=60, timeout=86400)
        await run(sandbox, "true")
        await mine.server.advance(61)
        assert await end_of(mine, sandbox) == "idle"
        await sandbox.wait.aio()
        assert sandbox.returncode == 0


async def test_a_sandbox_in_which_something_runs_is_not_idle(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create(idle_timeout=600, timeout=86400)
        working = await sandbox.exec.aio("cat")
        for _ in range(3):
            await mine.server.advance(601)
            assert await run(sandbox, "echo", "here") == "here"
        working.stdin.write_eof()
        await working.stdin.drain.aio()
        assert await working.wait.aio() == 0
        await mine.server.advance(600 - A_WHILE_S)
        assert await sandbox.poll.aio() is None
        await mine.server.advance(A_WHILE_S)
        assert await end_of(mine, sandbox) == "idle"


@needs_groups
@both_backends
async def test_one_that_takes_too_much_memory_is_ended_by_the_kernel(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        greedy, modest = await mine.create(memory=(64, 128)), await mine.create(memory=(64, 128))
        assert (await mine.report(greedy))["memoryIsBounded"]
        taking = "a = bytearray(400 * 1024**2); print(len(a))"
        await greedy.exec.aio("/opt/agent-runtime/bin/python", "-c", taking)
        assert await end_of(mine, greedy) == "out_of_memory"
        await greedy.wait.aio()
        assert greedy.returncode == 137
        assert await python(modest, "print(len(bytearray(20 * 1024**2)))") == str(20 * 1024**2)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("out_of_memory", 137),
        ("internal_failure", 137),
        ("memory_eviction", 137),
        ("idle", 0),
        ("success", 0),
    ],
)
async def test_an_end_can_be_of_any_kind(tmp_path: Path, how: str, code: int) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sleep", "600")
        await mine.server.end(sandbox.object_id, how)
        assert await sandbox.poll.aio() == code
        assert (await mine.report(sandbox))["ended"] == how
        with pytest.raises(NotFoundError):
            await process.wait.aio()
        assert await mine.listed() == set()


async def test_one_that_was_terminated_says_so(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        await mine.server.end(sandbox.object_id, "terminated")
        with pytest.raises(SandboxTerminatedError):
            await sandbox.wait.aio()
        with pytest.raises(LocalModalError, match="not found"):
            await mine.server.end("sb-unknown", "terminated")
        with pytest.raises(LocalModalError):
            await mine.server.end(sandbox.object_id, "of boredom")


async def test_what_an_entrypoint_printed_can_be_read_after_the_end_for_a_while(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        soon, late = await mine.create("echo", "heard"), await mine.create("echo", "forgotten")
        for sandbox in (soon, late):
            await sandbox.wait.aio()
        assert await soon.stdout.read.aio() == "heard\n"
        for _ in range(OUTPUTS_KEPT):
            await (await mine.create()).terminate.aio()
        assert await late.stdout.read.aio() == ""
        assert await late.poll.aio() == 0


async def test_one_whose_first_process_is_killed_has_failed(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        await sandbox.exec.aio("sh", "-c", "kill -9 2; sleep 600")
        assert await end_of(mine, sandbox) == "internal_failure"
