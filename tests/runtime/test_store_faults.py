"""The store's file fails for real in mid-turn: the turn ends once, later, and everything of it is there.

A real SQLite file under the whole runtime. What the adapter says of each failure is told in
`tests/adapters/persistence/test_sqlite_faults.py`; the recorder alone, in `test_recorder`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent_runtime import loading, store_calls
from agent_runtime.errors import PersistenceFault
from agent_runtime.records import TurnStatus
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from tests.runtime.scripts import assert_orderly
from tests.runtime.world import ANNA, World, runtime
from tests.runtime.world import world as world_of
from tests.waiting import eventually

LARGE = b"0123456789abcdef" * 65536


class InTwoHalves:
    """A script that says, writes and remembers something before and after `go_on`."""

    def __init__(self) -> None:
        self.half_way = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, stage: Stage) -> None:
        self._half(stage, "first")
        self.half_way.set()
        await self.go_on.wait()
        self._half(stage, "second")
        stage.rest()

    def _half(self, stage: Stage, which: str) -> None:
        stage.text(f"{which}-{stage.turn_id}", f"{which} half of ", str(stage.message))
        stage.write(f"{which}.bin", LARGE + which.encode())
        stage.remember({"half": which, "of": stage.turn_id})


class Failure(Protocol):
    """Something that happens to the file, and is undone."""

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


class Moved:
    """The folder is not there for a while."""

    def __init__(self, store: SqlitePersistence, path: Path) -> None:
        self.folder, self.away = path.parent, path.parent.with_name("away")

    async def begin(self) -> None:
        self.folder.rename(self.away)

    async def end(self) -> None:
        self.away.rename(self.folder)


class Locked:
    """Another process writes for long."""

    def __init__(self, store: SqlitePersistence, path: Path) -> None:
        self.path = path

    async def begin(self) -> None:
        self.holder = sqlite3.connect(self.path, isolation_level=None)
        self.holder.execute("BEGIN IMMEDIATE")

    async def end(self) -> None:
        self.holder.execute("ROLLBACK")
        self.holder.close()


class Full:
    """There is no room for anything large."""

    def __init__(self, store: SqlitePersistence, path: Path) -> None:
        self.store = store

    async def begin(self) -> None:
        await self._allow("(SELECT page_count FROM pragma_page_count)")

    async def end(self) -> None:
        await self._allow("1073741823")

    async def _allow(self, pages: str) -> None:
        assert self.store._writer is not None

        def job(db: sqlite3.Connection) -> None:
            (count,) = db.execute(f"SELECT {pages}").fetchone()
            db.execute(f"PRAGMA max_page_count = {count}").fetchall()

        await self.store._writer.write(job)


WRITES = {"save_blocks", "save_turn", "save_files", "delete_files", "append_transcript", "update_session"}
FAILURES = [Moved, Locked, Full]
LONGER_THAN_A_TEST_S = 600.0


def damage(path: Path) -> None:
    """Overwrite all of the file but its first page, behind the back of whoever has it open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version}")  # a change by somebody else: nobody trusts his cache
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def back_up(path: Path, to: Path) -> None:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


@asynccontextmanager
async def a_runtime(path: Path, script: Callable[[Stage], Awaitable[None]]) -> AsyncIterator[World]:
    path.parent.mkdir(exist_ok=True)
    store: Any = SqlitePersistence(path, busy_timeout_s=0.1)
    async with ScriptedSandboxes(script) as sandboxes, runtime(sandboxes, store) as made:
        yield made


