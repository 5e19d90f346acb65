"""Where a server keeps its things: a folder of its own that nobody else sees and that is gone after it.

A server holds a lock on its folder. Whoever starts next to it removes the folders that nobody holds:
what a server that was killed left behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
PREFIX: Final = "server-"


def usual_root() -> Path:
    """Where servers keep their folders when nobody says where."""
    return Path(tempfile.gettempdir()) / f"agent-runtime-modal-local-{os.getuid()}"


@contextmanager
def folder_of_a_server(root: Path) -> Iterator[Path]:
    """Make a folder below `root`, hold it, and remove it in the end.

    Raises `PermissionError` for a root that is somebody else's.
    """
    made = not root.exists() or root == usual_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise PermissionError("the folder for the local Modal belongs to somebody else")
    sweep(root)
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=root))
    with (fresh / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Only now does it have a name by which others look for folders that nobody holds.
        folder = fresh.rename(root / fresh.name.replace("new-", PREFIX, 1))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if made:
                let_go(root)


def let_go(root: Path) -> None:
    """Remove a root that is empty. Another server may live there by now."""
    with suppress(OSError):
        root.rmdir()


def sweep(root: Path) -> None:
    """Remove the folders of servers that are no more."""
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
