"""Attacks from inside a real local sandbox, each of which must fail."""

import platform
import socket
import tempfile
from pathlib import Path

import pytest

from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes import seccomp
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from tests.adapters.sandboxes.machine import inside, needs_local_sandboxes, needs_root, place
from tests.seen_from_outside import files_of

pytestmark = needs_local_sandboxes

SYSCALL = """
libc = ctypes.CDLL(None, use_errno=True)
def refusal(*arguments):
    ctypes.set_errno(0)
    libc.syscall(*arguments)
    return errno.errorcode.get(ctypes.get_errno(), "allowed")
"""


async def test_the_hosts_files_are_not_there() -> None:
    with place() as root, tempfile.TemporaryDirectory() as private:
        secret = Path(private) / "secret"
        secret.write_text("x")
        for folder in (secret.parent, root.parent):
            folder.chmod(0o777)
        async with inside(root) as attacker:
            wanted = ["/etc/shadow", "/etc/gshadow", "/root", "/sys/kernel", "/var", "/run/docker.sock"]
            wanted += [str(root), str(secret), str(Path.home()), str(Path(__file__))]
            look = "print(json.dumps([path for path in wanted if os.path.exists(path)]))"
            assert await attacker.run(look, wanted=wanted) == []
            seen = set(await attacker.run("print(json.dumps(os.listdir('/')))"))
            assert seen <= {"usr", "bin", "sbin", "lib", "lib32", "lib64", "etc", "dev", "proc", "tmp"} | {
                *("opt", "run", "home", "workspace")
            }
            assert await attacker.run("print(json.dumps(os.listdir('/home')))") == ["agent"]
            assert await attacker.run("print(json.dumps(os.listdir('/run')))") == ["agent-runtime"]


async def test_of_the_hosts_certificates_the_public_ones_are_there_and_no_keys() -> None:
    with place() as root:
        async with inside(root) as attacker:
            there = "all(name in {'certs', 'cert.pem', 'openssl.cnf'} for name in os.listdir('/etc/ssl'))"
            assert await attacker.run(f"print(json.dumps({there}))")


async def test_another_sandbox_is_not_there() -> None:
    with place() as root:
        async with inside(root) as victim, inside(root) as attacker:
            await victim.run("open('/workspace/secret', 'w').write('x'); print(0)")
            secret = files_of(root / victim.sandbox.ref.sandbox_id) / "secret"
            assert secret.exists()
            assert not await attacker.run("print(json.dumps(os.path.exists(path)))", path=str(secret))
            assert await attacker.run("print(json.dumps(os.listdir('/workspace')))") == []
            pids = await attacker.run("print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))")
            assert len(pids) <= 4


@needs_root
async def test_each_sandbox_has_a_user_of_its_own_and_none_is_root() -> None:
    with place() as root:
        async with inside(root) as first, inside(root) as second:
            owners = {
                files_of(root / attacker.sandbox.ref.sandbox_id, name).stat().st_uid
                for attacker in (first, second)
                for name in ("workspace", "home")
            }
            assert len(owners) == 2
            assert min(owners) > 200_000
            for attacker in (first, second):
                await attacker.run("open('/workspace/made', 'w'); print(0)")
                made = files_of(root / attacker.sandbox.ref.sandbox_id) / "made"
                assert made.stat().st_uid == made.parent.stat().st_uid


async def test_nothing_of_the_runtimes_environment_or_command_line_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-real-one")
    with place() as root:
        async with inside(root) as attacker:
            look = "print(json.dumps(open('/proc/1/{}', 'rb').read().decode()))"
            assert await attacker.run(look.format("environ")) == ""
            command = await attacker.run(look.format("cmdline"))
            assert str(root) not in command
            assert "--setenv" not in command
            environment = await attacker.run("print(json.dumps(dict(os.environ)))")
            assert "sk-the-real-one" not in str(environment)
            assert str(Path.home()) not in str(environment)
            assert set(environment) <= {
                *("PATH", "HOME", "USER", "SHELL", "LANG", "TERM", "PWD", "OLDPWD", "SHLVL", "_"),
                *("PYTHONPATH", "LD_LIBRARY_PATH"),
                *("AGENT_RUNTIME_GATEWAY", "AGENT_RUNTIME_WORKSPACE", "AGENT_RUNTIME_HOME"),
            }


