"""SQLite: what only a file can promise: it lasts, it is refused in words, and it never blocks the loop."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.errors import InvalidRequest, PersistenceFault
from agent_runtime.ports import StoredBlock
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence

SID = "session-1"


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqlitePersistence]:
    store = SqlitePersistence(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_everything_survives_closing_and_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "store.db"
    blocks = samples.stored(*samples.every_block())
    async with opened(path) as store:
        await store.create_session(samples.full_session(SID))
        await store.save_turn(SID, samples.full_turn(), blocks)
        await store.append_transcript(SID, "main", 0, [samples.OPAQUE])
        await store.save_files(SID, [samples.file(name) for name in samples.ODD_PATHS])
        await store.save_profile(samples.profile())
    async with opened(path) as store:
        assert await store.load_session(SID) == samples.full_session(SID)
        assert list((await store.load_blocks(SID, limit=100)).blocks) == blocks
        assert await store.load_turns(SID, limit=1) == (samples.full_turn(),)
        assert await store.load_transcript(SID) == {"main": [samples.OPAQUE]}
        assert len(await store.load_manifest(SID)) == len(samples.ODD_PATHS)
        assert await store.list_profiles() == (samples.profile(),)


async def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.create_session(samples.session(SID))
        assert modes(tmp_path) == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


WRITER = """
import asyncio, sys
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence

async def live(store, sid):
    await store.create_session(samples.session(sid))
    for index in range(1_000_000):
        block = samples.stored(samples.text(f"b{index}"), start=index)
        await store.save_turn(sid, samples.turn(index), block)
        print(sid, index, flush=True)

async def main():
    store = SqlitePersistence(sys.argv[1])
    await store.open()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(live(store, f"s{number}"))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines_before_the_end", [20, 333])
def test_what_was_acknowledged_before_a_kill_is_there_afterwards(
    tmp_path: Path, lines_before_the_end: int
) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(lines_before_the_end)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    acknowledged = [
        (sid, int(index)) for sid, index in (line.split() for line in lines if line.endswith("\n"))
    ]
    assert len(acknowledged) >= lines_before_the_end
    asyncio.run(check_all_there(path, acknowledged))


async def check_all_there(path: Path, acknowledged: list[tuple[str, int]]) -> None:
    async with opened(path) as store:
        for sid, index in acknowledged:
            assert await store.find_turn(sid, f"message-{index}") == samples.turn(index)
            assert await store.block_index(sid, f"b{index}") == index
        for sid in {sid for sid, _ in acknowledged}:
            turns = [turn.index for turn in await store.load_turns(sid, limit=10**6)]
            blocks = [found.index for found in (await store.load_blocks(sid, limit=10**6)).blocks]
            assert turns == blocks == list(range(len(turns))), "a step was kept in part, or out of order"


async def test_pending_writes_are_finished_by_closing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(store.create_session(samples.session(f"s{number}")))
        await asyncio.sleep(0)
        await store.close()
    async with opened(path) as store:
        assert len((await store.list_sessions("ada", limit=1000)).sessions) == 100


async def test_a_write_whose_caller_was_cancelled_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store, asyncio.TaskGroup() as group:
        saving = group.create_task(store.create_session(samples.session(SID)))
        await asyncio.sleep(0)
        saving.cancel()
    async with opened(path) as store:
        assert await store.load_session(SID) is not None


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqlitePersistence(tmp_path / "store.db")
    await store.close()
    with pytest.raises(PersistenceFault, match="not open"):
        await store.load_session(SID)
    await store.open()
    await store.close()
    for call in (store.load_session(SID), store.create_session(samples.session(SID))):
        with pytest.raises(PersistenceFault, match="not open"):
            await call


async def test_a_value_that_is_no_json_is_refused_whole(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    odd = samples.every_block()[5].model_copy(update={"input": endless})
    async with opened(tmp_path / "store.db") as store:
        await store.create_session(samples.session(SID))
        with pytest.raises(InvalidRequest) as refusal:
            await store.save_turn(SID, samples.turn(), samples.stored(samples.text(), odd))
        assert refusal.value.code == "unstorable_value"
        assert await store.load_turns(SID, limit=10) == ()
        assert (await store.load_blocks(SID, limit=10)).blocks == ()


async def test_a_database_that_somebody_holds_is_a_fault_until_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path, busy_timeout_s=0.05) as store:
        await store.create_session(samples.session(SID))
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(PersistenceFault, match="locked") as fault:
            await store.save_turn(SID, samples.turn())
        assert fault.value.retryable
        assert await store.load_session(SID) is not None, "reading goes on"
        holder.execute("ROLLBACK")
        holder.close()
        await store.save_turn(SID, samples.turn())
        assert await store.load_turns(SID, limit=1) == (samples.turn(),)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE precious (a)")
    db.close()


def _nonsense(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 500)


def _damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_newer, r"schema 999, but this version of agent-runtime knows only up to \d+: use a newer"),
        (_foreign, "belongs to another application"),
        (_nonsense, "not a database"),
        (_damaged, "damaged"),
        (_folder, "cannot be opened"),
    ],
)
async def test_a_file_that_must_not_be_used_is_refused_in_words_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.create_session(samples.session(SID))
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(PersistenceFault, match=sentence) as fault:
        await SqlitePersistence(path).open()
    assert not fault.value.retryable
    assert str(tmp_path) not in fault.value.detail
    assert (path.read_bytes() if path.is_file() else None) == before


async def test_damage_found_while_reading_is_a_fault_of_that_call_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.create_session(samples.session(SID))
        await store.create_session(samples.session("other"))
        with sqlite3.connect(path) as db:
            db.execute("UPDATE sessions SET record = '{\"sessionId\":' WHERE session_id = ?", (SID,))
        db.close()
        with pytest.raises(PersistenceFault, match="cannot be read"):
            await store.load_session(SID)
        assert await store.load_session("other") == samples.session("other")


async def test_the_loop_goes_on_while_large_values_are_written_and_read(tmp_path: Path) -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - before)

    large = samples.file("large", b"x" * (8 * 1024 * 1024))
    async with opened(tmp_path / "store.db") as store:
        await store.create_session(samples.session(SID))
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(tick())
            for _ in range(5):
                await store.save_files(SID, [large])
                await store.load_file(SID, "large")
            await store.save_blocks(
                SID, [StoredBlock(n, samples.text(f"b{n}", "y" * 1000)) for n in range(2000)]
            )
            ticking.cancel()
    assert longest < 1.0


async def test_a_host_that_never_closes_can_still_end(tmp_path: Path) -> None:
    program = WRITER.replace("for index in range(1_000_000)", "for index in range(1)")
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(tmp_path / "s.db")],
        capture_output=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
