"""A pipe's lines go into the journal where they arrive; where there is no room they wait, none is lost."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

import pytest

from agent_runtime_sandbox.agent import AgentOutput
from agent_runtime_sandbox.drivers.piped import PipedLines
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.outbox import Outbox
from tests.waiting import eventually

LAST = b'{"type":"result"'


@asynccontextmanager
async def piped(outbox: Outbox) -> AsyncIterator[tuple[PipedLines, int]]:
    """The lines, and the end of their pipe that is written to."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    pipe = os.fdopen(ours, "rb", buffering=0)
    transport, lines = await asyncio.get_running_loop().connect_read_pipe(
        lambda: PipedLines(AgentOutput(outbox), LAST), pipe
    )
    try:
        yield lines, theirs
    finally:
        transport.close()
        os.close(theirs)


def kept(outbox: Outbox) -> list[object]:
    """What the lines in the journal say."""
    data, _ = outbox.read(outbox.oldest - 1, 2**20)
    return [json.loads(line)["line"].get("n") for line in data.splitlines()]


async def test_lines_that_find_no_room_wait_in_order_and_the_rest_waits_in_the_pipe() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno(), stride=64), limit=1000)
        async with asyncio.timeout(10), piped(outbox) as (lines, pipe), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(lines.run())
            seen: list[list[object]] = []
            for n in range(40):
                os.write(pipe, b'{"n":%d,"text":"%s"}\n' % (n, b"x" * 100))
                await asyncio.sleep(0)
            await eventually(lambda: not outbox.has_room)
            assert len(kept(outbox)) < 40
            os.write(pipe, LAST + b',"n":40}\n')
            while not running.done():
                seen.append(kept(outbox))
                outbox.ack(outbox.head)
                await asyncio.sleep(0)
            seen.append(kept(outbox))
        assert list(chain(*seen)) == list(range(41))


async def test_a_torn_line_is_handed_on_when_it_is_whole_and_nothing_after_the_last_is_read() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        async with asyncio.timeout(10), piped(outbox) as (lines, pipe), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(lines.run())
            os.write(pipe, b'{"n":1}\n{"n":')
            await eventually(lambda: kept(outbox) == [1])
            os.write(pipe, b"2}\n" + LAST + b',"n":3}\n')
            await running
            os.write(pipe, b'{"n":4}\n')
            await asyncio.sleep(0)
        assert kept(outbox) == [1, 2, 3]


async def test_the_end_of_the_pipe_ends_it_and_what_waited_before_comes_once() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno(), stride=64), limit=100)
        ours, theirs = os.pipe()
        _, lines = await asyncio.get_running_loop().connect_read_pipe(
            lambda: PipedLines(AgentOutput(outbox), LAST), os.fdopen(ours, "rb", buffering=0)
        )
        outbox.emit("agent", line={"n": 1, "text": "x" * 200})
        assert not outbox.has_room
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(lines.run())
            os.write(theirs, b'{"n":2}\n')
            for _ in range(5):
                await asyncio.sleep(0)
            assert kept(outbox) == [1]
            outbox.ack(1)
            await eventually(lambda: kept(outbox) == [2])
            os.close(theirs)
            await running
        assert kept(outbox) == [2]


async def test_what_is_no_json_fails_whoever_follows_the_pipe() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        async with piped(outbox) as (lines, pipe), asyncio.timeout(10):
            os.write(pipe, b'{"n":1}\nno JSON\n')
            with pytest.raises(ValueError, match="Expecting value"):
                await lines.run()


async def test_a_pipe_that_cannot_be_read_fails_whoever_follows_it_after_what_came_before() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        async with piped(outbox) as (lines, pipe), asyncio.timeout(10):
            os.write(pipe, b'{"n":1}\n')
            await eventually(lambda: kept(outbox) == [1])
            lines.connection_lost(OSError("cannot be read"))
            with pytest.raises(OSError, match="cannot be read"):
                await lines.run()


async def test_half_a_character_that_was_written_as_it_is_is_handed_on() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        async with piped(outbox) as (_, pipe), asyncio.timeout(10):
            os.write(pipe, b'{"n":"\xed\xa0\x80"}\n')
            await eventually(lambda: kept(outbox) == ["\ud800"])
