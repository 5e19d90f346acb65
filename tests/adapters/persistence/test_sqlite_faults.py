"""SQLite when its file fails: each failure is a fault in words, soon; and what comes back is whole."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.errors import InvalidRequest, PersistenceFault
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.persistence.sqlite_database import translating

SID = "session-1"


@asynccontextmanager
async def a_store(path: Path, **options: Any) -> AsyncIterator[SqlitePersistence]:
    """With one session; closing it is prompt, whatever became of the file."""
    store = SqlitePersistence(path, **options)
    await store.open()
    try:
        await store.create_session(samples.session(SID))
        yield store
    finally:
        async with asyncio.timeout(20):
            await store.close()


async def refused(call: Awaitable[object], sentence: str, *, retryable: bool = True) -> None:
    """A fault in these words, within a time that a viewer waits."""
    with pytest.raises(PersistenceFault, match=sentence) as fault:
        async with asyncio.timeout(20):
            await call
    assert fault.value.retryable is retryable


async def nothing_goes(store: SqlitePersistence, sentence: str) -> None:
    await refused(store.load_session(SID), sentence)
    await refused(store.save_turn(SID, samples.turn(7)), sentence)
    await refused(store.unfinished_sessions(), sentence)
    await refused(store.check(), sentence)


def all_files(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


def move_the_folder(path: Path) -> Callable[[], None]:
    away = path.parent.with_name("away")
    path.parent.rename(away)
    return lambda: shutil.move(away, path.parent)


def move_one(which: int) -> Callable[[Path], Callable[[], None]]:
    def move(path: Path) -> Callable[[], None]:
        file = all_files(path)[which]
        away = file.with_name("away")
        file.rename(away)
        return lambda: away.replace(file)

    return move


def move_and_replace(path: Path) -> Callable[[], None]:
    put_back = move_one(0)(path)
    shutil.copyfile(path.with_name("away"), path)
    return put_back


@pytest.mark.parametrize(
    "move",
    [move_the_folder, move_one(0), move_one(1), move_one(2), move_and_replace],
    ids=["folder", "database", "log", "index", "replaced"],
)
async def test_while_its_files_are_elsewhere_nothing_is_read_or_written_and_then_all_goes_on(
    tmp_path: Path, move: Callable[[Path], Callable[[], None]]
) -> None:
    path = tmp_path / "data" / "store.db"
    async with a_store(path) as store:
        await store.save_turn(SID, samples.turn(0))
        put_back = move(path)
        await nothing_goes(store, "moved, deleted or replaced")
        put_back()
        assert await store.load_turns(SID, limit=9) == (samples.turn(0),), "what was refused is not there"
        await store.save_turn(SID, samples.turn(1))
    async with opened_again(path) as store:
        assert await store.load_turns(SID, limit=9) == (samples.turn(0), samples.turn(1))


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_deleted_file_is_a_fault_for_good(tmp_path: Path, which: int) -> None:
    path = tmp_path / "store.db"
    async with a_store(path) as store:
        all_files(path)[which].unlink()
        await nothing_goes(store, "moved, deleted or replaced")
        all_files(path)[which].touch()
        await nothing_goes(store, "moved, deleted or replaced")


async def test_an_emptied_file_is_a_fault(tmp_path: Path) -> None:
    async with a_store(tmp_path / "store.db") as store:
        os.truncate(tmp_path / "store.db", 0)
        await nothing_goes(store, "moved, deleted or replaced")


async def test_a_write_during_which_the_file_went_away_is_not_called_safe(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with a_store(path) as store:
        assert store._writer is not None
        await refused(store._writer.write(lambda _: path.rename(tmp_path / "away")), "moved")
        (tmp_path / "away").rename(path)
        await store.save_turn(SID, samples.turn())


async def test_the_file_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "store.db").touch()
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real" / "store.db")
    async with a_store(link) as store:
        await store.save_turn(SID, samples.turn())
        (tmp_path / "real").rename(tmp_path / "away")
        await nothing_goes(store, "moved")


async def test_a_full_disk_is_a_fault_until_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with a_store(path) as store:
        await allow_pages(store, 30)
        large = samples.file("large", b"x" * 1_000_000)
        await refused(store.save_files(SID, [large]), "full")
        await refused(
            store.save_turn(SID, samples.turn(1), samples.stored(samples.text("b", "y" * 10**6))), "full"
        )
        assert await store.load_manifest(SID) == ()
        assert await store.load_turns(SID, limit=9) == (), "half of a step was kept"
        await store.save_turn(SID, samples.turn(0))  # there is room for what is small
        await allow_pages(store, 2**30)
        await store.save_files(SID, [large])
        await store.save_turn(SID, samples.turn(1), samples.stored(samples.text("b", "y" * 10**6)))
    async with opened_again(path) as store:
        assert await store.load_file(SID, "large") == large
        assert await store.block_index(SID, "b") == 0


async def test_of_many_writes_at_once_a_full_disk_refuses_only_those_without_room(tmp_path: Path) -> None:
    async with a_store(tmp_path / "store.db") as store:
        await allow_pages(store, 40)
        async with asyncio.TaskGroup() as group:
            large = [
                group.create_task(outcome(store.save_files(SID, [samples.file(f"large-{n}", b"x" * 10**6)])))
                for n in range(5)
            ]
            small = [group.create_task(outcome(store.save_turn(SID, samples.turn(n)))) for n in range(5)]
        assert [task.result() for task in large] == ["The disk of the database is full."] * 5
        assert [task.result() for task in small] == ["saved"] * 5
        assert len(await store.load_turns(SID, limit=9)) == 5


async def test_a_lock_that_is_held_for_long_is_a_fault_of_writes_and_not_of_reads(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with a_store(path, busy_timeout_s=0.2) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(refused(store.save_turn(SID, samples.turn(number)), "locked"))
                assert await store.load_session(SID) == samples.session(SID)
            await refused(store.check(), "locked")
            holder.execute("ROLLBACK")
        await store.check()
        await store.save_turn(SID, samples.turn(0))
        assert await store.load_turns(SID, limit=9) == (samples.turn(0),)


async def test_a_database_that_may_only_be_read_says_so(tmp_path: Path) -> None:
    async with a_store(tmp_path / "store.db") as store:
        assert store._writer is not None
        await store._writer.write(lambda db: db.execute("PRAGMA query_only = ON"))
        await refused(store.save_turn(SID, samples.turn()), "may not be written", retryable=False)
        await refused(store.check(), "may not be written", retryable=False)
        assert await store.load_session(SID) == samples.session(SID)


async def test_damage_in_the_middle_is_a_fault_that_no_patience_heals(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with a_store(path) as store:
        await store.save_blocks(SID, samples.stored(*(samples.text(f"b{n}", "x" * 2000) for n in range(500))))
    store = SqlitePersistence(path)
    await store.open()  # everything is in the file itself now, and nothing in memory
    try:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        await refused(store.load_blocks(SID, limit=500), "damaged", retryable=False)
        await refused(
            store.save_blocks(SID, samples.stored(samples.text("b1", "new"))), "damaged", retryable=False
        )
        await refused(store.save_turn(SID, samples.turn()), "damaged", retryable=False)
        await refused(store.unfinished_sessions(), "damaged", retryable=False)
    finally:
        async with asyncio.timeout(20):
            await store.close()


async def test_a_value_that_no_database_takes_is_its_senders_fault(tmp_path: Path) -> None:
    async with a_store(tmp_path / "store.db") as store:
        assert store._writer is not None
        await store._writer.write(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000))
        calls = (
            store.save_files(SID, [samples.file("large", b"x" * 200_000)]),
            store.save_blocks(SID, samples.stored(samples.text(), start=2**70)),
        )
        for call in calls:
            with pytest.raises(InvalidRequest) as refusal:
                await call
            assert refusal.value.code == "unstorable_value"
        await store.save_turn(SID, samples.turn())


def test_want_of_memory_is_a_fault() -> None:
    with pytest.raises(PersistenceFault, match="memory"), translating():
        raise MemoryError


@asynccontextmanager
async def opened_again(path: Path) -> AsyncIterator[SqlitePersistence]:
    """A store opened again."""
    store = SqlitePersistence(path)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def allow_pages(store: SqlitePersistence, pages: int) -> None:
    """How large the database may be; beyond it, SQLite answers as it does on a full disk."""
    assert store._writer is not None
    await store._writer.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def outcome(write: Awaitable[None]) -> str:
    try:
        await write
    except PersistenceFault as fault:
        return fault.detail
    return "saved"
