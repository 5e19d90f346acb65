"""The log in memory: the port's promises, and the law that there is never a hole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.events import Gap, LogEntry, Position, Replay, TextDelta
from agent_runtime.ports import EventLog
from agent_runtime.testing.log_contract import BOUND_BYTES, EventLogContract
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.logs.size import size_of


class TestMemory(EventLogContract):
    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[EventLog]:
        log = MemoryEventLog(max_bytes_per_session=BOUND_BYTES)
        try:
            yield log
        finally:
            await log.close()


def delta(size: int) -> TextDelta:
    return TextDelta(block_id="b", delta="x" * size)


@given(
    batches=st.lists(st.lists(st.integers(0, 3000), max_size=6), max_size=12),
    bound=st.integers(0, 12_000),
    drop_after=st.none() | st.integers(0, 12),
)
def test_since_is_exactly_the_tail_or_a_gap(
    batches: list[list[int]], bound: int, drop_after: int | None
) -> None:
    """The model is a list. Every position is asked for after every append."""

    async def story() -> None:
        log = MemoryEventLog(max_bytes_per_session=bound)
        published: list[LogEntry] = []
        epoch = (await log.head("s")).epoch
        for number, batch in enumerate(batches):
            if number == drop_after:
                await log.drop("s")
                published, old, epoch = [], epoch, (await log.head("s")).epoch
                assert isinstance(await log.since("s", Position(old, 0)), Gap)
            published += await log.append("s", [delta(size) for size in batch])
            await check_against(log, published, epoch, bound)

    asyncio.run(story())


async def check_against(log: MemoryEventLog, published: list[LogEntry], epoch: str, bound: int) -> None:
    head = await log.head("s")
    assert head == Position(epoch, len(published))
    for seq in range(-1, len(published) + 2):
        answer = await log.since("s", Position(epoch, seq))
        assert await log.since("s", Position("other", seq)) == Gap(head)
        expected = published[seq:] if 0 <= seq <= len(published) else None
        fits = expected is not None and sum(size_of(entry.event) for entry in expected) <= bound
        if fits:
            assert expected is not None
            assert answer == Replay(tuple(expected), head)
        else:
            assert answer == Gap(head)


async def test_times_come_from_the_clock_that_was_given() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    log = MemoryEventLog(clock=lambda: now)
    (first,) = await log.append("s", [delta(1)])
    now += timedelta(seconds=5)
    second, third = await log.append("s", [delta(1), delta(1)])
    assert [entry.at.second for entry in (first, second, third)] == [0, 5, 5]


async def test_a_new_log_has_new_epochs_that_fit_into_a_position() -> None:
    epochs = {(await MemoryEventLog().head("s")).epoch for _ in range(50)}
    assert len(epochs) == 50
    assert all(Position.parse(f"{epoch}:7") == Position(epoch, 7) for epoch in epochs)


async def test_a_thousand_followers_wait_without_a_task_of_the_logs_own() -> None:
    log = MemoryEventLog()
    head = await log.head("s")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(log.wait("s", head)) for _ in range(1000)]
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1 + len(waiting)
        await log.append("s", [delta(1)])


async def test_closing_lets_go_of_those_who_wait() -> None:
    log = MemoryEventLog()
    head = await log.head("s")
    async with asyncio.TaskGroup() as group:
        group.create_task(log.wait("s", head))
        await asyncio.sleep(0)
        await log.close()


def test_the_size_of_an_event_grows_with_its_text_and_errs_upwards() -> None:
    assert size_of(delta(10_000)) - size_of(delta(0)) == 10_000
    assert size_of(TextDelta(block_id="b", delta="🦊" * 100)) > size_of(delta(100)) + 250
    assert size_of(delta(0)) > 450
