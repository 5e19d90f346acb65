"""What goes wrong on purpose, and what the real SDK makes of it."""

import asyncio
import time
from pathlib import Path

import modal
import pytest
from modal.exception import AuthError, InternalError, ResourceExhaustedError, ServiceError

from agent_runtime_modal_local import Do, Fault, LocalModalError
from tests.modal_local.account import Account, account, both_backends, run


@both_backends
async def test_a_service_that_is_away_for_a_moment_is_asked_again(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        await mine.server.set_fault(Fault("SandboxCreate*", times=2))
        sandbox = await mine.create()
        assert await run(sandbox, "echo", "made") == "made"
        assert len(await mine.listed()) == 1


@both_backends
async def test_a_service_that_stays_away_is_told_until_faults_are_cleared(
    tmp_path: Path, backend: str
) -> None:
    async with account(tmp_path, backend) as mine:
        await mine.server.set_fault(Fault("SandboxCreate*", times=None))
        with pytest.raises(ServiceError):
            await mine.create()
        await mine.server.clear_faults()
        await mine.create()


@both_backends
async def test_a_reply_that_was_lost_makes_no_second_sandbox(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        await mine.server.set_fault(Fault("SandboxCreate*", Do.LOSE_REPLY))
        sandbox = await mine.create()
        calls = await mine.server.calls()
        assert sum(count for rpc, count in calls.items() if rpc.startswith("SandboxCreate")) == 2
        assert await mine.listed() == {sandbox.object_id}
        assert len(await mine.server.sandboxes()) == 1


@both_backends
async def test_a_process_whose_start_was_not_confirmed_runs_once(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        await mine.server.set_fault(Fault("TaskExecStart", Do.LOSE_REPLY))
        await run(sandbox, "sh", "-c", "echo ran >> /tmp/runs")
        assert await run(sandbox, "cat", "/tmp/runs") == "ran"


async def test_a_process_whose_start_was_confirmed_late_still_ends_by_its_time(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        # Seven replies lost are 1.3 s of asking again: its second is over before the client's begins.
        await mine.server.set_fault(Fault("TaskExecStart", Do.LOSE_REPLY, times=7))
        process = await sandbox.exec.aio("sleep", "600", timeout=1)
        assert await process.poll.aio() == -1
        assert await process.wait.aio() == -1


async def test_a_reply_that_is_lost_for_good_leaves_a_sandbox_that_can_be_found(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(Fault("SandboxCreateV2", Do.LOSE_REPLY, times=None))
        with pytest.raises(ServiceError):
            await mine.create(tags={"of": "nobody"})
        assert len(await mine.listed(of="nobody")) == 1


@both_backends
async def test_a_connection_that_breaks_in_a_call_is_made_again(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        await mine.server.set_fault(Fault("SandboxCreate*", Do.RESET))
        sandbox = await mine.create()
        await mine.server.set_fault(Fault("TaskExecStart", Do.RESET))
        assert await run(sandbox, "echo", "here") == "here"


async def test_a_call_that_hangs_ends_with_the_callers_patience(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(Fault("SandboxCreateV2", Do.HANG))
        with pytest.raises(TimeoutError):
            await _create_until_it_hangs(mine)
        await mine.create()


async def _create_until_it_hangs(mine: Account) -> None:
    """However long it takes until the call is made: then patience is over."""

    async def once_it_hangs() -> None:
        while "SandboxCreateV2" not in await mine.server.calls():
            await asyncio.sleep(0.01)
        patience.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as tasks:
        tasks.create_task(once_it_hangs())
        await mine.create()


async def test_a_slow_service_is_slow(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(Fault("SandboxCreateV2", Do.SLOW, delay_s=1.0))
        began = time.monotonic()
        await mine.create()
        assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INTERNAL", InternalError),
        ("RESOURCE_EXHAUSTED", ResourceExhaustedError),
        ("UNAUTHENTICATED", AuthError),
        ("PERMISSION_DENIED", modal.exception.PermissionDeniedError),
        ("FAILED_PRECONDITION", modal.exception.ConflictError),
    ],
)
async def test_each_status_is_an_error_of_its_own(
    tmp_path: Path, status: str, error: type[Exception]
) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(Fault("SandboxListV2", status=status, times=None, message="as asked"))
        with pytest.raises(error, match="as asked"):
            await mine.listed()


async def test_a_service_that_says_when_to_come_back_is_asked_then(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(
            Fault("SandboxCreateV2", status="RESOURCE_EXHAUSTED", retry_after_s=1.0, times=2)
        )
        began = time.monotonic()
        await mine.create()
        assert time.monotonic() - began >= 2.0


async def test_a_fault_may_strike_later(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.set_fault(Fault("SandboxTagsGetV2", status="NOT_FOUND", skip=2))
        sandbox = await mine.create()
        for _ in range(2):
            await sandbox.get_tags.aio()
        with pytest.raises(modal.exception.NotFoundError):
            await sandbox.get_tags.aio()
        await sandbox.get_tags.aio()


@pytest.mark.parametrize("do", [Do.FAIL, Do.RESET])
@both_backends
async def test_what_is_printed_is_heard_whole_though_the_stream_breaks(
    tmp_path: Path, backend: str, do: Do
) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        await mine.server.set_fault(Fault("TaskExecStdioRead", do, after_messages=2, times=3))
        process = await sandbox.exec.aio("seq", "300000", text=False)
        heard = await process.stdout.read.aio()
        assert heard.split() == [str(number).encode() for number in range(1, 300_001)]
        assert (await mine.server.calls())["TaskExecStdioRead"] >= 3


async def test_what_is_written_arrives_once_though_a_reply_is_lost(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        await mine.server.set_fault(Fault("TaskExecStdinWrite", Do.LOSE_REPLY, times=2))
        process = await sandbox.exec.aio("cat")
        process.stdin.write("once\n")
        process.stdin.write_eof()
        await process.stdin.drain.aio()
        assert await process.stdout.read.aio() == "once\n"


@both_backends
async def test_a_token_that_expired_is_replaced(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        await mine.server.token_lifetime(20)
        sandbox = await mine.create()
        assert await run(sandbox, "echo", "before") == "before"
        await mine.server.refuse_tokens()
        assert await run(sandbox, "echo", "after") == "after"
        calls = await mine.server.calls()
        asked = [rpc for rpc in calls if rpc.endswith("GetCommandRouterAccess")]
        assert asked == ["SandboxGetCommandRouterAccess" if backend == "v2" else "TaskGetCommandRouterAccess"]


async def test_a_token_that_is_refused_before_its_end_needs_a_new_handle(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        await mine.server.refuse_tokens()
        with pytest.raises(AuthError):
            await sandbox.exec.aio("true")
        assert await run(await mine.again(sandbox), "echo", "after") == "after"


async def test_a_data_path_that_was_away_is_found_again(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sh", "-c", "echo one; read word; echo two", text=False)
        heard = aiter(process.stdout)
        assert await anext(heard) == b"one\n"
        await mine.server.data_path(up=False)
        await mine.server.data_path(up=True)
        process.stdin.write(b"go\n")
        await process.stdin.drain.aio()
        assert await anext(heard) == b"two\n"


async def test_wrong_credentials_open_nothing(tmp_path: Path) -> None:
    async with account(tmp_path):
        client = await modal.Client.from_credentials.aio("ak-wrong", "as-wrong")
        with pytest.raises(AuthError):
            await modal.App.lookup.aio("tests", client=client)
        await client.close.aio()


async def test_the_admin_port_wants_its_token_and_sense(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        port = mine.server.admin_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for line in (
            b'{"do": "sandboxes"}\n',
            b'{"token": "x", "do": "sandboxes"}\n',
            b"nonsense\n",
            b"[]\n",
        ):
            writer.write(line)
            assert b"error" in await reader.readline()
        writer.close()
        with pytest.raises(LocalModalError, match="nobody knows"):
            await mine.server.ask("dance")
        with pytest.raises(LocalModalError, match="not a fault"):
            await mine.server.ask("set_fault", fault={"method": "x"})


def test_a_fault_with_a_status_that_is_none_is_no_fault() -> None:
    with pytest.raises(ValueError, match="OVERLOADED"):
        Fault("SandboxList", status="OVERLOADED")
