"""Many streams over one pair of pipes: each is bounded, none waits for another, and nonsense breaks all."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from agent_runtime_sandbox.multiplex import (
    MAX_STREAMS,
    MAX_WAITING_FRAMES,
    PIECE_BYTES,
    WINDOW_BYTES,
    Broken,
    Kind,
    Multiplex,
    Purpose,
    Stream,
    splice,
)
from tests.waiting import eventually


@dataclass
class Two:
    """Both ends of a trunk, joined; `accepted` is what the inner one was asked to open."""

    outer: Multiplex
    inner: Multiplex
    accepted: list[Stream] = field(default_factory=list)

    async def pair(self) -> tuple[Stream, Stream]:
        """A stream, as both ends have it."""
        stream = self.outer.open(Purpose.RUNNER)
        count = len(self.accepted)
        await eventually(lambda: len(self.accepted) > count)
        self.accepted[-1].accept()
        await stream.opened()
        return stream, self.accepted[-1]


@asynccontextmanager
async def joined() -> AsyncIterator[Two]:
    accepted: list[Stream] = []
    ignored: list[Stream] = []
    two = Two(
        Multiplex(outside=True, accept=ignored.append),
        Multiplex(outside=False, accept=accepted.append),
        accepted,
    )

    def into(other: Multiplex):
        async def write(data: bytes) -> None:
            for start in range(0, len(data), 777):  # pipes cut where they like
                other.feed(data[start : start + 777])

        return write

    async with asyncio.TaskGroup() as tasks:
        pumps = [tasks.create_task(two.outer.pump(into(two.inner)))]
        pumps.append(tasks.create_task(two.inner.pump(into(two.outer))))
        try:
            yield two
        finally:
            for pump in pumps:
                pump.cancel()


async def read_to_end(stream: Stream) -> bytes:
    parts = []
    while data := await stream.receive():
        parts.append(data)
    return b"".join(parts)


async def test_bytes_arrive_whole_and_in_order_both_ways() -> None:
    async with joined() as two:
        here, there = await two.pair()
        long = bytes(range(256)) * 16 * 1024  # eight windows
        async with asyncio.TaskGroup() as both:
            arrived = both.create_task(read_to_end(there))
            answered = both.create_task(read_to_end(here))
            await here.send(long)
            here.end()
            await there.send(b"short")
            there.end()
        assert arrived.result() == long
        assert answered.result() == b"short"


async def test_a_stream_that_nobody_reads_stops_its_sender_and_no_other() -> None:
    async with joined() as two:
        stuck, _ = await two.pair()
        lively, there = await two.pair()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(stuck.send(b"x" * (WINDOW_BYTES + 1)))
            for number in range(200):
                await lively.send(b"%d" % number)
                assert await there.receive() == b"%d" % number
            assert not sending.done()
            sending.cancel()


async def test_a_reset_tells_both_who_wait() -> None:
    async with joined() as two:
        here, there = await two.pair()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(refused(there.receive()))
            here.reset()
            await waiting
        await refused(here.send(b"x"))


async def test_when_the_trunk_breaks_everybody_is_told() -> None:
    async with joined() as two:
        pairs = [await two.pair() for _ in range(3)]
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(refused(here.receive())) for here, _ in pairs]
            await asyncio.sleep(0)
            two.outer.break_off()
            await asyncio.wait(waiting)
        with pytest.raises(Broken):
            two.outer.open(Purpose.RUNNER)


async def test_there_is_an_end_to_how_many_are_open() -> None:
    end = Multiplex(outside=True)
    for _ in range(MAX_STREAMS):
        end.open(Purpose.RUNNER)
    with pytest.raises(Broken):
        end.open(Purpose.RUNNER)


async def test_neither_end_can_take_the_others_places() -> None:
    """However many requests an agent leaves open, the runtime reaches the runner."""
    async with joined() as two:
        for _ in range(MAX_STREAMS):
            two.inner.open(Purpose.GATEWAY)
        with pytest.raises(Broken):
            two.inner.open(Purpose.GATEWAY)
        here, there = await two.pair()
        await here.send(b"still here")
        assert await there.receive() == b"still here"


async def test_who_is_answered_and_takes_no_answers_fills_no_memory() -> None:
    end = Multiplex(outside=True, accept=lambda stream: stream.reset())
    with pytest.raises(Broken):
        end.feed(b"".join(frame(Kind.OPEN, 2 * n, Purpose.GATEWAY) for n in range(1, MAX_WAITING_FRAMES + 3)))


async def test_what_comes_byte_by_byte_takes_no_more_memory_than_what_comes_at_once() -> None:
    accepted: list[Stream] = []
    end = Multiplex(outside=True, accept=accepted.append)
    end.feed(frame(Kind.OPEN, 2, Purpose.GATEWAY))
    crumbs = frame(Kind.DATA, 2, 1, b"x") * PIECE_BYTES
    tracemalloc.start()
    try:
        for _ in range(WINDOW_BYTES // PIECE_BYTES):
            end.feed(crumbs)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * WINDOW_BYTES + len(crumbs)
    assert await accepted[0].receive(10) == b"x" * 10
    assert await accepted[0].receive() == b"x" * (PIECE_BYTES - 10)


def frame(kind: int, number: int, value: int, data: bytes = b"") -> bytes:
    return bytes([kind]) + number.to_bytes(4, "big") + value.to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "nonsense",
    [
        frame(Kind.DATA, 2, PIECE_BYTES + 1),
        frame(Kind.OPEN, 1, Purpose.GATEWAY),  # one of our own numbers
        frame(Kind.OPEN, 2, Purpose.GATEWAY) * 2,
        frame(Kind.OPEN, 2, Purpose.GATEWAY) + frame(Kind.CREDIT, 2, 1),
        frame(Kind.OPEN, 2, Purpose.GATEWAY) + frame(Kind.END, 2, 0) + frame(Kind.DATA, 2, 1, b"x"),
        frame(Kind.OPEN, 2, Purpose.GATEWAY) + frame(Kind.DATA, 2, 0),
        frame(Kind.OPEN, 2, Purpose.GATEWAY) + frame(99, 2, 0),
        frame(Kind.OPEN, 2, Purpose.GATEWAY)
        + frame(Kind.DATA, 2, PIECE_BYTES, b"x" * PIECE_BYTES) * (WINDOW_BYTES // PIECE_BYTES + 1),
        frame(Kind.READY, 0, 99),
        frame(99, 0, 0),
    ],
    ids=[
        "too large",
        "our number",
        "opened twice",
        "credit",
        "after the end",
        "no bytes",
        "kind",
        "flood",
        "version",
        "own",
    ],
)
async def test_what_breaks_the_rules_breaks_the_trunk(nonsense: bytes) -> None:
    end = Multiplex(outside=True, accept=lambda _: None)
    with pytest.raises(Broken):
        end.feed(nonsense)


async def test_an_end_that_accepts_nothing_is_asked_for_nothing() -> None:
    with pytest.raises(Broken):
        Multiplex(outside=True).feed(frame(Kind.OPEN, 2, Purpose.GATEWAY))


async def test_what_was_sent_before_the_end_is_delivered_to_a_slow_connection(tmp_path) -> None:
    got = asyncio.Queue[bytes]()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        got.put_nowait(await reader.read())
        writer.close()

    async with joined() as two, await asyncio.start_unix_server(slow, str(tmp_path / "s")):
        here, there = await two.pair()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(splice(there, reader, writer))
            await here.send(b"x" * 700_000)
            here.end()
            assert await read_to_end(here) == b""
        assert len(await got.get()) == 700_000


async def refused(work) -> None:
    with pytest.raises(Broken):
        await work