async def until(probe: Callable[[], Awaitable[bool]], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not await probe():
            await asyncio.sleep(0.01)


async def ready(world: World) -> bool:
    return (await world.manager.readiness()).ok


async def not_ready(world: World) -> bool:
    return not await ready(world)


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_store_that_fails_in_mid_turn_delays_its_end_and_loses_nothing(
    tmp_path: Path, kind: Callable[[SqlitePersistence, Path], Failure]
) -> None:
    path, script = tmp_path / "data" / "store.db", InTwoHalves()
    async with a_runtime(path, script) as world:
        failure = kind(world.store.inner, path)
        sid = await world.new()
        receipt = await world.send(sid, "hello")
        await script.half_way.wait()
        await failure.begin()
        script.go_on.set()
        await until(lambda: not_ready(world))
        for _ in range(3):
            with pytest.raises(PersistenceFault) as refusal:
                await world.send(sid, "another")
            assert refusal.value.code == "persistence_unavailable"
        assert await world.of(sid, "turn_end") == [], "an end is told that is not durable"

        await failure.end()
        (turn,) = await world.ended(sid, 1)
        assert (turn.turn_id, turn.status) == (receipt.turn_id, TurnStatus.COMPLETED)
        await until(lambda: ready(world))
        await check_whole(world, sid, turn.turn_id)

        await world.send(sid, "another")
        await world.ended(sid, 2)
        assert_orderly(await world.events(sid))


async def check_whole(world: World, sid: str, turn_id: str) -> None:
    """All that the script did is in the store."""
    store = world.store.inner
    blocks = [stored.block for stored in (await store.load_blocks(sid, limit=100)).blocks]
    assert [block.id for block in blocks][1:] == [f"first-{turn_id}", f"second-{turn_id}"]
    assert all(block.state == "complete" for block in blocks)
    assert await store.load_transcript(sid) == {
        "main": [{"half": half, "of": turn_id} for half in ("first", "second")]
    }
    for half in ("first", "second"):
        file = await store.load_file(sid, f"{half}.bin")
        assert file is not None
        assert file.content == (LARGE + half.encode()).decode()
    (turn,) = await store.load_turns(sid, limit=9)
    assert turn.status is TurnStatus.COMPLETED


@pytest.mark.parametrize("kind", [Moved, Locked])
async def test_a_message_while_the_store_fails_is_refused_and_may_be_sent_again(
    tmp_path: Path, kind: Callable[[SqlitePersistence, Path], Failure]
) -> None:
    path, script = tmp_path / "data" / "store.db", InTwoHalves()
    script.go_on.set()
    async with a_runtime(path, script) as world:
        failure = kind(world.store.inner, path)
        sid = await world.new()
        await failure.begin()
        with pytest.raises(PersistenceFault) as refusal:
            await world.send(sid, "hello", "m1")
        assert (refusal.value.code, refusal.value.retryable) == ("persistence_unavailable", True)
        await failure.end()
        receipt = await world.send(sid, "hello", "m1")
        (turn,) = await world.ended(sid, 1)
        assert (turn.turn_id, turn.message_id) == (receipt.turn_id, "m1")
        assert await world.turns(sid) == (turn,)
        assert (await world.send(sid, "hello", "m1")).duplicate


async def test_while_the_file_is_elsewhere_what_is_in_memory_can_be_read(tmp_path: Path) -> None:
    path, script = tmp_path / "data" / "store.db", InTwoHalves()
    script.go_on.set()
    async with a_runtime(path, script) as world:
        failure = Moved(world.store.inner, path)
        sid = await world.new(message="hello")
        await world.ended(sid, 1)
        await failure.begin()
        assert await not_ready(world)
        snapshot = await world.manager.snapshot(ANNA, sid)
        assert len(snapshot.blocks) == 3
        assert {file.path for file in await world.manager.manifest(ANNA, sid)} == {"first.bin", "second.bin"}
        with pytest.raises(PersistenceFault):
            await world.manager.file(ANNA, sid, "first.bin")
        await failure.end()
        assert await ready(world)
        assert (await world.manager.file(ANNA, sid, "first.bin")).size_bytes == len(LARGE) + 5


async def test_a_damaged_store_keeps_its_turn_open_and_the_next_runtime_ends_it_with_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_DETACH_BOUND_S", LONGER_THAN_A_TEST_S)
    path, script = tmp_path / "data" / "store.db", InTwoHalves()
    path.parent.mkdir()
    store: Any = SqlitePersistence(path, busy_timeout_s=0.1)
    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as world:
            sid = await world.new()
            receipt = await world.send(sid, "hello")
            await script.half_way.wait()
            await eventually(
                lambda: "second.bin" not in names(world, sid) and "first.bin" in names(world, sid)
            )
            back_up(path, tmp_path / "backup.db")
            damage(path)
            script.go_on.set()
            await until(lambda: not_ready(world))
            assert (await world.manager.readiness()).parts["persistence"] == {
                "ok": False,
                "reason": "The database file is damaged.",
            }
            await eventually(lambda: world.manager._loaded.fault() is not None)
            await until(lambda: sends_are_refused(world, sid))
            assert await world.of(sid, "turn_end") == [], "an end is told that is not durable"
            both = [f"{half}-{receipt.turn_id}" for half in ("first", "second")]
            await until(lambda: shows(world, sid, both))
            await world.manager.close()  # and nobody waits for a damaged store

        for file in path.parent.iterdir():
            file.unlink()
        (tmp_path / "backup.db").rename(path)
        async with runtime(sandboxes, store) as world:
            await until(lambda: has_ended(world, sid))
            await check_whole(world, sid, receipt.turn_id)
            assert await ready(world)
            assert len(sandboxes.made) == 1


async def has_ended(world: World, sid: str) -> bool:
    (turn,) = await world.turns(sid)
    return turn.status is not TurnStatus.RUNNING


async def shows(world: World, sid: str, block_ids: list[str]) -> bool:
    """Whether whoever joins sees these blocks after the message; none of it comes from the store."""
    snapshot = await world.manager.snapshot(ANNA, sid)
    return [block.id for block in snapshot.blocks][1:] == block_ids


def names(world: World, sid: str) -> set[str]:
    session = world.manager._loaded.find(sid)
    return set() if session is None else set(session.recorder.files)


async def sends_are_refused(world: World, sid: str) -> bool:
    with pytest.raises(PersistenceFault) as refusal:
        await world.send(sid, "another")
    assert refusal.value.code == "persistence_unavailable"
    return not refusal.value.retryable


async def test_a_store_that_is_seen_to_answer_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_calls, "_RETRY_MOST_S", LONGER_THAN_A_TEST_S)
    script = InTwoHalves()
    async with world_of(script) as world:
        sid = await world.new(message="hello")
        await script.half_way.wait()
        world.store.only = WRITES
        world.store.breaks = PersistenceFault("The store does not answer.", retryable=False)  # tried rarely
        script.go_on.set()
        await eventually(lambda: world.manager._loaded.fault() is not None)
        world.store.breaks = None
        await until(lambda: ready(world))
        await world.ended(sid, 1)
