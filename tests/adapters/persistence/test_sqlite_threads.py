"""Group commit: many writes share a transaction, and each has an outcome of its own."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent_runtime.errors import PersistenceFault
from agent_runtime_adapters.persistence.sqlite_database import connect
from agent_runtime_adapters.persistence.sqlite_threads import GroupWriter, Readers
from tests.waiting import eventually

Connection = sqlite3.Connection


@asynccontextmanager
async def a_writer(path: Path) -> AsyncIterator[GroupWriter]:
    connection = connect(path, busy_timeout_s=1)
    connection.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER NOT NULL UNIQUE CHECK (n < 1000))")
    writer = GroupWriter(connection)
    try:
        yield writer
    finally:
        await writer.close()


def numbers(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n")]
    finally:
        connection.close()


async def put(writer: GroupWriter, *values: int | None) -> int:
    def job(db: Connection) -> int:
        for value in values:
            db.execute("INSERT INTO numbers VALUES (?)", (value,))
        return len(values)

    return await writer.write(job)


@asynccontextmanager
async def everybody_waiting(writer: GroupWriter) -> AsyncIterator[asyncio.TaskGroup]:
    """Writes that are begun inside wait together, because the thread is held up until the end."""
    held_up, go = threading.Event(), threading.Event()

    def hold_up(_: Connection) -> None:
        held_up.set()
        go.wait(10)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(hold_up))
        await eventually(held_up.is_set)
        try:
            yield group
            await asyncio.sleep(0)
        finally:
            go.set()


async def test_writes_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:
        async with everybody_waiting(writer) as group:
            for number in range(100):
                group.create_task(put(writer, number))
        assert writer.commits == 2, "one for the write that held the thread up, one for all others"
    assert numbers(tmp_path / "n.db") == list(range(100))


async def test_a_write_that_fails_is_undone_whole_and_harms_no_other(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:
        async with everybody_waiting(writer) as group:
            outcomes = [
                group.create_task(outcome_of(put(writer, *values)))
                for values in ((1,), (2, 3, None), (4,), (1,), (5, 5000), (6,))
            ]
        assert writer.commits == 2
    assert [outcome.result() for outcome in outcomes] == ["1", "fault", "1", "fault", "fault", "1"]
    assert numbers(tmp_path / "n.db") == [1, 4, 6]


async def test_a_write_that_takes_the_transaction_down_with_it_harms_no_other(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:

        def take_down(db: Connection) -> None:
            db.execute("INSERT OR ROLLBACK INTO numbers VALUES (NULL)")

        async with everybody_waiting(writer) as group:
            before = group.create_task(outcome_of(put(writer, 1)))
            culprit = group.create_task(outcome_of(writer.write(take_down)))
            after = group.create_task(outcome_of(put(writer, 2)))
        assert [task.result() for task in (before, culprit, after)] == ["1", "fault", "1"]
    assert numbers(tmp_path / "n.db") == [1, 2]


async def test_an_error_that_is_not_the_databases_reaches_its_caller_as_it_is(tmp_path: Path) -> None:
    def job(db: Connection) -> None:
        db.execute("INSERT INTO numbers VALUES (1)")
        raise KeyError("a defect")

    async with a_writer(tmp_path / "n.db") as writer:
        with pytest.raises(KeyError, match="a defect"):
            await writer.write(job)
        assert await put(writer, 2) == 1
    assert numbers(tmp_path / "n.db") == [2]


async def test_writes_of_cancelled_callers_are_done_all_the_same(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:
        async with everybody_waiting(writer) as group:
            tasks = [group.create_task(put(writer, number)) for number in range(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
        assert [task.cancelled() for task in tasks] == [True, False] * 5
    assert numbers(tmp_path / "n.db") == list(range(10))


async def test_a_database_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:
        await put(writer, 1)
        await writer.write(lambda db: db.execute("PRAGMA query_only = ON"))
        with pytest.raises(PersistenceFault, match="may not be written") as fault:
            await put(writer, 2)
        assert not fault.value.retryable
    assert numbers(tmp_path / "n.db") == [1]


async def test_closing_finishes_what_was_handed_over_and_takes_no_more(tmp_path: Path) -> None:
    async with a_writer(tmp_path / "n.db") as writer:
        async with everybody_waiting(writer) as group:
            tasks = [group.create_task(put(writer, number)) for number in range(300)]
            await asyncio.sleep(0)
            group.create_task(writer.close())
            await asyncio.sleep(0)
            with pytest.raises(PersistenceFault, match="not open"):
                await put(writer, 999)
        assert all(task.result() == 1 for task in tasks)
        await writer.close()
    assert numbers(tmp_path / "n.db") == list(range(300))


async def test_a_reader_sees_what_was_committed_and_cannot_be_called_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "n.db"
    async with a_writer(path) as writer:
        readers = Readers([connect(path, busy_timeout_s=1) for _ in range(2)])
        for number in range(20):
            await put(writer, number)
            counted = await readers.read(lambda db: db.execute("SELECT count(*) FROM numbers").fetchone())
            assert counted == (number + 1,)
        with pytest.raises(PersistenceFault):
            await readers.read(lambda db: db.execute("SELECT * FROM nowhere"))
        await readers.close()
        with pytest.raises(PersistenceFault, match="not open"):
            await readers.read(lambda db: None)


async def outcome_of(write: Awaitable[object]) -> str:
    try:
        return str(await write)
    except PersistenceFault:
        return "fault"
