"""More ways out of a real local sandbox, each of which must fail while the host is as it was before."""

import asyncio
import hashlib
import json
import os
import platform
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.runner_talk import Talk, gateway, greeted, one_of, said, talking, with_agent
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from tests.adapters.sandboxes.machine import inside, needs_local_sandboxes, place

pytestmark = needs_local_sandboxes

ATTEMPT = """
import time
def attempt(what):
    try:
        got = what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed" if got is None else got
"""


async def test_calls_of_other_architectures_are_absent_or_deadly() -> None:
    """The filter knows the numbers of this one only: those of x32 and of 32 bits must not get past it."""
    if platform.machine() != "x86_64":
        pytest.skip("there are no others here")
    thirty_two_bits = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid, as int 0x80
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
    with place() as root:
        async with inside(root) as attacker:
            code, x32 = await attacker.run(
                """
done = subprocess.run([sys.executable, "-c", "import ctypes\\n" + program])
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(0x40000000 + 39)
print(json.dumps([done.returncode, errno.errorcode[ctypes.get_errno()]]))
""",
                program=thirty_two_bits,
            )
            assert (code, x32) == (-31, "ENOSYS")  # SIGSYS


async def test_no_mount_changes_and_no_sandbox_within_has_more_rights() -> None:
    with place() as root:
        async with inside(root) as attacker:
            answers, nested = await attacker.run(
                ATTEMPT
                + """
libc = ctypes.CDLL(None, use_errno=True)
REMOUNT, BIND = 0x20, 0x1000
def mount(source, target, kind, flags):
    ctypes.set_errno(0)
    libc.mount(source, target, kind, flags, None)
    return errno.errorcode.get(ctypes.get_errno(), "allowed")
answers = [
    mount(b"none", b"/usr", None, REMOUNT | BIND),
    mount(b"none", b"/", None, REMOUNT),
    mount(b"/proc", b"/workspace", None, BIND),
    mount(b"proc", b"/workspace", b"proc", 0),
    mount(b"tmpfs", b"/workspace", b"tmpfs", 0),
]
libc.umount2(b"/tmp", 2)
answers.append(errno.errorcode.get(ctypes.get_errno(), "allowed"))
nested = []
for command in (
    ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"],
    ["unshare", "--user", "--map-root-user", "true"],
    ["su", "-c", "true"],
):
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
    except FileNotFoundError:
        continue
    nested.append(done.returncode)
print(json.dumps([answers, nested]))
"""
            )
            assert set(answers) == {"EPERM"}
            assert nested
            assert 0 not in nested


async def test_what_the_kernel_offers_to_root_is_not_there_or_cannot_be_written() -> None:
    with place() as root:
        async with inside(root) as attacker:
            written, devices = await attacker.run(
                ATTEMPT
                + """
def write(path):
    with open(path, "w") as file:
        file.write("1")
written = {path: attempt(lambda: write(path)) for path in paths}
devices = sorted(os.listdir("/dev"))
print(json.dumps([written, devices]))
""",
                paths=[
                    *("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"),
                    *("/proc/kcore", "/proc/kmsg", "/proc/sys/kernel/modprobe"),
                    *("/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/dev/mem", "/dev/kvm"),
                    *("/proc/self/uid_map", "/proc/self/setgroups", "/dev/tty", "/etc/passwd"),
                ],
            )
            assert "allowed" not in written.values(), written
            assert set(devices) <= {
                *("console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm"),
                *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
            }


async def test_processes_of_the_host_have_no_number_inside() -> None:
    with place() as root:
        async with inside(root) as attacker:
            answers = await attacker.run(
                ATTEMPT + "print(json.dumps([attempt(lambda: os.kill(pid, 0)) for pid in pids]))",
                pids=[os.getpid(), os.getppid(), threading.get_native_id()],
            )
            assert set(answers) == {"ESRCH"}


async def test_the_first_process_has_nothing_that_is_worth_taking() -> None:
    """It is open to all inside: no rights beyond theirs, no file of the host, nothing to write to."""
    with place() as root:
        async with inside(root) as attacker:
            status, held, written = await attacker.run(
                ATTEMPT
                + """
def write(number):
    if os.readlink(f"/proc/1/fd/{number}") not in ("/dev/null", "anon_inode:[eventfd]"):
        with open(f"/proc/1/fd/{number}", "w") as file:
            file.write("forged")
        return None
    return "nothing"
numbers = os.listdir("/proc/1/fd")
print(json.dumps([
    dict(line.split(":", 1) for line in open("/proc/1/status")),
    [os.readlink(f"/proc/1/fd/{number}") for number in numbers],
    [attempt(lambda: write(number)) for number in numbers],
]))
"""
            )
            assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
            assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
            assert held
            assert not [path for path in held if str(root) in path or "socket" in path]
            assert "allowed" not in written


