"""The rows under `sqlite`: how values stand in the tables, and the statements that more than one call needs.

Each function here runs inside of a transaction that is somebody else's. Not here: who begins and
ends it (`sqlite_threads`), how a value becomes JSON text (`json_rows`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

import structlog

from agent_runtime.errors import NotFound, PersistenceFault
from agent_runtime.ports import StoredBlock
from agent_runtime.records import SessionRecord, Turn, WorkspaceFile
from agent_runtime_adapters.persistence.json_rows import SESSION, UNFINISHED, decode, encode, without_content
from agent_runtime_adapters.persistence.paging import session_key

_log = structlog.get_logger(__name__)

FIND_UNFINISHED: Final = (
    "SELECT record FROM sessions WHERE number IN ("
    "SELECT number FROM sessions WHERE sandbox_id IS NOT NULL"
    " UNION SELECT session FROM turns WHERE is_unfinished = 1)"
)
"""Reads two indexes that hold nothing else (`schema-0002.sql`), and then the sessions that they name."""
FIND_UNFINISHED_TURNS: Final = (
    "SELECT turn FROM turns WHERE is_unfinished = 1"
    " AND session = (SELECT number FROM sessions WHERE session_id = ?) ORDER BY turn_index"
)
"""Reads one of these indexes."""
_PUT_BLOCK: Final = (
    "INSERT INTO blocks (session, block_index, block_id, conversation_id, block)"
    " VALUES ((SELECT number FROM sessions WHERE session_id = ?), ?, ?, ?, ?)"
    " ON CONFLICT (session, block_id) DO UPDATE SET"
    " conversation_id = excluded.conversation_id, block = excluded.block"
)


def session_number(db: sqlite3.Connection, session_id: str) -> int:
    """What the other tables know a session by. Raises `NotFound` (`session_not_found`)."""
    row = db.execute("SELECT number FROM sessions WHERE session_id = ?", (as_text(session_id),)).fetchone()
    if row is None:
        raise NotFound.session(session_id)
    return int(row[0])


def put_record(db: sqlite3.Connection, record: SessionRecord) -> None:
    """Replace a session's record. Raises `NotFound` (`session_not_found`)."""
    changed = db.execute(
        "UPDATE sessions SET owner = ?, created_us = ?, record = ?, sandbox_id = ? WHERE session_id = ?",
        (
            as_text(record.owner),
            session_key(record)[0],
            encode(record),
            sandbox_id(record),
            as_text(record.session_id),
        ),
    )
    if changed.rowcount != 1:
        raise NotFound.session(record.session_id)


def sandbox_id(record: SessionRecord) -> str | bytes | None:
    """What is searched for sessions that have a sandbox."""
    return None if record.sandbox is None else as_text(record.sandbox.sandbox_id)


def put_turn(db: sqlite3.Connection, number: int, turn: Turn) -> None:
    """Upsert a turn by its id."""
    db.execute(
        "INSERT INTO turns (session, turn_index, turn_id, message_id, turn, is_unfinished)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (session, turn_id) DO UPDATE SET"
        " turn_index = excluded.turn_index, message_id = excluded.message_id, turn = excluded.turn,"
        " is_unfinished = excluded.is_unfinished",
        (
            number,
            turn.index,
            as_text(turn.turn_id),
            None if turn.message_id is None else as_text(turn.message_id),
            encode(turn),
            turn.status in UNFINISHED,
        ),
    )


def put_blocks(db: sqlite3.Connection, session_id: str, blocks: Iterable[StoredBlock]) -> None:
    """Upsert blocks by their ids; each keeps the index that it was first saved with.

    Raises `NotFound` (`session_not_found`).
    """
    session = as_text(session_id)
    rows = [
        (session, each.index, as_text(each.block.id), as_text(each.block.conversation_id), encode(each.block))
        for each in blocks
    ]
    try:
        # To look the number up within the statement costs a tenth of what a statement of its own does.
        db.executemany(_PUT_BLOCK, rows)
    except sqlite3.IntegrityError:
        session_number(db, session_id)
        raise


def unfinished_records(db: sqlite3.Connection) -> Iterator[SessionRecord]:
    """The sessions that a starting runtime takes up again.

    One whose record is damaged is left out, and said in the log: the others must not wait for it.
    """
    for (text,) in db.execute(FIND_UNFINISHED):
        try:
            record = decode(SESSION, text)
        except PersistenceFault as fault:
            _log.error("unfinished_session_unreadable", reason=fault.detail)
        else:
            yield record


def facts_and_content(file: WorkspaceFile) -> tuple[str, bytes | None]:
    """The two columns of a file: what a manifest shows, and the bytes."""
    return encode(without_content(file)), None if file.content is None else as_bytes(file.content)


def as_text(text: str) -> str | bytes:
    """What SQLite can bind: it takes no lone surrogates in text, so such a name is kept as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return as_bytes(text)
    return text


def as_bytes(text: str) -> bytes:
    """UTF-8, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def from_text(stored: str | bytes) -> str:
    """What `as_text` or `as_bytes` was given."""
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored
