"""What is left of a local Modal after its end, however it came: nothing."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_runtime_modal_local import LocalModal, LocalModalError
from agent_runtime_modal_local.cgroup import PREFIX, parent_of_groups
from tests.modal_local.account import account, client_of, run
from tests.waiting import eventually

INSIDE = "76543"
"""Seconds that a process inside sleeps, by which it is known from outside."""


def sleepers() -> list[str]:
    return [pid for pid in _pids() if f"sleep\0{INSIDE}" in _cmdline(pid)]


def mounts_of_this_machine() -> str:
    return Path("/proc/self/mountinfo").read_text()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def groups_of(server: int) -> list[Path]:
    parent = parent_of_groups()
    return list(parent.glob(f"{PREFIX}{server}*")) if parent is not None else []


async def test_after_its_end_there_is_nothing(tmp_path: Path) -> None:
    root = tmp_path / "server"
    mounts = mounts_of_this_machine()
    async with account(root) as mine:
        for _ in range(3):
            sandbox = await mine.create("sleep", INSIDE, memory=(64, 128))
            await sandbox.exec.aio("sleep", INSIDE)
        assert len(sleepers()) >= 6
        server = mine.server.pid
    assert sleepers() == []
    assert not root.exists()
    assert mounts_of_this_machine() == mounts
    assert groups_of(server) == []


async def test_what_brought_an_entrypoint_inside_is_waited_for_like_all_else(tmp_path: Path) -> None:
    async with account(tmp_path) as mine, asyncio.TaskGroup() as tasks:
        sandbox = await mine.create("sleep", INSIDE)
        (outside,) = [int(pid) for pid in sleepers() if _cmdline(pid).startswith("nsenter")]
        os.kill(outside, signal.SIGSTOP)
        ending = tasks.create_task(sandbox.terminate.aio())
        await eventually(lambda: sleepers() == [str(outside)])
        assert not ending.done()
        os.kill(outside, signal.SIGCONT)
        await ending
        assert sleepers() == []


async def test_after_it_was_killed_nothing_runs_and_the_next_one_removes_its_files(tmp_path: Path) -> None:
    kept = tmp_path / "somebodys file"
    kept.write_text("x")
    mounts = mounts_of_this_machine()
    async with account(tmp_path) as mine:
        sandbox = await mine.create("sleep", INSIDE, memory=(64, 128))
        await sandbox.exec.aio("sh", "-c", f"setsid sleep {INSIDE} & sleep {INSIDE}")
        await run(sandbox, "true")
        server = mine.server.pid
        os.kill(server, signal.SIGKILL)
        await eventually(lambda: not sleepers(), within=20)
        left = names_in(tmp_path)
        assert len(left) == 2
        async with LocalModal(tmp_path):
            assert set(left) & set(names_in(tmp_path)) == {kept.name}
            assert groups_of(server) == []
    assert mounts_of_this_machine() == mounts
    assert names_in(tmp_path) == [kept.name]


async def test_sandboxes_that_ended_leave_no_files(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await (await mine.create()).terminate.aio()
        before = _everything_below(tmp_path)
        for _ in range(5):
            sandbox = await mine.create()
            await run(sandbox, "sh", "-c", "head -c 3000000 /dev/zero | tee /workspace/file")
            await sandbox.terminate.aio()
        assert _everything_below(tmp_path) == before


async def test_two_servers_share_a_root_and_leave_each_other_alone(tmp_path: Path) -> None:
    async with LocalModal(tmp_path) as first, LocalModal(tmp_path) as second:
        assert first.environment() != second.environment()
        async with client_of(first):
            assert await first.sandboxes() == []
            assert await second.sandboxes() == []


async def test_the_usual_root_goes_with_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    async with LocalModal() as first:
        async with LocalModal() as second:
            assert len(names_in(tmp_path)) == 1
            await asyncio.to_thread(first.stop)
            assert await second.sandboxes() == []
        assert names_in(tmp_path) == []


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from tests.modal_local.account import account
async def main():
    async with account(Path({str(tmp_path)!r})) as mine:
        await mine.create("sleep", "{INSIDE}")
        print(mine.server.pid, flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.strip().isdigit(), told.stderr
    deadline = time.monotonic() + 20
    while sleepers() or Path(f"/proc/{told.stdout.strip()}").exists() or list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_by_hand_it_says_in_one_line_what_the_sdk_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent_runtime_modal_local", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        assert told["environment"]["MODAL_SERVER_URL"] == told["url"]
        assert told["url"].startswith("http://127.0.0.1:")
        assert told["pid"] == server.pid
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert server.stdout.read() == ""
    assert list(tmp_path.iterdir()) == []


async def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalModalError):
        async with LocalModal(tmp_path / "file"):
            pass


def _pids() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _cmdline(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _everything_below(folder: Path) -> set[str]:
    return {f"{above}/{name}" for above, _, names in os.walk(folder) for name in names}
