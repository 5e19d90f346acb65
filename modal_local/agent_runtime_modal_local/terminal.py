"""A pseudo-terminal for one process: made, sized, read into an `Output`, written to without blocking."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import NamedTuple

from agent_runtime_modal_local.streams import CHUNK_BYTES, Output


class TerminalSize(NamedTuple):
    """In characters."""

    rows: int
    columns: int


class Terminal:
    """Our end of a terminal, and for a moment that of the process."""

    def __init__(self, size: TerminalSize) -> None:
        self._ours, self.inside = os.openpty()
        os.set_blocking(self._ours, False)
        packed = struct.pack("HHHH", size.rows, size.columns, 0, 0)
        fcntl.ioctl(self.inside, termios.TIOCSWINSZ, packed)
        self._closed = False
        self._waiting: set[asyncio.Event] = set()

    def close_inside(self) -> None:
        """The process has its end now."""
        os.close(self.inside)

    def close(self) -> None:
        """Let go of our end. Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self._ours)
            for ready in self._waiting:
                ready.set()

    async def pump(self, output: Output) -> None:
        """Read until nobody holds the other end, then close."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._ready(loop.add_reader, loop.remove_reader)
                try:
                    piece = os.read(self._ours, CHUNK_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    return
                if not piece:
                    return
                await output.take(piece)
        finally:
            output.close()
            self.close()

    async def write(self, data: bytes) -> None:
        """Type something. Raises `OSError` where nobody is there any more."""
        loop, rest = asyncio.get_running_loop(), memoryview(data)
        while rest:
            if self._closed:
                raise OSError("the terminal is closed")
            try:
                rest = rest[os.write(self._ours, rest) :]
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]
    ) -> None:
        """Wait until our end can be read or written, or is closed."""
        ready = asyncio.Event()
        self._waiting.add(ready)
        add(self._ours, ready.set)
        try:
            await ready.wait()
        finally:
            self._waiting.discard(ready)
            remove(self._ours)
