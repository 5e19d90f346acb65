"""The database file under `sqlite`: opening it, bringing its schema up to date, naming its errors.

A schema is a row of numbered scripts in `sql/`; `PRAGMA user_version` tells how many of them a file
has seen. A file that is newer than this code, or that belongs to another application, is refused
and left untouched. Python's errors become ours in `translating`, nowhere else. SQLite goes on
writing to a file that was moved, deleted or replaced under it, where nobody will find it again;
`FilesInPlace` notices.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from agent_runtime.errors import InvalidRequest, PersistenceFault

APPLICATION_ID: Final = 0x41675274
"""Marks a database file as ours; without it a host's own file could be taken by mistake."""

_SENTENCES: Final = {
    sqlite3.SQLITE_BUSY: ("The database is locked by somebody else.", True),
    sqlite3.SQLITE_LOCKED: ("The database is locked by somebody else.", True),
    sqlite3.SQLITE_FULL: ("The disk of the database is full.", True),
    sqlite3.SQLITE_IOERR: ("The disk of the database does not answer.", True),
    sqlite3.SQLITE_READONLY: ("The database may not be written.", False),
    # Of a file that is open already: a log or a temporary file, for want of descriptors, say.
    sqlite3.SQLITE_CANTOPEN: ("The database file cannot be opened.", True),
    sqlite3.SQLITE_CORRUPT: ("The database file is damaged.", False),
    sqlite3.SQLITE_NOTADB: ("The file is not a database.", False),
}


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Turn what SQLite raises into `PersistenceFault`, in words that name no path.

    A value that no database takes is the caller's: `InvalidRequest` (`unstorable_value`).
    """
    try:
        yield
    except sqlite3.Error as error:
        # Extended codes keep the primary one in their lowest byte.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_TOOBIG:
            raise _too_large() from error
        sentence, retryable = _SENTENCES.get(code, ("The database failed.", True))
        raise PersistenceFault(sentence, retryable=retryable) from error
    except OverflowError as error:
        raise _too_large() from error
    except MemoryError as error:
        raise PersistenceFault("There is not enough memory for the database.") from error


def _too_large() -> InvalidRequest:
    return InvalidRequest("The value is too large for the database.", code="unstorable_value")


class FilesInPlace:
    """Whether the database's files are still those that were opened.

    Made while they are open. All three count: what is written to a log that was deleted is lost at
    the next start, and without the index in shared memory another process would see no locks.
    """

    def __init__(self, path: Path) -> None:
        # SQLite puts its other two files beside the file itself, not beside a link to it.
        beside = path.resolve()
        log = beside.with_name(f"{beside.name}-wal")
        index = beside.with_name(f"{beside.name}-shm")
        # Only the log may be empty: it is after it was written back.
        self._opened = [(name, name is log, _identity(name)) for name in (path, log, index)]

    def check(self) -> None:
        """Raise `PersistenceFault` while a file is missing, is another one, or was emptied."""
        for name, may_be_empty, opened in self._opened:
            found = _identity(name)
            if found is None or opened is None or found[:2] != opened[:2] or not (found[2] or may_be_empty):
                raise PersistenceFault(
                    "The database file was moved, deleted or replaced; it has to come back."
                )


def _identity(name: Path) -> tuple[int, int, int] | None:
    """Device, inode and size; None where there is no such file."""
    try:
        found = name.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def open_connections(
    path: Path, *, busy_timeout_s: float, readers: int = 2
) -> tuple[sqlite3.Connection, list[sqlite3.Connection]]:
    """One connection that writes, to a file that is up to date, and a few that can only read.

    Raises `PersistenceFault` and `sqlite3.Error`; then nothing is left open.
    """
    prepare(path)
    with contextlib.ExitStack() as undo:
        opened = []
        for _ in range(1 + readers):
            opened.append(connect(path, busy_timeout_s=busy_timeout_s))
            undo.callback(opened[-1].close)
        writing, *reading = opened
        bring_up_to_date(writing, load_scripts())
        for connection in reading:
            connection.execute("PRAGMA query_only = ON")
        undo.pop_all()
    return writing, reading


def connect(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """Open the file for any one thread at a time. Transactions are begun and ended by hand."""
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(path: Path) -> None:
    """Make sure that the file exists, readable by its owner only. Raises `PersistenceFault`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise PersistenceFault("The database file cannot be opened for writing.", retryable=False) from error


def load_scripts() -> tuple[str, ...]:
    """The schema's scripts, in the order of their numbers."""
    found = [
        item for item in resources.files(__package__).joinpath("sql").iterdir() if item.name[-4:] == ".sql"
    ]
    return tuple(item.read_text("utf-8") for item in sorted(found, key=lambda item: item.name))


def bring_up_to_date(connection: sqlite3.Connection, scripts: Sequence[str]) -> None:
    """Apply the scripts that this file has not seen, all or none. Raises `PersistenceFault`."""
    _check_version(connection, len(scripts))
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise PersistenceFault("The database's disk does not support a write-ahead log.", retryable=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: another process may have done the work while this one waited for the lock.
        seen = _check_version(connection, len(scripts))
        for script in scripts[seen:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(scripts)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_version(connection: sqlite3.Connection, known: int) -> int:
    (seen,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and owner != APPLICATION_ID:
        raise PersistenceFault("The database belongs to another application.", retryable=False)
    if seen > known:
        raise PersistenceFault(
            f"The database has schema {seen}, but this version of agent-runtime knows only up to {known}: "
            "use a newer agent-runtime.",
            retryable=False,
        )
    return int(seen)


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending
