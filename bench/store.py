"""SQLite: how fast blocks are saved and turns acknowledged, beside sqlite3 written straight.

Fifty sessions write at once, as in a busy runtime. The peers write the same encoded rows into the
same tables with the same durability (`synchronous=FULL`), in one thread: one commit a call, which
is what a simple adapter would do, and one commit for a call of every session, which nobody who
has to answer calls one by one can do: the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from agent_runtime.blocks import AssistantText
from agent_runtime.ports import StoredBlock
from agent_runtime.records import SessionRecord, Turn, TurnStatus
from agent_runtime_adapters.persistence.json_rows import encode
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.persistence.sqlite_database import connect
from figures import save, summary, table

SESSIONS = 50
BLOCKS_A_RUN = 5000
TURNS_EACH = 20
TEXT = "A paragraph as an agent writes it. " * 12
OURS, STRAIGHT, LIMIT = "ours", "sqlite3, a commit each call", f"sqlite3, a commit each {SESSIONS} calls"
PUT = (
    "INSERT INTO blocks (session, block_index, block_id, conversation_id, block)"
    " VALUES ((SELECT number FROM sessions WHERE session_id = ?), ?, ?, ?, ?)"
    " ON CONFLICT (session, block_id) DO UPDATE SET block = excluded.block"
)
PUT_TURN = (
    "INSERT INTO turns (session, turn_index, turn_id, message_id, turn)"
    " VALUES ((SELECT number FROM sessions WHERE session_id = ?), ?, ?, ?, ?)"
    " ON CONFLICT (session, turn_id) DO UPDATE SET turn = excluded.turn"
)

Batch = tuple[str, list[StoredBlock]]
Figures = dict[str, dict[str, list[float]]]


def batches(size: int, start: int) -> list[Batch]:
    """Calls of `size` blocks, the sessions in turn; `start` is the first block's index in each."""
    calls = BLOCKS_A_RUN // size
    made = []
    for call in range(calls):
        session, at = call % SESSIONS, start + call // SESSIONS * size
        made.append((name(session), [StoredBlock(index, block(index)) for index in range(at, at + size)]))
    return made


def block(index: int) -> AssistantText:
    """Some five hundred bytes as JSON."""
    return AssistantText(id=f"block-{index}", timestamp=datetime.now(UTC), content=TEXT)


def turn(index: int) -> Turn:
    """A message that has just arrived."""
    return Turn(
        turn_id=f"turn-{index}",
        index=index,
        message_id=f"message-{index}",
        status=TurnStatus.QUEUED,
        content="Please go on.",
        started_at=datetime.now(UTC),
    )


def name(session: int) -> str:
    """The id of a session."""
    return f"session-{session}"


async def ours(store: SqlitePersistence, work: Sequence[Batch]) -> float:
    """Blocks a second through the adapter: each session waits for its call before the next."""
    by_session: dict[str, list[list[StoredBlock]]] = defaultdict(list)
    for session_id, blocks in work:
        by_session[session_id].append(blocks)

    async def one(session_id: str) -> None:
        for blocks in by_session[session_id]:
            await store.save_blocks(session_id, blocks)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for session_id in by_session:
            tasks.create_task(one(session_id))
    return BLOCKS_A_RUN / (time.perf_counter() - began)


def straight(file: Path, work: Sequence[Batch], calls_a_commit: int) -> float:
    """Blocks a second by hand."""
    with closing(connect(file, busy_timeout_s=5)) as db:
        began = time.perf_counter()
        for at in range(0, len(work), calls_a_commit):
            db.execute("BEGIN IMMEDIATE")
            for session_id, blocks in work[at : at + calls_a_commit]:
                db.executemany(
                    PUT, ((session_id, b.index, b.block.id, "main", encode(b.block)) for b in blocks)
                )
            db.execute("COMMIT")
        return BLOCKS_A_RUN / (time.perf_counter() - began)


async def turns_together(store: SqlitePersistence, start: int) -> list[float]:
    """Seconds of each `save_turn` while all sessions save at once."""
    taken: list[float] = []

    async def one(session_id: str) -> None:
        for index in range(start, start + TURNS_EACH):
            taken.append(await _save_turn(store, session_id, index))  # noqa: PERF401 - tasks share the list

    async with asyncio.TaskGroup() as tasks:
        for session in range(SESSIONS):
            tasks.create_task(one(name(session)))
    return taken


