"""A folder for one agent process, which nothing that ran before could have prepared.

Whatever the agent reads about itself (settings, hooks, credentials, plugins) it reads from its own
configuration folder. Tools may write to that folder, as they run as the same user; so each agent
process gets a new one, with a name that nobody knew before, and what lies in those of earlier ones
speaks to nobody. What is remembered of a conversation is not in them: the runtime keeps it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from agent_runtime_sandbox.drivers import DriverError

_PREFIX: Final = "agent-"


class FreshFolders(NamedTuple):
    """For its configuration, and for its temporary files."""

    config: Path
    scratch: Path


def fresh_folders(home: Path) -> FreshFolders:
    """Make them below `home`; those of earlier agents are removed. Raises `DriverError`.

    May block for as long as it takes to remove what was left there.
    """
    for old in home.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, RecursionError):
            old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
        made = FreshFolders(folder / "config", folder / "tmp")
        for part in (made.config, made.scratch):
            part.mkdir(mode=0o700)
    except OSError as error:
        raise DriverError("agent_failed", "there is no folder for the agent's own files") from error
    return made