async def test_the_only_sockets_inside_are_those_of_its_gateway() -> None:
    """A socket answers behind a read-only mount as well: none of the host may be in there."""
    with place() as root:
        async with inside(root) as attacker:
            found = await attacker.run(
                """
import stat
found = []
for top in ("/usr", "/etc", "/run", "/opt", "/tmp", "/home", "/workspace", "/dev"):
    for folder, folders, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
                found.append(path)
print(json.dumps(found))
"""
            )
            assert [path for path in found if not path.startswith("/run/agent-runtime/")] == []


async def test_a_debugger_works_on_what_it_started_itself() -> None:
    """Tracing is not refused: what must not be traced is shut to it."""
    with place() as root:
        async with inside(root) as attacker:
            traced = await attacker.run(
                """
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
child = subprocess.Popen(["/bin/sleep", "60"])
attached = libc.ptrace(16, child.pid, None, None)
os.waitpid(child.pid, 0)
with open(f"/proc/{child.pid}/maps") as maps:
    address = int(next(line for line in maps if " r--p " in line or " r-xp " in line).split("-")[0], 16)
with open(f"/proc/{child.pid}/mem", "rb") as memory:
    memory.seek(address)
    magic = memory.read(4)
child.kill()
print(json.dumps([attached, magic == b"\\x7fELF"]))
"""
            )
            assert traced == [0, True]


async def test_a_file_of_a_size_that_no_disk_has_is_refused() -> None:
    with place() as root:
        async with inside(root) as attacker:
            answers = await attacker.run(
                ATTEMPT
                + """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = open("/workspace/sparse", "wb")
print(json.dumps([attempt(lambda: file.truncate(1 << 40) and None), os.path.getsize("/workspace/sparse")]))
"""
            )
            assert answers == ["EFBIG", 0]


async def test_a_link_that_flips_while_the_host_reads_leads_nowhere() -> None:
    """The runner is asked for a file whose folder is a link to /etc, or to /proc/self, every other moment."""
    flip = """
import os
for target, name in (("/etc", "passwd"), ("/proc/self", "environ")):
    os.makedirs(f"/workspace/folder-{name}")
    with open(f"/workspace/folder-{name}/{name}", "w") as file:
        file.write("its own")
    os.symlink(target, f"/workspace/link-{name}")
print("both are there", flush=True)
while True:
    for name in ("passwd", "environ"):
        os.rename(f"/workspace/folder-{name}", f"/workspace/kept-{name}")
        os.rename(f"/workspace/link-{name}", f"/workspace/folder-{name}")
        os.rename(f"/workspace/folder-{name}", f"/workspace/link-{name}")
        os.rename(f"/workspace/kept-{name}", f"/workspace/folder-{name}")
"""
    async with _agent_in_a_sandbox() as talk:
        await _run(talk, _in_background(flip))
        read: set[Any] = set()
        for _ in range(200):
            for path in ("folder-passwd/passwd", "folder-environ/environ"):
                try:
                    read.add(await talk.command("read", path=path))
                except AssertionError:  # refused
                    continue
        assert b"its own" in read
        assert {content for content in read if isinstance(content, bytes)} == {b"its own"}


async def test_files_are_told_although_all_watches_of_its_user_are_taken() -> None:
    take = """
import ctypes, time
libc = ctypes.CDLL(None)
taken = 0
while libc.inotify_init1(0) >= 0:
    taken += 1
print(taken, flush=True)
with open("/workspace/told", "w") as file:
    file.write("all the same")
time.sleep(60)
"""
    async with _agent_in_a_sandbox() as talk:
        await _run(talk, _in_background(take))
        await talk.until(lambda frame: frame["k"] == "file" and frame["path"] == "told")


