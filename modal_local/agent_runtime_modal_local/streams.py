"""What a process printed: kept whole, read from any byte by any number of readers.

Little of it is in memory: a long output goes to a file without a name, which is gone with the server.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import IO, Final

CHUNK_BYTES: Final = 256 * 1024
MEMORY_BYTES: Final = 1024 * 1024
MOST_BYTES: Final = 2 * 1024**3
"""What a process prints beyond is not read any more: it waits, as at a pipe that nobody reads."""


class Output:
    """One stream of a process.

    Args:
        folder: where a long output is kept.
        most: bytes that are kept.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._closed = False
        self._changed = asyncio.Event()

    async def take(self, data: bytes) -> None:
        """Add what was printed. Where no more is kept, wait until it is forgotten."""
        while self._size + len(data) > self._most and not self._closed:
            await self._changed.wait()
        if self._closed:
            return
        if self._file is None and self._size + len(data) > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as this
            self._file.write(self._memory)
            self._memory.clear()
        if self._file is None:
            self._memory += data
        else:
            self._file.seek(self._size)
            self._file.write(data)
        self._size += len(data)
        self._wake()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._wake()

    def forget(self) -> None:
        """Let go of what was kept; readers see an end."""
        self.close()
        self._size = 0
        self._memory.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    async def read(self, offset: int) -> bytes:
        """The next bytes from an offset on; waits for some; empty at the end."""
        while True:
            changed = self._changed
            if offset < self._size:
                return self._slice(offset)
            if self._closed:
                return b""
            await changed.wait()

    def _slice(self, offset: int) -> bytes:
        if self._file is None:
            return bytes(self._memory[offset : offset + CHUNK_BYTES])
        self._file.seek(offset)
        return self._file.read(CHUNK_BYTES)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
