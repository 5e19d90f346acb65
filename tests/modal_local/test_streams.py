"""What a process printed is kept whole, in little memory, up to a bound."""

import asyncio
import os
from pathlib import Path

from agent_runtime_modal_local.streams import MEMORY_BYTES, Output

PIECE = bytes(range(256)) * 256


async def whole(output: Output, offset: int = 0) -> bytes:
    heard = b""
    while piece := await output.read(offset + len(heard)):
        heard += piece
    return heard


async def test_any_offset_can_be_read_by_anybody_also_later(tmp_path: Path) -> None:
    output = Output(tmp_path)
    pieces = 2 * MEMORY_BYTES // len(PIECE)
    async with asyncio.TaskGroup() as reading:
        early = reading.create_task(whole(output))
        for _ in range(pieces):
            await output.take(PIECE)
            await asyncio.sleep(0)
        output.close()
    assert early.result() == PIECE * pieces
    assert await whole(output, 12_345) == (PIECE * pieces)[12_345:]
    assert not any(names for _, _, names in os.walk(tmp_path))
    output.forget()
    assert await whole(output) == b""


async def test_beyond_its_bound_it_takes_nothing_until_it_is_forgotten(tmp_path: Path) -> None:
    output = Output(tmp_path, most=10)
    await output.take(b"12345678")
    async with asyncio.TaskGroup() as taking:
        more = taking.create_task(output.take(b"9abc"))
        await asyncio.sleep(0.05)
        assert not more.done()
        assert await output.read(0) == b"12345678"
        output.forget()
    assert await output.read(0) == b""