async def test_the_host_runs_no_program_for_what_is_in_a_repository(tmp_path: Path) -> None:
    """Git runs commands that a repository names; so it is run inside or not at all."""
    sign = tmp_path / f"ran-{secrets.token_hex(8)}"
    plant = f"""
import os
os.makedirs(".git/hooks"), os.makedirs(".git/objects"), os.makedirs(".git/refs")
for name in ("post-checkout", "pre-commit", "post-index-change", "fsmonitor-watchman"):
    open(f".git/hooks/{{name}}", "w").write("#!/bin/sh\\ntouch {sign}\\n")
    os.chmod(f".git/hooks/{{name}}", 0o755)
open(".git/HEAD", "w").write("ref: refs/heads/main\\n")
config = "[core]\\n\\tfsmonitor = touch {sign}\\n[diff]\\n\\texternal = touch {sign}\\n"
open(".git/config", "w").write(config)
open("package.json", "w").write('{{"scripts": {{"preinstall": "touch {sign}", "prepare": "touch {sign}"}}}}')
open("Makefile", "w").write("all:\\n\\ttouch {sign}\\n")
open("conftest.py", "w").write("open('{sign}', 'w')\\n")
open("sitecustomize.py", "w").write("open('{sign}', 'w')\\n")
"""
    async with _agent_in_a_sandbox() as talk:
        await _run(talk, plant)
        await talk.command("sync")
        listed = await talk.command("list")
        assert "Makefile" in {file["path"] for file in listed["files"]}
        assert await talk.command("read", path="conftest.py")
    assert not sign.exists()


async def test_a_sandbox_outlives_the_thread_that_started_it() -> None:
    """What dies with its parent dies with the thread that began it: nothing of a sandbox has that parent."""
    with place() as root, gateway() as spec:
        provider = LocalSandboxes(root)
        made: list[Any] = []
        thread = threading.Thread(target=lambda: made.append(asyncio.run(provider.create(spec))))
        await asyncio.to_thread(thread.start)
        await asyncio.to_thread(thread.join)
        (sandbox,) = made
        try:
            assert (await greeted(sandbox))["agent"] == "none"
            assert await sandbox.alive()
        finally:
            await sandbox.stop()


async def test_a_tree_that_is_too_deep_to_walk_goes_with_its_sandbox() -> None:
    deep = """
import os
for _ in range(1500):
    os.mkdir("x" * 50)
    os.chdir("x" * 50)
print(json.dumps(0))
"""
    with place() as root:
        async with inside(root) as attacker:
            await attacker.run(deep)
        assert [path.name for path in root.iterdir() if path.name.startswith("sb-")] == []


async def test_the_host_is_as_it_was() -> None:
    """What all of these were after: nothing of the host was changed by a sandbox that tried everything."""
    watched = [Path(path) for path in ("/etc/passwd", "/etc/hosts", "/usr/bin", "/opt")]
    before = [_sign(path) for path in watched]
    with place() as root:
        async with inside(root) as attacker:
            await attacker.run(
                """
for folder, folders, names in os.walk("/"):
    if folder.startswith(("/proc", "/workspace", "/home/agent", "/tmp", "/dev")):
        folders.clear()
        continue
    for name in [*names[:50], "made"]:
        try:
            os.unlink(os.path.join(folder, name))
        except OSError:
            pass
        try:
            open(os.path.join(folder, name), "a").close()
        except OSError:
            pass
print(json.dumps(0))
"""
            )
    assert [_sign(path) for path in watched] == before


@asynccontextmanager
async def _agent_in_a_sandbox() -> AsyncIterator[Talk]:
    """The real runner in a sandbox, with an agent that runs Python when it is told to."""
    with place() as root:
        async with one_of(LocalSandboxes(root)) as sandbox, talking(sandbox) as talk:
            yield await with_agent(talk)


def _in_background(program: str) -> str:
    """A program that leaves another one running, once that has printed a line."""
    return f"""
import subprocess, sys
null = subprocess.DEVNULL
other = subprocess.Popen([sys.executable, "-c", {program!r}], stdin=null, stdout=-1, stderr=null)
assert other.stdout.readline()
"""


async def _run(talk: Talk, program: str) -> dict[str, Any]:
    """Have the agent run a program; what came of it."""
    message = secrets.token_hex(8)
    await talk.say(f"run {program}", message)
    line: dict[str, Any] = (await talk.until(said(message)))["line"]
    assert line["code"] == 0, line
    return line


def _sign(path: Path) -> str:
    facts = [path.stat()]
    if path.is_dir():
        facts += [
            entry.stat(follow_symlinks=False) for entry in sorted(os.scandir(path), key=lambda e: e.name)
        ]
    told = [(fact.st_mode, fact.st_size, fact.st_mtime_ns, fact.st_ino) for fact in facts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
