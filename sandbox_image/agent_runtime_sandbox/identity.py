"""Who the runner is where it is started as root: the agent in what it does, nobody in what it is.

Its effective user is the agent's: a file that it makes is the agent's, a link that the agent lays
leads it nowhere where the agent could not go itself. Its real and saved user is one that owns
nothing: nothing that runs as the agent may signal it, trace it or look into it. It keeps no
privilege. What must be out of the agent's reach (socket, journal) is made before. Agents are started
with both users, real and effective, as the agent's (`drivers.Places.user`).
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Final, NamedTuple

RUNNER_UID: Final = 64_444
"""The real user of the runner, and the user of a trunk. No other process has it, and no account."""
RUNNER_PID: Final = "runner.pid"
"""The file beside the runner's socket that tells a `trunk` its process."""
ENVIRONMENT: Final = "AGENT_RUNTIME_ENVIRONMENT"
"""Variable with a JSON object: variables for the agent and its tools, which nobody else inherits."""
_KEPT: Final = (
    *("PATH", "LANG", "NODE_PATH"),
    *("AGENT_RUNTIME_WORKSPACE", "AGENT_RUNTIME_HOME", "AGENT_RUNTIME_GATEWAY"),
)
_PR_SET_NO_NEW_PRIVS: Final = 38


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int


def account(name: str) -> Account:
    """The user of that name. Raises `SystemExit` where there is none, or it is root."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        sys.exit(f"runner: there is no user {name!r} in this image")
    if found.pw_uid in (0, RUNNER_UID):
        sys.exit(f"runner: {name!r} is no ordinary user")
    return Account(name, found.pw_uid, found.pw_gid)


def own_folder(path: Path, uid: int, gid: int, mode: int) -> None:
    """See that a folder is there and belongs to a user; what is in it is left alone."""
    path.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def settle(user: str, workspace: Path, home: Path) -> dict[str, str]:
    """Be root no more, and work in these folders as this user. Returns the agent's own variables.

    Before any thread, and before any file of the agent's is touched. Raises `SystemExit` where the image
    has no such user, `OSError` where we are not root.
    """
    agent = account(user)
    for folder in (workspace, home):
        own_folder(folder, agent.uid, agent.gid, 0o755)
    variables = _take_environment(agent, home)
    os.setgroups([])
    os.setresgid(agent.gid, agent.gid, agent.gid)
    os.setresuid(RUNNER_UID, agent.uid, RUNNER_UID)
    _gain_nothing()
    os.chdir(workspace)
    return variables


def be_nobody() -> None:
    """Give up root for good, for a process that only carries bytes."""
    os.setgroups([])
    os.setresgid(RUNNER_UID, RUNNER_UID, RUNNER_UID)
    os.setresuid(RUNNER_UID, RUNNER_UID, RUNNER_UID)
    _gain_nothing()


def _take_environment(agent: Account, home: Path) -> dict[str, str]:
    """Leave what the sandbox's own processes are told; the agent inherits the rest."""
    told: dict[str, str] = json.loads(os.environ.pop(ENVIRONMENT, "{}"))
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update({"HOME": str(home), "USER": agent.name, "SHELL": "/bin/sh", "TERM": "dumb", **kept})
    return told


def _gain_nothing() -> None:
    """No program that is started from here on gains a privilege, whatever its file says."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
