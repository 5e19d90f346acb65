"""What files take on the disk: for a runner whose folders have no file system of their own.

A look takes time that grows with the number of files, so the next one comes after a pause that grows
with it. Between two looks more can be written than is allowed: this is a watch, not a wall.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_PAUSE_S: Final = 1.0
_SHARE: Final = 20
"""A look may take this part of the time."""
_BLOCK: Final = 512
_MAX_DEPTH: Final = 1000


async def until_over(bound: int, folders: Iterable[Path]) -> int:
    """Return what the folders take together as soon as that is more than `bound` bytes."""
    places = tuple(folders)
    while True:
        began = time.monotonic()
        taken = await asyncio.to_thread(taken_by, places, bound)
        if taken > bound:
            return taken
        await asyncio.sleep(max(_PAUSE_S, _SHARE * (time.monotonic() - began)))


def taken_by(folders: Iterable[Path], enough: int) -> int:
    """Bytes that files and folders take on the disk; counting ends where it is more than `enough`.

    A file with several names counts once, one that is not written through counts what it holds. Links
    are not followed. Blocks.
    """
    taken, seen = 0, set[tuple[int, int]]()
    for folder in folders:
        waiting = [(os.fsencode(folder), 0)]
        while waiting and taken <= enough:
            path, depth = waiting.pop()
            with suppress(OSError), os.scandir(path) as entries:
                for entry in entries:
                    with suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                            if (found.st_dev, found.st_ino) in seen:
                                continue
                            seen.add((found.st_dev, found.st_ino))
                        taken += found.st_blocks * _BLOCK
                        if entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                            waiting.append((entry.path, depth + 1))
    return taken
