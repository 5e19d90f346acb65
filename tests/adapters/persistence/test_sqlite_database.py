"""Migrations: numbered scripts, each once, in order, all or none."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runtime.errors import PersistenceFault
from agent_runtime_adapters.persistence.sqlite_database import (
    bring_up_to_date,
    connect,
    load_scripts,
    translating,
)

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
