"""What makes a sandbox a sandbox on this machine: namespaces, what is mounted in them, how to enter.

Bubblewrap makes it, nsenter enters it. As root there are the users of a real image inside (root, and
`agent` with uid 1000) and root has the few capabilities that containers have; an ordinary user is the
only one inside and is called root there. It is a stand-in for Modal in tests and demos, not a wall
against an attacker: for that there is the local provider of agent-runtime, or Modal.

Inside, for whoever writes programs for it:

    /usr                                 this machine's, read-only
    /opt/agent-runtime/bin/python        see `toolchain`; an image may have more below /opt/agent-runtime
    /etc                                 a small one of its own
    /tmp /root /home/agent /workspace /var/lib    its own, writable; they are what a snapshot holds
    /run /dev/shm                        its own, in memory
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_runtime_modal_local.cgroup import Group, within
from agent_runtime_modal_local.toolchain import Toolchain, lay_out

AGENT_UID: Final = 1000
READY_WITHIN_S: Final = 20.0
WAIT_FOR_EVER: Final = ("/bin/sh", "-c", "echo ready; exec sleep infinity")

CAPABILITIES: Final = (
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "net_bind_service",
    "setfcap",
    "sys_chroot",
)
"""What root inside may do; what is not here (mounts, devices, raw network, tracing, modules) it may not."""

ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
"""What every process inside has, unless an image or a call says otherwise."""

_SYSTEM: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC_OF_THIS_MACHINE: Final = ("alternatives", "ca-certificates", "ssl/certs", "ssl/openssl.cnf", "pki/tls")
_ETC_COPIED: Final = (
    "ld.so.cache",
    "localtime",
    "mime.types",
    "os-release",
    "protocols",
    "resolv.conf",
    "services",
)
_READ_ONLY_PROC: Final = ("/proc/sys", "/proc/sysrq-trigger")
_HIDDEN_PROC: Final = ("/proc/kcore", "/proc/keys", "/proc/timer_list")
_ETC_WRITTEN: Final = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\n"
    f"agent:x:{AGENT_UID}:{AGENT_UID}::/home/agent:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nagent:x:{AGENT_UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost modal\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class NoEnclosure(Exception):
    """A sandbox cannot be made on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Enclosure:
    """A living set of namespaces.

    Attributes:
        outer: the bubblewrap that made it and waits for it.
        pid: its first process, as seen from here.
        as_root: whether it was made without a user namespace.
        own_network: whether it has a network of its own, in which there is nobody.
    """

    outer: asyncio.subprocess.Process
    pid: int
    as_root: bool
    own_network: bool

    def enter(self, argv: Sequence[str], workdir: str) -> list[str]:
        """The command that runs `argv` inside, as root without the dangerous capabilities."""
        user = [] if self.as_root else ["--user", "--preserve-credentials"]
        network = ["--net"] if self.own_network else []  # an ordinary user may not enter its own
        return [
            *(
                "nsenter",
                "--target",
                str(self.pid),
                *user,
                *network,
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--",
            ),
            *("setpriv", "--no-new-privs", "--inh-caps=-all"),
            "--bounding-set=-all," + ",".join(f"+{name}" for name in CAPABILITIES),
            *("env", f"--chdir={workdir}", "--", *argv),
        ]

    async def end(self) -> None:
        """Kill the first process: the kernel ends all others with it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        await self.outer.wait()


class Enclosures:
    """Makes enclosures, and copies files from one to another in none.

    Args:
        stage: a folder for what all of them share.
    """

    def __init__(self, stage: Path) -> None:
        missing = [name for name in ("bwrap", "nsenter", "setpriv", "setsid") if shutil.which(name) is None]
        if missing:
            raise NoEnclosure(f"the local Modal needs {', '.join(missing)} (bubblewrap and util-linux)")
        self.as_root = os.geteuid() == 0
        self._toolchain: Toolchain = lay_out(stage)
        self._etc = stage / "etc"
        _write_etc(self._etc)

    async def make(self, folder: Path, *, workdir: str, network: bool, group: Group | None) -> Enclosure:
        """Make one over `folder/root`, in a control group if there is one. Raises `NoEnclosure`."""
        root = folder / "root"
        _furnish(root, as_root=self.as_root)
        _plain_folder(root, workdir.lstrip("/"))
        for source, target in self._toolchain.mounts:
            _mount_point(root, target, folder=source.is_dir())
        shutil.copytree(self._etc, folder / "etc", symlinks=True)
        told, tell = os.pipe()
        try:
            outer = await asyncio.create_subprocess_exec(
                *within(group, [*self._bubblewrap(folder, tell, network=network), *WAIT_FOR_EVER]),
                env={"PATH": os.defpath},
                pass_fds=(tell,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tell)
        with os.fdopen(told, "rb") as info:
            try:
                await _until_ready(outer)
            except BaseException:
                with suppress(ProcessLookupError):
                    outer.kill()
                raise
            pid = int(json.loads(info.read())["child-pid"])
            return Enclosure(outer, pid, self.as_root, own_network=not network)

    async def copy(self, source: Path, target: Path) -> None:
        """Copy all that is in one folder into another.

        It is done in a sandbox where nothing else can be seen: links that a hostile program left in
        either lead nowhere. What vanishes meanwhile is left out. Raises `OSError`.
        """
        await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
        rights = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID") if self.as_root else ()
        copying = await asyncio.create_subprocess_exec(
            *(
                "bwrap",
                "--die-with-parent",
                "--new-session",
                "--unshare-pid",
                "--unshare-net",
                "--unshare-ipc",
            ),
            *(() if self.as_root else ("--unshare-user", "--uid", "0", "--gid", "0")),
            *(word for right in rights for word in ("--cap-add", f"CAP_{right}")),
            *_system(),
            *("--ro-bind", str(source), "/from", "--bind", str(target), "/to"),
            *("cp", "-a", "--reflink=auto", "/from/.", "/to/"),
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await copying.communicate()
        complaints = [
            line for line in said.decode(errors="replace").splitlines() if "No such file" not in line
        ]
        if copying.returncode and complaints:
            raise OSError(f"could not copy: {complaints[0]}")

    def _bubblewrap(self, folder: Path, tell: int, *, network: bool) -> list[str]:
        people = ["--cap-drop", "ALL"] if self.as_root else ["--unshare-user", "--uid", "0", "--gid", "0"]
        options = ["bwrap", "--die-with-parent", "--new-session", "--info-fd", str(tell), *people]
        options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "modal"]
        options += [] if network else ["--unshare-net"]
        options += ["--bind", str(folder / "root"), "/", *_system(), "--bind", str(folder / "etc"), "/etc"]
        for name in _ETC_OF_THIS_MACHINE:
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for source, target in self._toolchain.mounts:
            options += ["--ro-bind", str(source), target]
        options += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"]
        for path in _READ_ONLY_PROC:
            options += ["--ro-bind-try", path, path]
        for path in _HIDDEN_PROC:
            if Path(path).exists():
                options += ["--ro-bind", "/dev/null", path]
        return [*options, "--chdir", "/", "--"]


async def _until_ready(outer: asyncio.subprocess.Process) -> None:
    assert outer.stdout is not None
    assert outer.stderr is not None
    async with asyncio.timeout(READY_WITHIN_S):
        if await outer.stdout.readline() == b"ready\n":
            return
        why = (await outer.stderr.read()).decode(errors="replace").strip()
        await outer.wait()
    raise NoEnclosure(f"bubblewrap could not make a sandbox: {why}")


def _system() -> list[str]:
    """The programs of this machine, read-only, and the short names of their folders."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path("/") / name
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    return options