async def test_there_is_no_network_but_its_own_loopback() -> None:
    with (
        place() as root,
        socket.create_server(("0.0.0.0", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = server.getsockname()[1]
        abstract.bind("\0agent-runtime-test")
        abstract.listen()
        addresses = {"127.0.0.1", "::1", "10.0.2.2", "1.1.1.1", *_own_addresses()}
        reach = """
reached = []
for address in addresses:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        continue
    reached.append(address)
try:
    socket.socket(socket.AF_UNIX).connect("\\0agent-runtime-test")
    reached.append("abstract")
except OSError:
    pass
print(json.dumps([reached, [name for _, name in socket.if_nameindex()]]))
"""
        async with inside(root) as attacker:
            assert await attacker.run(reach, addresses=sorted(addresses), port=port) == [[], ["lo"]]


async def test_sockets_that_no_network_namespace_confines_are_refused() -> None:
    families = {"AF_VSOCK": 40, "AF_PACKET": 17, "AF_ALG": 38, "AF_XDP": 44, "AF_CAN": 29, "AF_BLUETOOTH": 31}
    with place() as root:
        async with inside(root) as attacker:
            found = await attacker.run(
                """
def attempt(make, family):
    try:
        make(family, socket.SOCK_STREAM)
    except OSError as error:
        return errno.errorcode[error.errno]
made = {name: attempt(socket.socket, number) for name, number in families.items()}
pairs = {name: attempt(socket.socketpair, number) for name, number in families.items()}
print(json.dumps([made, pairs]))
""",
                families=families,
            )
            assert found == [dict.fromkeys(families, "EAFNOSUPPORT")] * 2


async def test_every_call_of_the_table_is_refused() -> None:
    machine = platform.machine()
    refused = {name: getattr(call, machine) for name, call in seccomp.REFUSED.items()}
    absent = {name: getattr(call, machine) for name, call in seccomp.ABSENT.items()}
    numbers = {name: number for name, number in (refused | absent).items() if number is not None}
    with place() as root:
        async with inside(root) as attacker:
            found = await attacker.run(
                SYSCALL + "print(json.dumps({n: refusal(c, 0, 0, 0, 0, 0, 0) for n, c in numbers.items()}))",
                numbers=numbers,
            )
            assert found == {name: "ENOSYS" if name in absent else "EPERM" for name in numbers}


async def test_it_cannot_become_more_than_it_is() -> None:
    with place() as root:
        async with inside(root) as attacker:
            status = await attacker.run(
                "print(json.dumps(dict(line.split(':', 1) for line in open('/proc/self/status'))))"
            )
            assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {
                "0" * 16
            }
            assert status["NoNewPrivs"].strip() == "1"
            assert status["Seccomp"].strip() == "2"
            flags = {"user": 0x10000000, "net": 0x40000000, "mount": 0x20000, "pid": 0x20000000}
            clone = getattr(seccomp.CLONE, platform.machine())
            made = await attacker.run(
                SYSCALL + "print(json.dumps([refusal(clone, f | 17, 0, 0, 0, 0) for f in flags]))",
                clone=clone,
                flags=list(flags.values()),
            )
            assert set(made) == {"EPERM"}
            tries = """
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
print(json.dumps([
    attempt(lambda: os.setuid(0)),
    attempt(lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0))),
    attempt(lambda: os.chown("/workspace", 0, 0)),
    attempt(lambda: os.chroot("/tmp")),
]))
"""
            assert "allowed" not in await attacker.run(tries)


async def test_keystrokes_cannot_be_pushed_into_a_terminal() -> None:
    with place() as root:
        async with inside(root) as attacker:
            answers = await attacker.run(
                """
import fcntl
_, terminal = os.openpty()
def attempt(request):
    try:
        fcntl.ioctl(terminal, request, b"x")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
print(json.dumps([attempt(0x5412), attempt(0x541C)]))
"""
            )
            assert answers == ["EPERM", "EPERM"]


async def test_the_runner_cannot_be_reached_into() -> None:
    with place() as root:
        async with inside(root) as attacker:
            answers = await attacker.run(
                SYSCALL
                + """
runner = os.getppid()
def attempt(what):
    try:
        return repr(what())
    except OSError as error:
        return errno.errorcode[error.errno]
pidfd = os.pidfd_open(runner)
print(json.dumps([
    attempt(lambda: os.listdir(f"/proc/{runner}/fd")),
    attempt(lambda: open(f"/proc/{runner}/fd/4", "rb")),
    attempt(lambda: open(f"/proc/{runner}/mem", "rb")),
    attempt(lambda: open(f"/proc/{runner}/environ", "rb").read()),
    refusal(ptrace, 16, runner, 0, 0),
    refusal(438, pidfd, 3, 0),
]))
""",
                ptrace={"x86_64": 101, "aarch64": 117}[platform.machine()],
            )
            assert set(answers) <= {"EACCES", "EPERM"}


async def test_the_runner_is_given_its_two_descriptors_and_no_other() -> None:
    confess = """
import os, socket
held = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(repr(held).encode())
"""
    with place() as root, gateway() as spec:
        sandbox = await LocalSandboxes(root, runner=("-c", confess)).create(spec)
        channel = await sandbox.connect()
        assert await channel.receive() == b"[0, 1, 2, 3, 4]"
        await channel.close()
        await sandbox.stop()


async def test_its_control_socket_and_journal_have_no_name_inside() -> None:
    with place() as root:
        async with inside(root) as attacker:
            folder = root / attacker.sandbox.ref.sandbox_id
            assert (folder / "control.sock").is_socket()
            assert (folder / "journal").is_file()
            named = await attacker.run(
                "sockets = open('/proc/net/unix').read()\n"
                "print(json.dumps([os.path.exists(folder), 'control.sock' in sockets]))",
                folder=str(folder),
            )
            assert named == [False, False]
            open_here = await attacker.run(
                "print(json.dumps([os.readlink(f'/proc/self/fd/{number}') for number in range(3)]))"
            )
            assert not [name for name in open_here if "journal" in name or str(root) in name]
            init = await attacker.run(
                """
try:
    found = [os.readlink(f"/proc/1/fd/{n}") for n in os.listdir("/proc/1/fd")]
except OSError:
    found = []
print(json.dumps(found))
"""
            )
            assert not [name for name in init if "journal" in name or "socket" in name]


async def test_only_its_own_folders_can_be_written() -> None:
    with place() as root:
        async with inside(root) as attacker:
            written = await attacker.run(
                """
def writable(folder):
    try:
        open(folder + "/probe", "w").close()
    except OSError:
        return False
    return True
print(json.dumps([folder for folder in folders if writable(folder)]))
""",
                folders=[
                    *(
                        "/",
                        "/etc",
                        "/usr",
                        "/usr/bin",
                        "/opt",
                        "/opt/agent-runtime",
                        "/opt/agent-runtime/lib",
                    ),
                    *(
                        "/run",
                        "/run/agent-runtime",
                        "/home",
                        "/dev",
                        "/proc",
                        "/opt/agent-runtime/site-packages",
                    ),
                    *("/tmp", "/dev/shm", "/workspace", "/home/agent"),
                ],
            )
            assert written == ["/tmp", "/dev/shm", "/workspace", "/home/agent"]


async def test_links_lead_nowhere_but_inside() -> None:
    with place() as root:
        async with inside(root) as attacker:
            read = await attacker.run(
                """
found = []
for number, target in enumerate(targets):
    link = f"/workspace/link-{number}"
    os.symlink(target, link)
    try:
        found.append(open(link).read())
    except OSError:
        continue
    finally:
        os.unlink(link)
try:
    os.link("/etc/passwd", "/workspace/hard")
    found.append("hard link")
except OSError:
    pass
print(json.dumps(found))
""",
                targets=["/etc/shadow", str(Path(__file__)), "../../record.json", "/proc/1/root/etc/shadow"],
            )
            assert read == []


async def test_memory_files_and_single_files_are_bounded() -> None:
    with place() as root:
        async with inside(root) as attacker:
            sizes = await attacker.run(
                """
import resource
size = lambda path: (lambda v: v.f_blocks * v.f_frsize)(os.statvfs(path))
print(json.dumps([size("/tmp"), size("/dev/shm"), *[resource.getrlimit(getattr(resource, "RLIMIT_" + n))[1]
    for n in ("NOFILE", "CORE", "FSIZE")]]))
"""
            )
            assert sizes == [1024**3, 512 * 1024**2, 4096, 0, 2 * 1024**3]


def _own_addresses() -> set[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))
        except OSError:
            return set()
        return {probe.getsockname()[0]}
