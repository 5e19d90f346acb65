"""Attacks from inside a real sandbox without namespaces, each of which must fail.

A runtime that is root, and one of an ordinary user, whose sandboxes have the same uid as the runtime.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes.machine import (
    ORDINARY,
    as_ordinary_user,
    interpreter_for_everybody,
    needs_root,
    packages,
    place,
)
from tests.adapters.sandboxes.test_local_life import _instead_of_bubblewrap

pytestmark = needs_root
AS_EITHER = pytest.mark.parametrize("is_root", [True, False], ids=["root", "an ordinary user"])

IN_A_SANDBOX = """
import asyncio, json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from agent_runtime.testing.runner_talk import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes.machine import Inside, OBEDIENT, place
async def main():
    with place() as root, gateway() as spec, tempfile.TemporaryDirectory() as private:
        Path(private).chmod(0o755)
        victim = Path(private) / "victim"
        victim.write_text("x")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, 2) as post:
            for door, name in ((listener, "door"), (post, "post")):
                door.bind(f"{private}/{name}")
                os.chmod(f"{private}/{name}", 0o777)
            listener.listen()
            tiers = (Tier.LANDLOCK_CGROUP, Tier.LANDLOCK)
            provider = LocalSandboxes(root, runner=("-c", OBEDIENT), tiers=tiers)
            sandbox = await provider.create(spec)
            bystander = subprocess.Popen(["/bin/sleep", "300"])
            try:
                told = await Inside(sandbox, root).run(
                    CODE, private=private, root=str(root), gateway=str(spec.gateway_socket),
                    runtime=os.getpid(), bystander=bystander.pid, folder=str(root / sandbox.ref.sandbox_id),
                )
                assert bystander.poll() is None
                assert await sandbox.alive()
            finally:
                bystander.kill()
                bystander.wait()
                await sandbox.stop()
        assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("x", 0o644)
        assert [path.name for path in root.iterdir()] == [".lock"]
    print(json.dumps(told))
