"""Migrations: numbered scripts, each once, in order, all or none."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runtime.errors import PersistenceFault
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.persistence.sqlite_database import (
    bring_up_to_date,
    connect,
    load_scripts,
    translating,
)
from agent_runtime_adapters.persistence.sqlite_rows import FIND_UNFINISHED, unfinished_records

FIRST = "CREATE TABLE a (x);\nINSERT INTO a VALUES ('one; two'); -- a comment; with a semicolon\n"
SECOND = "ALTER TABLE a ADD COLUMN y;\nUPDATE a SET y = x || '!';\n"
BROKEN = "CREATE TABLE b (x);\nCREATE TABLE a (x);\n"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path / "store.db", busy_timeout_s=1)
    yield connection
    connection.close()


def test_scripts_are_applied_in_order_and_once(db: sqlite3.Connection) -> None:
    bring_up_to_date(db, [FIRST])
    bring_up_to_date(db, [FIRST])
    bring_up_to_date(db, [FIRST, SECOND])
    bring_up_to_date(db, [FIRST, SECOND])
    assert db.execute("SELECT * FROM a").fetchall() == [("one; two", "one; two!")]
    assert db.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_script_that_fails_leaves_the_database_as_it_was(db: sqlite3.Connection) -> None:
    bring_up_to_date(db, [FIRST])
    with pytest.raises(PersistenceFault), translating():
        bring_up_to_date(db, [FIRST, SECOND, BROKEN])
    assert db.execute("SELECT * FROM a").fetchall() == [("one; two",)]
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert not db.in_transaction


def test_the_shipped_scripts_make_the_tables(db: sqlite3.Connection) -> None:
    bring_up_to_date(db, load_scripts())
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"sessions", "blocks", "turns", "transcript", "files", "profiles"} <= tables


def test_unfinished_sessions_are_found_without_reading_those_that_sleep(db: sqlite3.Connection) -> None:
    bring_up_to_date(db, load_scripts())
    sleep(db, 20_000)
    plan = " ".join(detail for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {FIND_UNFINISHED}"))
    assert "COVERING INDEX sessions_with_sandbox" in plan
    assert "COVERING INDEX turns_unfinished" in plan
    assert instructions(db, FIND_UNFINISHED) < 100, "a machine that looks at each needs more than 20 000"


def sleep(db: sqlite3.Connection, count: int) -> None:
    """So many sessions with an ended turn."""
    with_number = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)"
    db.execute("BEGIN")
    db.execute(
        f"{with_number} INSERT INTO sessions (number, session_id, owner, created_us, record)"
        " SELECT n, 's' || n, 'ada', n, '{}' FROM n",
        (count,),
    )
    db.execute(
        f"{with_number} INSERT INTO turns (session, turn_index, turn_id, turn)"
        " SELECT n, 0, 't', '{}' FROM n",
        (count,),
    )
    db.execute("COMMIT")


def instructions(db: sqlite3.Connection, statement: str) -> int:
    """How many steps of SQLite's machine a statement takes, to the nearest five."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return 0

    db.set_progress_handler(count, 5)
    db.execute(statement).fetchall()
    db.set_progress_handler(None, 0)
    return calls * 5


def test_a_damaged_record_keeps_no_file_from_being_brought_up_to_date(db: sqlite3.Connection) -> None:
    first, *later = load_scripts()
    bring_up_to_date(db, [first])
    for number, text in ((1, '{"sessionId":'), (2, ""), (3, samples.session().model_dump_json()[:-9])):
        db.execute("INSERT INTO sessions VALUES (?, ?, 'ada', 0, ?)", (number, f"s{number}", text))
        db.execute("INSERT INTO turns VALUES (?, 0, 't', NULL, ?)", (number, text))
    bring_up_to_date(db, [first, *later])
    assert db.execute("SELECT count(*) FROM sessions").fetchone() == (3,)
    assert list(unfinished_records(db)) == []


async def test_a_damaged_record_does_not_hide_the_other_unfinished_sessions(tmp_path: Path) -> None:
    store = SqlitePersistence(tmp_path / "store.db")
    await store.open()
    try:
        for sid in ("damaged", "sound"):
            await store.create_session(samples.session(sid))
            await store.save_turn(sid, samples.turn())
        with sqlite3.connect(tmp_path / "store.db") as db:
            db.execute("UPDATE sessions SET record = '{' WHERE session_id = 'damaged'")
        db.close()
        assert await store.unfinished_sessions() == (samples.session("sound"),)
    finally:
        await store.close()
