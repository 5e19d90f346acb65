"""Why a local sandbox cannot be had on a machine, in sentences that say how to get it.

`tiers` has a real sandbox run and asks here what its failure means. Versions and settings are never
asked instead: only a sandbox that ran is proof.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime_adapters.sandboxes import landlock, seccomp
from agent_runtime_adapters.sandboxes.launching import StartFailed

_INSTALL: Final = (
    "bubblewrap (`bwrap`) is not installed: `apt-get install bubblewrap`, or your system's own package."
)
_NAMESPACES: Final = (
    "This machine does not let ordinary users make user namespaces. On Ubuntu 24.04 and later: "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile for bwrap; on some "
    "Debian: `sysctl kernel.unprivileged_userns_clone=1`; in Docker: `--security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined --cap-add SYS_ADMIN`."
)
_PROC: Final = "The container hides parts of /proc: start it with `--security-opt systempaths=unconfined`."
_TOO_OLD: Final = "bubblewrap is too old: 0.8.0 or later is needed."
_LANDLOCK_TOO_OLD: Final = "Without namespaces a sandbox needs Linux 6.12 or later, with Landlock."
_NOT_PASSABLE: Final = (
    "A sandbox's own user cannot reach its folders: let others pass (`chmod o+x`) through the folders above "
    "the runtime's data and its Python, or run the runtime as an ordinary user."
)
_READS: Final = (
    ("nknown option", _TOO_OLD),
    (
        "launch: ",
        "bubblewrap or Python lies where a sandbox's user cannot run it; install it for the whole system.",
    ),
    ("mount proc", _PROC),
    ("namespace", _NAMESPACES),
    ("uid map", _NAMESPACES),
    ("disabling of user", _NAMESPACES),
    ("max_user_namespaces", _NAMESPACES),
    ("RTM_NEWADDR", _NAMESPACES),  # how AppArmor's refusal shows
    (
        "error while loading shared libraries",
        "The Python interpreter needs libraries that lie outside of it.",
    ),
    (landlock.TOO_OLD, _LANDLOCK_TOO_OLD),
    (landlock.NO_FOLDER, _NOT_PASSABLE),
    (landlock.NO_FILTER, "The system refuses seccomp filters that hand calls over."),
    ("ModuleNotFoundError", "The runner's package cannot be read by other users of this machine."),
)


def unmet(*, bubblewrap: bool = True) -> str | None:
    """What is missing before anything is tried; None where a try is worth it."""
    if sys.platform != "linux":
        return "Local sandboxes need Linux; on Windows, use WSL 2."
    if not seccomp.supported():
        return "Local sandboxes need an x86-64 or aarch64 machine."
    if bubblewrap and shutil.which("bwrap") is None:
        return _INSTALL
    return None


def namespaces_are_refused(fault: SandboxFault) -> bool:
    """Whether a sandbox did not come up because there are no user namespaces for it."""
    return explain(fault) in {_NAMESPACES, _PROC}


def explain(fault: SandboxFault) -> str:
    """The sentence for a sandbox that did not come up. Its own words may name paths: they stay here."""
    complaint = fault.complaint if isinstance(fault, StartFailed) else ""
    for part, sentence in _READS:
        if part in complaint:
            return sentence
    return f"A sandbox was tried and did not run. {fault.detail}"


@contextmanager
def probe_spec() -> Iterator[SandboxSpec]:
    """The spec of a sandbox that belongs to no session, with a gateway that nobody serves."""
    with (
        tempfile.TemporaryDirectory(prefix="agent-runtime-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder) / "gateway.sock"
        listener.bind(str(path))
        Path(folder).chmod(0o711)  # a sandbox's own user must get at it, as at a gateway's
        path.chmod(0o666)
        yield SandboxSpec(session_id="probe", runtime_id="probe", gateway_socket=path, orphan_timeout_s=60.0)
