"""Folder: the data folder of a served runtime, which one process holds at a time.

A second runtime on the same folder would take the sandboxes of the first for leftovers and end
them. The lock is the kernel's, on a file that stays: it is gone with the process, however that
ends. What lies in the folder is in `composition`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent_runtime.errors import InvalidRequest

_LOCK: Final = "lock"


@contextmanager
def held(data: Path) -> Iterator[None]:
    """Hold the folder while the block runs; it is made where it is not there.

    Raises `InvalidRequest`: `data_folder_in_use` where another process holds it,
    `data_folder_unusable` where it cannot be made or locked.
    """
    descriptor = _opened(data)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        detail = f"another agent-runtime is running on the data folder {data}; end it, or choose another one"
        raise InvalidRequest(detail, code="data_folder_in_use") from error
    except OSError as error:
        os.close(descriptor)
        raise _unusable(data, error) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _opened(data: Path) -> int:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(data / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> InvalidRequest:
    detail = f"the data folder {data} cannot be used: {error.strerror}"
    return InvalidRequest(detail, code="data_folder_unusable")
