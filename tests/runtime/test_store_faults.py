"""The store's file fails for real in mid-turn: the turn ends once, later, and everything of it is there.

A real SQLite file under the whole runtime. What the adapter says of each failure is told in
`tests/adapters/persistence/test_sqlite_faults.py`; the recorder alone, in `test_recorder`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent_runtime.errors import PersistenceFault
from agent_runtime.records import TurnStatus
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from tests.runtime.scripts import assert_orderly
from tests.runtime.world import ANNA, World, runtime

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


FAILURES = [Moved, Locked, Full]


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
