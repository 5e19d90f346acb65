"""What is inside of a sandbox, and what is not."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.modal_local.account import account, both_backends, python, run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="two users inside need a server that is root's")


@contextmanager
def listening() -> Iterator[int]:
    """A port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


REACHES = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", {port}), 5)
    print("reached")
except OSError:
    print("refused")
"""


@both_backends
async def test_the_interpreter_of_the_server_is_at_its_place_with_its_packages(
    tmp_path: Path, backend: str
) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        code = "import sys, pydantic, modal_proto; print(sys.version, sys.executable, pydantic.__file__)"
        told = await python(sandbox, code)
        assert told.startswith(sys.version.split("\n", maxsplit=1)[0].split()[0])
        assert all(path.startswith("/opt/agent-runtime/") for path in told.split("]")[-1].split())
        isolated = await run(
            sandbox, "/opt/agent-runtime/bin/python", "-I", "-c", "import pydantic; print(1)"
        )
        assert isolated == "1"


async def test_the_places_that_everybody_counts_on_can_be_written(tmp_path: Path) -> None:
    places = ("/tmp", "/root", "/home/agent", "/workspace", "/run", "/var/lib", "/var/tmp", "/dev/shm")
    async with account(tmp_path) as mine:
        first, second = await mine.create(), await mine.create()
        for place in places:
            await run(first, "touch", f"{place}/mark")
        for place in places:
            assert "mark" not in await run(second, "ls", place)
        for place in ("/usr", "/opt/agent-runtime/bin", "/opt/agent-runtime/python", "/__modal"):
            process = await first.exec.aio("touch", f"{place}/mark")
            assert await process.wait.aio() != 0
            assert "mark" not in await run(first, "ls", place)


@needs_root
async def test_root_and_the_agent_are_two(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        assert mine.server.users == ("root", "agent")
        sandbox = await mine.create()
        await run(sandbox, "sh", "-c", "mkdir -m 700 /run/private && echo x > /run/private/file")
        code = """
import os, pwd, subprocess
agent = pwd.getpwnam("agent")
as_agent = dict(user=agent.pw_uid, group=agent.pw_gid, extra_groups=[], capture_output=True, text=True)
print(agent.pw_uid, agent.pw_dir, os.getuid())
print(subprocess.run(["cat", "/run/private/file"], **as_agent).stderr.strip())
print(subprocess.run(["kill", "-9", str(os.getpid())], **as_agent).returncode != 0)
print(subprocess.run(["sh", "-c", "id -u; touch ~/mine; grep -E 'CapEff|NoNewPrivs' /proc/self/status"],
                     env={"HOME": agent.pw_dir}, **as_agent).stdout.split())
"""
        told = (await python(sandbox, code)).splitlines()
        assert told[0] == "1000 /home/agent 0"
        assert "Permission denied" in told[1]
        assert told[2] == "True"
        assert told[3] == "['1000', 'CapEff:', '0000000000000000', 'NoNewPrivs:', '1']"


async def test_root_inside_is_not_root_of_this_machine(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        attempts = (
            "mount -t tmpfs none /mnt",
            "mknod /tmp/disk b 8 0",
            "echo 1 > /proc/sys/vm/drop_caches",
            "echo h > /proc/sysrq-trigger",
            "test -s /proc/kcore",
            "test -e /proc/1/root/boot",
            "unshare --mount true",
            "mount -o remount,rw /usr",
        )
        for attempt in attempts:
            process = await sandbox.exec.aio("sh", "-c", attempt)
            assert await process.wait.aio() != 0, attempt


async def test_files_and_processes_of_this_machine_are_not_there(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create(env={"MINE": "1"})
        wanted = ["/etc/shadow", "/sys/kernel", "/boot", "/var/log", str(tmp_path), str(Path(__file__))]
        assert await python(sandbox, f"import os; print([p for p in {wanted} if os.path.exists(p)])") == "[]"
        names = await python(sandbox, "import os; print(sorted(os.environ))")
        known = {"HOME", "LANG", "MINE", "MODAL_SANDBOX_ID", "MODAL_TASK_ID", "PATH", "PWD", "TERM"}
        assert set(json.loads(names.replace("'", '"'))) - {"LC_CTYPE", "LD_LIBRARY_PATH"} == known
        seen = await run(sandbox, "sh", "-c", "ls -d /proc/[0-9]* | wc -l")
        assert int(seen) < 10


@both_backends
async def test_a_blocked_network_is_none(tmp_path: Path, backend: str) -> None:
    with listening() as port:
        async with account(tmp_path, backend) as mine:
            look = REACHES.format(port=port)
            assert await python(await mine.create(), look) == "reached"
            assert await python(await mine.create(block_network=True), look) == "refused"
            assert await python(await mine.create(outbound_cidr_allowlist=[]), look) == "refused"
            addresses = await run(await mine.create(block_network=True), "cat", "/proc/net/dev")
            assert [line.split(":")[0].strip() for line in addresses.splitlines()[2:]] == ["lo"]


async def test_two_sandboxes_do_not_see_each_other(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        first, second = await mine.create(), await mine.create()
        sleeping = await first.exec.aio("sh", "-c", "echo begun; exec sleep 12345")
        assert await anext(aiter(sleeping.stdout)) == "begun\n"
        assert "12345" in await run(first, "ps", "-eo", "args")
        assert "12345" not in await run(second, "ps", "-eo", "args")


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from tests.modal_local.account import account, run

async def main():
    async with account(Path(sys.argv[1])) as mine:
        sandbox = await mine.create(block_network=True)
        print(mine.server.users, await run(sandbox, "sh", "-c", "id -un; touch /workspace/x && echo written"))
        snapshot = await sandbox.snapshot_filesystem.aio()
        again = await mine.create(image=snapshot)
        print(await run(again, "ls", "/workspace"))
        print(await run(again, "sh", "-c", "mount -t tmpfs none /mnt 2>/dev/null || echo refused"))

asyncio.run(main())
"""
REACHABLE = """
set -e
mount --bind "$2" "$3"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount --bind "$3" "$2"
shift 3
exec "$@"
"""
"""Puts the interpreter where everybody may look, for one process: $2 is its prefix, below the private $1."""


@needs_root
def test_an_ordinary_user_gets_sandboxes_with_one_user() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as mount_point:
        os.chown(folder, 65534, 65534)
        command = [sys.executable, "-c", AS_NOBODY, f"{folder}/root"]
        if private := _first_private_folder(Path(sys.base_prefix)):
            there = [str(private), sys.base_prefix, mount_point]
            command = ["unshare", "--mount", "sh", "-c", REACHABLE, "sh", *there, *command]
        told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert told.stdout.split() == ["('root',)", "root", "written", "x", "refused"], told.stderr
        assert list(Path(folder).iterdir()) == []


def _first_private_folder(path: Path) -> Path | None:
    folders = [folder for folder in path.resolve().parents if not folder.stat().st_mode & 0o001]
    return folders[-1] if folders else None
