"""An attachment writes at once what the socket takes, and whatever it writes is in one order."""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.attachment import READ_BYTES, Attachment, Detached
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.outbox import Outbox

LINE_BYTES = 10_000


@dataclass
class Attached:
    """An attachment that was greeted, without its pump, and the other side's end of it."""

    outbox: Outbox
    attachment: Attachment
    writer: asyncio.StreamWriter
    other: socket.socket
    journal: int

    def say(self, number: int) -> None:
        self.outbox.emit("agent", line={"n": number, "text": "x" * LINE_BYTES})

    def here(self) -> list[frames.Frame]:
        """What the other side has by now, without letting anything run."""
        return [frames.decode(line) for line in self.other.recv(READ_BYTES).splitlines()]

    async def until_reply(self, number: int) -> list[frames.Frame]:
        """Read until this reply has come."""
        loop, splitter, found = asyncio.get_running_loop(), frames.LineSplitter(), []
        async with asyncio.timeout(10):
            while not found or found[-1].get("id") != number:
                data = await loop.sock_recv(self.other, READ_BYTES)
                found += [frames.decode(line) for line in splitter.feed(data)]
        return found


@asynccontextmanager
async def attached() -> AsyncIterator[Attached]:
    ours, other = socket.socketpair()
    other.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    with tempfile.TemporaryFile() as file, other:
        outbox = Outbox(Journal(file.fileno()))
        attachment = Attachment(reader, writer, outbox)
        outbox.changed = attachment.wake
        attachment.follow(0, {"k": "hello"})
        try:
            yield Attached(outbox, attachment, writer, other, file.fileno())
        finally:
            attachment.close()


@asynccontextmanager
async def pumped(attached: Attached) -> AsyncIterator[None]:
    async def pump() -> None:
        with suppress(Detached):
            await attached.attachment.pump()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pump())
        yield
        attached.attachment.close()


def kinds(found: list[frames.Frame]) -> list[Any]:
    return [frame.get("o", frame["k"]) for frame in found]


async def test_a_line_is_with_the_other_side_before_anybody_else_runs() -> None:
    async with attached() as one:
        assert kinds(one.here()) == ["hello"]
        for number in (1, 2):
            one.say(number)
            assert kinds(one.here()) == [number]
        await one.attachment.send("reply", id=7)
        assert kinds(one.here()) == ["reply"]


async def test_frames_and_replies_keep_their_order_when_the_other_side_stalls_in_between() -> None:
    async with attached() as one, pumped(one):
        heads: dict[int, int] = {}
        for number in range(100):
            one.say(number)
            heads[number] = one.outbox.head
            await one.attachment.send("reply", id=number)
            await asyncio.sleep(0)
            assert one.writer.transport.get_write_buffer_size() <= READ_BYTES + LINE_BYTES
        assert one.writer.transport.get_write_buffer_size() > 0
        seen = 0
        for frame in await one.until_reply(99):
            if frame["k"] == "reply":
                assert seen >= heads.pop(frame["id"])
            elif frame["k"] == "agent":
                assert (frame["o"], frame["line"]["n"]) == (seen + 1, seen)
                seen += 1
        assert (seen, heads) == (100, {})
        one.say(100)
        assert kinds(one.here()) == [101]


async def test_all_is_told_once_the_stalled_side_has_read_it() -> None:
    async with attached() as one, pumped(one):
        for number in range(100):
            one.say(number)
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(one.attachment.told())
            await asyncio.sleep(0)
            assert not told.done()
            await one.attachment.send("reply", id=1)
            found = await one.until_reply(1)
            async with asyncio.timeout(10):
                await told
        assert kinds(found) == ["hello", *range(1, 101), "reply"]


async def test_who_has_left_is_written_to_no_more() -> None:
    async with attached() as one:
        one.attachment.close()
        one.say(1)
        assert one.outbox.head == 1
        assert kinds(one.here()) == ["hello"]
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(one.other, READ_BYTES) == b""


async def test_a_journal_that_cannot_be_read_is_no_failure_of_whoever_keeps_a_frame() -> None:
    async with attached() as it:
        for_writing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(for_writing, it.journal)
        os.close(for_writing)
        it.outbox.emit_all("agent", [{"line": {"text": "x" * LINE_BYTES}} for _ in range(10)])
        assert it.outbox.head == 10