"""

ATTEMPT = """
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
def reach(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as door:
        door.connect(path)
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    libc.syscall(*arguments)
    return errno.errorcode.get(ctypes.get_errno(), "allowed")
workspace = os.environ["AGENT_RUNTIME_WORKSPACE"]
"""


async def attacked(code: str, *, is_root: bool) -> Any:
    program = IN_A_SANDBOX.replace("CODE", repr(ATTEMPT + code)) + "asyncio.run(main())\n"
    return await as_ordinary_user(program, is_root=is_root)


@AS_EITHER
async def test_files_that_are_not_on_the_list_can_neither_be_read_nor_changed(is_root: bool) -> None:
    told = await attacked(
        """
elsewhere = [private + "/victim", "/etc/shadow", folder + "/record.json", folder + "/journal", "/dev/shm/x"]
print(json.dumps([
    *[attempt(lambda: open(path).read()) for path in elsewhere],
    *[attempt(lambda: open(path, "w")) for path in (*elsewhere, "/tmp/x")],
    *[attempt(lambda: os.listdir(path)) for path in ("/", private, root, folder, "/root", "/home", "/sys")],
    attempt(lambda: os.chmod(private + "/victim", 0o777)),
    attempt(lambda: os.chmod(workspace + "/../record.json", 0o777)),
    attempt(lambda: os.unlink(private + "/victim")),
    attempt(lambda: os.rename(private + "/victim", workspace + "/victim")),
    attempt(lambda: os.link(private + "/victim", workspace + "/victim")),
    attempt(lambda: os.truncate(private + "/victim", 0)),
    attempt(lambda: os.setxattr(private + "/victim", "user.x", b"x")),
]))
""",
        is_root=is_root,
    )
    assert set(told) <= {"EACCES", "EPERM", "ENOENT", "EXDEV"}


@AS_EITHER
async def test_modes_and_owners_are_changed_of_its_own_files_only_however_they_are_named(
    is_root: bool,
) -> None:
    """What can be read can be opened; much of that belongs to an ordinary user's runtime."""
    own, others = await attacked(
        """
def mode(path):
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(opened, 0o700)
    finally:
        os.close(opened)
def unnamed():
    opened = os.open("gone", os.O_RDWR | os.O_CREAT)
    os.unlink("gone")
    os.fchmod(opened, 0o700)
os.chdir(workspace)
open("own", "w").close()
os.symlink(folder + "/lib", "link")
here = [attempt(lambda: mode("own")), attempt(lambda: mode(workspace)), attempt(unnamed)]
here.append(os.stat("own").st_mode & 0o777)
print(json.dumps([here, [
    attempt(lambda: mode(folder + "/lib")),
    attempt(lambda: mode("link")),
    attempt(lambda: mode(os.path.dirname(json.__file__))),
    attempt(lambda: os.chown(private + "/victim", -1, os.getgid())),
    attempt(lambda: os.chown(folder + "/lib", -1, os.getgid(), follow_symlinks=False)),
]]))
""",
        is_root=is_root,
    )
    assert own == ["allowed"] * 3 + [0o700]
    assert set(others) <= {"EACCES", "EPERM"}, others


@AS_EITHER
async def test_links_lead_it_nowhere_and_are_followed_by_nobody(is_root: bool) -> None:
    told = await attacked(
        """
os.symlink(private + "/victim", workspace + "/link")
os.symlink(private + "/door", workspace + "/door")
os.symlink(private, workspace + "/away")
print(json.dumps([
    attempt(lambda: open(workspace + "/link").read()),
    attempt(lambda: os.chmod(workspace + "/link", 0o777)),
    attempt(lambda: os.chmod(workspace + "/away/victim", 0o777)),
    attempt(lambda: reach(workspace + "/door")),
    attempt(lambda: reach(workspace + "/away/door")),
    attempt(lambda: reach("/proc/self/cwd/door")),
]))
""",
        is_root=is_root,
    )
    assert set(told) <= {"EACCES", "ELOOP"}


@AS_EITHER
async def test_it_reaches_the_gateway_and_its_own_and_nobody_else(is_root: bool) -> None:
    reached, refused = await attacked(
        """
own = socket.socket(socket.AF_UNIX)
own.bind("own.sock")
own.listen()
def datagram(pair, kind=socket.SOCK_DGRAM):
    sender = socket.socketpair(socket.AF_UNIX, kind)[0] if pair else socket.socket(1, kind)
    sender.sendto(b"x", private + "/post")
print(json.dumps([
    [attempt(lambda: reach(path)) for path in (gateway, "own.sock", workspace + "/own.sock")],
    [
        attempt(lambda: reach(private + "/door")),
        attempt(lambda: reach(folder + "/control.sock")),
        attempt(lambda: reach("\\0abstract")),
        attempt(lambda: datagram(pair=False)),
        attempt(lambda: datagram(pair=True)),
        *[attempt(lambda: datagram(pair, kind)) for pair in (False, True) for kind in (3, 3 | 0o2000000)],
        *[attempt(lambda: socket.socket(family, kind)) for family in (2, 10, 16, 40) for kind in (1, 2, 3)],
    ],
]))
""",
        is_root=is_root,
    )
    assert reached == ["allowed"] * 3
    assert set(refused) <= {"EACCES", "EAFNOSUPPORT"}


@AS_EITHER
async def test_an_address_is_read_whole_wherever_it_lies_in_memory(is_root: bool) -> None:
    told = await attacked(
        """
import mmap
own = socket.socket(socket.AF_UNIX)
own.bind("own.sock")
own.listen(64)
address = b"\\x01\\x00" + os.fsencode(gateway) + b"\\0"
memory = mmap.mmap(-1, 8192)
found = []
for place in range(4096 - len(address) - 1, 4098):
    memory[place : place + len(address)] = address
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory, place))
    with socket.socket(socket.AF_UNIX) as door:
        found.append(libc.connect(door.fileno(), ctypes.c_void_p(where), len(address)))
print(json.dumps(sorted(set(found))))
""",
        is_root=is_root,
    )
    assert told == [0]


@AS_EITHER
async def test_other_processes_are_out_of_reach(is_root: bool) -> None:
    told = await attacked(
        """
keeper = int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
found = []
for pid in (runtime, bystander, keeper):
    found += [
        attempt(lambda: os.kill(pid, 0)),
        attempt(lambda: os.kill(pid, 9)),
        attempt(lambda: open(f"/proc/{pid}/environ").read()),
        attempt(lambda: open(f"/proc/{pid}/mem", "rb").read()),
        attempt(lambda: os.readlink(f"/proc/{pid}/fd/0")),
        attempt(lambda: open(f"/proc/{pid}/fd/2", "w")),
        attempt(lambda: open(f"/proc/{pid}/cwd/x", "w")),
        attempt(lambda: open(f"/proc/{pid}/oom_score_adj", "w")),
        attempt(lambda: os.setpriority(0, pid, 19)),
        attempt(lambda: os.sched_setaffinity(pid, {0})),
        attempt(lambda: __import__("resource").prlimit(pid, 7, (0, 0))),
        attempt(lambda: __import__("signal").pidfd_send_signal(os.pidfd_open(pid), 9)),
        call(101 if os.uname().machine == "x86_64" else 117, 16, pid, 0, 0),
    ]
shared = [call(*c) for c in ((29, 0, 4096, 0o1600), (68, 0, 0o1600), (64, 0, 1, 0o1600))]
print(json.dumps(found + (shared if os.uname().machine == "x86_64" else [])))
""",
        is_root=is_root,
    )
    assert set(told) <= {"EACCES", "EPERM"}, told


@AS_EITHER
async def test_its_work_can_be_done(is_root: bool) -> None:
    done = await attacked(
        """
script = '''
git init -q . && echo x > f && git add f && git -c user.name=a -c user.email=a@b commit -qm x
printf '#!/bin/sh\\necho ran' > run.sh && chmod +x run.sh && ./run.sh
cd .. && chmod 700 workspace && mktemp > /dev/null && id -u > /dev/null && python3 -c 'print(2)'
'''
ran = subprocess.run(script, shell=True, capture_output=True, text=True)
print(json.dumps([ran.returncode, ran.stdout, ran.stderr]))
""",
        is_root=is_root,
    )
    assert done == [0, "ran\n2\n", ""]


@AS_EITHER
async def test_the_real_agent_answers_and_uses_its_tools(is_root: bool) -> None:
    """The gateway lies where a sandbox's own user would not come through."""
    program = """
import asyncio, json
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes.machine import place
from tests.adapters.sandboxes.test_local_agent import _agent_that_runs, _one_turn
async def main():
    with place() as root:
        run = "echo x > made.txt; cat made.txt; pwd"
        async with _agent_that_runs(run, root, tiers=(Tier.LANDLOCK,)) as (sandbox, channel, token):
            said = json.dumps(await _one_turn(channel, token))
        workspace = root / sandbox.ref.sandbox_id / "workspace"
        print(json.dumps(["That was it." in said, f"x\\\\n{workspace}" in said]))
asyncio.run(main())
"""
    assert await as_ordinary_user(program, is_root=is_root) == [True, True]


@AS_EITHER
async def test_what_it_leaves_running_ends_with_it(is_root: bool) -> None:
    """Also what has a session of its own, no parent, no environment, and ignores every signal it can."""
    program = IN_A_SANDBOX.replace("assert await sandbox.alive()", "left = told").replace(
        "CODE",
        repr("""
daemon = "import os, signal, time\\nfor n in (1, 15): signal.signal(n, 1)\\nif not os.fork(): time.sleep(300)"
for _ in range(3):
    subprocess.run([sys.executable, "-c", daemon], start_new_session=True, stdout=-3, stderr=-3, env={})
own = os.getuid()
print(json.dumps([p for p in os.listdir("/proc") if p.isdigit() and p != str(os.getpid())
    and b"time.sleep(300)" in open(f"/proc/{p}/cmdline", "rb").read()]))
"""),
    )
    left = await as_ordinary_user(program + "asyncio.run(main())\n", is_root=is_root)
    assert len(left) >= 3
    assert [pid for pid in left if b"time.sleep(300)" in _command_line(pid)] == []


@AS_EITHER
async def test_what_a_killed_keeper_leaves_is_ended_by_whoever_looks(is_root: bool) -> None:
    program = IN_A_SANDBOX.replace(
        "assert await sandbox.alive()",
        "keeper = sandbox._record.keeper; keeper.kill(); await keeper.gone(); "
        "assert await LocalSandboxes(root).list(spec.runtime_id) == ()",
    ).replace(
        "CODE",
        repr("""
daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], stdout=-3, stderr=-3)
print(json.dumps([str(daemon.pid)]))
"""),
    )
    (left,) = await as_ordinary_user(program + "asyncio.run(main())\n", is_root=is_root)
    assert b"time.sleep(300)" not in _command_line(left)


@pytest.mark.timeout(300)
@AS_EITHER
def test_the_contract_of_providers_is_kept(is_root: bool) -> None:
    suite = Path(__file__).with_name("without_namespaces.py")
    ran = subprocess.run(
        [
            *(interpreter_for_everybody(), "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            str(suite),
        ],
        env={
            "PYTHONPATH": packages(),
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **({} if is_root else ORDINARY) | {"cwd": str(suite.parents[3])},
    )
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout.splitlines()[-1], ran.stdout


async def test_it_is_chosen_only_where_namespaces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import asyncio, json, os, tempfile
from pathlib import Path
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
async def main():
    with tempfile.TemporaryDirectory() as folder:
        found = await LocalSandboxes(Path(folder)).probe()
        print(json.dumps([found.available, found.isolation, found.reasons[0]]))
asyncio.run(main())
"""
    refused, broken = "bwrap: No permissions to create new namespace", "bwrap: something else"
    with _instead_of_bubblewrap(f'echo "{refused}" >&2; exit 1', monkeypatch):
        available, isolation, reason = await as_ordinary_user(program)
        assert (available, isolation) == (True, "landlock+seccomp")
        assert "user namespaces" in reason
    with _instead_of_bubblewrap(f'echo "{broken}" >&2; exit 1', monkeypatch):
        available, isolation, _ = await as_ordinary_user(program)
        assert (available, isolation) == (False, "none")


async def test_a_root_runtime_whose_folders_nobody_can_reach_is_told_so() -> None:
    with place() as root:
        root.parent.chmod(0o700)
        found = await LocalSandboxes(root, tiers=(Tier.LANDLOCK,)).probe()
        assert not found.available
        assert str(root) not in json.dumps(found.reasons)


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
