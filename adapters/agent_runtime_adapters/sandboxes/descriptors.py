"""File descriptors in an event loop: pipes that end, sealed memory, and waiting for either.

Small on purpose. The streams of asyncio own what they wrap and close it; here the caller keeps the
descriptor, because most of these travel on into another process (`launching`).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from io import FileIO

PIECE_BYTES = 4096


async def readable(descriptor: int) -> None:
    """Return when reading would not block; a pidfd becomes readable when its process ends."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def read_line(descriptor: int) -> bytes:
    """Bytes up to and with the first newline, or up to the end; at most a few KiB."""
    return await _read(descriptor, whole=False)


async def read_to_end(descriptor: int) -> bytes:
    """All bytes until the last writer has closed; at most a few KiB."""
    return await _read(descriptor, whole=True)


async def _read(descriptor: int, *, whole: bool) -> bytes:
    os.set_blocking(descriptor, False)
    data = b""
    while len(data) < PIECE_BYTES and (whole or not data.endswith(b"\n")):
        await readable(descriptor)
        piece = os.read(descriptor, PIECE_BYTES)
        if not piece:
            break
        data += piece
    return data


def hold(data: bytes, stack: ExitStack) -> int:
    """A descriptor that reads as `data`, from memory, until the stack is left."""
    file = stack.enter_context(FileIO(os.memfd_create("agent-runtime"), "r+"))
    file.write(data)
    file.seek(0)
    return file.fileno()