def _furnish(root: Path, *, as_root: bool) -> None:
    """The folders that everybody may count on; whatever else a snapshot brought in their places goes."""
    for name in _SYSTEM:  # bubblewrap makes them, and does not want to find any
        if (root / name).is_symlink():
            (root / name).unlink()
    for path in ("usr", "etc", "proc", "dev", "run", "root", "var/lib"):
        _plain_folder(root, path)
    for path in ("tmp", "var/tmp"):
        _plain_folder(root, path).chmod(0o1777)
    for path in ("home/agent", "workspace"):
        fresh = not (root / path).exists()
        folder = _plain_folder(root, path)
        if fresh and as_root:
            os.chown(folder, AGENT_UID, AGENT_UID)


def _mount_point(root: Path, target: str, *, folder: bool) -> None:
    """A place to mount something on, which nothing that a snapshot brought leads away from."""
    if folder:
        _plain_folder(root, target.lstrip("/"))
        return
    above, _, name = target.lstrip("/").rpartition("/")
    file = _plain_folder(root, above) / name
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    file.touch()


def _plain_folder(root: Path, path: str) -> Path:
    folder = root
    for part in ("", *path.split("/")):
        folder = folder / part
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def _write_etc(etc: Path) -> None:
    etc.mkdir()
    for name, text in _ETC_WRITTEN.items():
        (etc / name).write_text(text)
    for name in _ETC_COPIED:
        with suppress(OSError):
            shutil.copyfile(f"/etc/{name}", etc / name)