async def turns_alone(store: SqlitePersistence, start: int) -> list[float]:
    """Seconds of each `save_turn`, one at a time."""
    return [await _save_turn(store, name(n % SESSIONS), start + n) for n in range(SESSIONS * TURNS_EACH // 5)]


async def _save_turn(store: SqlitePersistence, session_id: str, index: int) -> float:
    made = turn(index)
    began = time.perf_counter()
    await store.save_turn(session_id, made)
    return time.perf_counter() - began


def turns_straight(db: sqlite3.Connection, start: int) -> list[float]:
    """Seconds of each turn by hand, one commit each."""
    taken = []
    for n in range(SESSIONS * TURNS_EACH // 5):
        made = turn(start + n)
        began = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        db.execute(PUT_TURN, (name(n % SESSIONS), made.index, made.turn_id, made.message_id, encode(made)))
        db.execute("COMMIT")
        taken.append(time.perf_counter() - began)
    return taken


async def measure(runs: int) -> tuple[Figures, dict[str, list[float]]]:
    """Rounds of all variants, each with a database of its own that grows alike."""
    rates: Figures = defaultdict(lambda: defaultdict(list))
    waits: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory(prefix="agent-runtime-bench-store-") as folder:
        files = {variant: Path(folder) / f"{at}.db" for at, variant in enumerate((OURS, STRAIGHT, LIMIT))}
        for file in files.values():
            await _prepare(file)
        store = SqlitePersistence(files[OURS])
        await store.open()
        try:
            for run in range(runs):
                for size in (1, 10):
                    work = batches(size, (2 * run + (size > 1)) * BLOCKS_A_RUN // SESSIONS)
                    calls = f"{size} block{'s' if size > 1 else ''} a call"
                    rates[calls][OURS].append(await ours(store, work))
                    rates[calls][STRAIGHT].append(straight(files[STRAIGHT], work, 1))
                    rates[calls][LIMIT].append(straight(files[LIMIT], work, SESSIONS))
                start = 10_000 * run
                waits["ours, one at a time"] += await turns_alone(store, start)
                waits[f"ours, {SESSIONS} sessions at once"] += await turns_together(store, start + 5_000)
                with closing(connect(files[STRAIGHT], busy_timeout_s=5)) as db:
                    waits["sqlite3, one at a time"] += turns_straight(db, start)
        finally:
            await store.close()
    return rates, waits


async def _prepare(file: Path) -> None:
    store = SqlitePersistence(file)
    await store.open()
    now = datetime.now(UTC)
    for session in range(SESSIONS):
        await store.create_session(
            SessionRecord(
                session_id=name(session),
                owner="bench",
                architecture="claude-agent-sdk",
                agent_profile_reference="default",
                created_at=now,
                last_activity=now,
            )
        )
    await store.close()


async def gate() -> dict[str, float]:
    """What `gate` compares: processor seconds of all threads for blocks saved one a call, and for turns."""
    with TemporaryDirectory(prefix="agent-runtime-bench-store-") as folder:
        file = Path(folder) / "gate.db"
        await _prepare(file)
        store = SqlitePersistence(file)
        await store.open()
        try:
            await ours(store, batches(1, 0))
            began = time.process_time()
            for run in (1, 2):
                await ours(store, batches(1, run * BLOCKS_A_RUN // SESSIONS))
            blocks = time.process_time() - began
            began = time.process_time()
            await turns_together(store, 0)
            return {"CPU of 10,000 blocks": blocks, "CPU of 1,000 turns": time.process_time() - began}
        finally:
            await store.close()


def tell(rates: Figures, waits: dict[str, list[float]]) -> dict[str, Any]:
    """Print it; return what is kept."""
    upserts = {
        calls: {variant: summary(samples) for variant, samples in variants.items()}
        for calls, variants in rates.items()
    }
    for calls, variants in upserts.items():
        base, limit = variants[STRAIGHT]["median"], variants[LIMIT]["median"]
        table(
            f"Blocks saved a second by {SESSIONS} sessions, {calls}",
            ["variant", "median", "min", "max", "x straight", "x limit"],
            [
                [n, f["median"], f["min"], f["max"], f["median"] / base, f["median"] / limit]
                for n, f in variants.items()
            ],
        )
    latency = {variant: summary(samples, 1000) for variant, samples in waits.items()}
    table(
        "save_turn: ms until it is durable",
        ["variant", "median", "p99", "max"],
        [[n, f["median"], f["p99"], f["max"]] for n, f in latency.items()],
    )
    return {"blocks_per_second": upserts, "save_turn_ms": latency}


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="store", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds (default: 5)")
    runs = parser.parse_args(argv).runs
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a runtime is served
        save("store", tell(*runner.run(measure(runs))))


if __name__ == "__main__":
    main()
