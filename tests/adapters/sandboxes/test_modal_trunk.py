"""What comes out of a sandbox by its trunk is bounded here, whatever is at the other end of it."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from agent_runtime_adapters.sandboxes.modal.trunk import MAX_JOINED, joining
from agent_runtime_sandbox.multiplex import Broken, Kind, Multiplex, Purpose
from tests.waiting import eventually


def frame(kind: int, number: int, value: int) -> bytes:
    return bytes([kind]) + number.to_bytes(4, "big") + value.to_bytes(4, "big")


async def test_streams_that_are_given_up_at_once_take_no_descriptors_without_number() -> None:
    """A stream that is over counts no more; the connection that is made for it does."""
    taken = 0

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        taken += 1
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        gateway = Path(folder) / "s"
        async with await asyncio.start_unix_server(take, str(gateway)), asyncio.TaskGroup() as tasks:
            end = Multiplex(outside=True, accept=joining(tasks, gateway))
            before = len(asyncio.all_tasks())
            for number in range(2, 4000, 2):
                end.feed(frame(Kind.OPEN, number, Purpose.GATEWAY) + frame(Kind.RESET, number, 0))
            assert len(asyncio.all_tasks()) - before == MAX_JOINED
            await eventually(lambda: len(asyncio.all_tasks()) <= before)
    assert 0 < taken <= MAX_JOINED


async def test_a_stream_to_anything_but_the_gateway_breaks_the_trunk(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        end = Multiplex(outside=True, accept=joining(tasks, tmp_path / "s"))
        with pytest.raises(Broken):
            end.feed(frame(Kind.OPEN, 2, Purpose.RUNNER))
