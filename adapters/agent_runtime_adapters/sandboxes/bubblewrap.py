"""The command line of bubblewrap for a sandbox: pure text, every line of it with a reason.

What is not listed here is not inside: mounts are an allow-list, the environment begins empty, the
network has only its own loopback. `seccomp` closes what namespaces leave open. Two rules live
elsewhere: bubblewrap is never run as root (`launch`), and its own environment is empty, because
the sandbox can read it in /proc/1/environ (`local`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from agent_runtime_adapters.sandboxes.launching import FIRST_FREE_PLACE, INFO_PLACE
from agent_runtime_adapters.sandboxes.toolchain import Mount

ARGUMENTS_PLACE: Final = FIRST_FREE_PLACE
"""The descriptor of the arguments: on the command line they could be read inside, host paths and all."""
SECCOMP_PLACE: Final = FIRST_FREE_PLACE + 1
_FIRST_DATA_PLACE: Final = FIRST_FREE_PLACE + 2

UID_INSIDE: Final = 1000
WORKSPACE: Final = "/workspace"
HOME: Final = "/home/agent"
GATEWAY_FOLDER: Final = "/run/agent-runtime"
TMP_SHARE: Final = 4
SHM_SHARE: Final = 8
"""The parts of a sandbox's memory that /tmp and /dev/shm may take; what is written there counts as memory."""
MEMORY_BYTES: Final = 2 * 1024**3
"""What they are parts of where a sandbox's memory has no bound."""

DATA_FILES: Final = {
    "/etc/passwd": f"root:x:0:0::/:/bin/false\nagent:x:{UID_INSIDE}:{UID_INSIDE}::{HOME}:/bin/sh\n",
    "/etc/group": f"root:x:0:\nagent:x:{UID_INSIDE}:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}
"""Files that are made for the sandbox; the host's own name people and machines."""
DATA_PLACES: Final = {path: _FIRST_DATA_PLACE + i for i, path in enumerate(DATA_FILES)}

SYSTEM_FOLDERS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
SYSTEM_FILES: Final = (
    # Not the whole folders: beside the certificates lie private keys, which a user's group may read.
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/ca-certificates"),
    *(
        "/etc/pki/tls/certs",
        "/etc/pki/tls/cert.pem",
        "/etc/pki/tls/openssl.cnf",
        "/etc/pki/ca-trust/extracted",
    ),
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
)


def command(bubblewrap: str, script: str, argv: Iterable[str]) -> tuple[str, ...]:
    """What is executed: all options lie behind a descriptor; a shell runs `script` with `argv`."""
    return (bubblewrap, "--args", str(ARGUMENTS_PLACE), "--", "/bin/sh", "-c", script, "sh", *argv)


def arguments(mounts: Iterable[Mount], env: Mapping[str, str], *, memory_bytes: int | None = None) -> bytes:
    """The options as bubblewrap reads them from `ARGUMENTS_PLACE`. `memory_bytes`: the sandbox's bound."""
    options = [
        *_namespaces(),
        *_system(),
        *_writable_memory(memory_bytes or MEMORY_BYTES),
        *(part for mount in mounts for part in _bind(mount)),
        *_data(),
        # After all mounts; else / and /dev are writable memory without a bound.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", WORKSPACE, "--clearenv"),
        *(part for name, value in env.items() for part in ("--setenv", name, value)),
        *("--seccomp", str(SECCOMP_PLACE), "--info-fd", str(INFO_PLACE)),
    ]
    return b"".join(option.encode() + b"\0" for option in options)


def _namespaces() -> list[str]:
    """`--disable-userns` asks for an explicit `--unshare-user` although `--unshare-all` implies it.

    `--die-with-parent` binds the inner half to the outer one: when the runner ends, everything that
    the agent left running ends too. The outer half itself is init's child (`launch.hand_over`).
    """
    return [
        *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--uid", str(UID_INSIDE), "--gid", str(UID_INSIDE), "--hostname", "sandbox", "--cap-drop", "ALL"),
    ]


def _system() -> list[str]:
    options = ["--ro-bind", "/usr", "/usr"]
    for link in map(Path, SYSTEM_FOLDERS):
        if link.is_symlink():
            options += ["--symlink", str(link.readlink()), str(link)]
        elif link.is_dir():
            options += ["--ro-bind", str(link), str(link)]
    for path in SYSTEM_FILES:
        options += ["--ro-bind-try", path, path]
    return [*options, "--proc", "/proc", "--dev", "/dev"]


def _writable_memory(memory_bytes: int) -> list[str]:
    return [
        *("--perms", "1777", "--size", str(memory_bytes // TMP_SHARE), "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *("--perms", "1777", "--size", str(memory_bytes // SHM_SHARE), "--tmpfs", "/dev/shm"),  # noqa: S108
    ]


def _bind(mount: Mount) -> tuple[str, str, str]:
    return ("--bind" if mount.writable else "--ro-bind", mount.source, mount.target)


def _data() -> list[str]:
    options = []
    for path, place in DATA_PLACES.items():
        options += ["--perms", "0444", "--ro-bind-data", str(place), path]
    return options
