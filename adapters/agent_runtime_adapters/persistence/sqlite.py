"""SqlitePersistence: durable records in one SQLite file; the embedded default.

Nothing here runs on the event loop: writes go to one thread that commits them in groups, reads to a
few others (`sqlite_threads`), and a write-ahead log keeps the two apart. `synchronous` is FULL: what
was answered survives a power cut. How the file is opened, migrated and complained about is in
`sqlite_database`; the tables are in `sql/`. One file serves one runtime well; several runtimes want
a server database.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_runtime.blocks import BLOCK
from agent_runtime.errors import Conflict, NotFound
from agent_runtime.ports import BlockPage, SessionPage, StoredBlock
from agent_runtime.profile import AgentProfile
from agent_runtime.records import SessionRecord, Turn, WorkspaceFile
from agent_runtime_adapters.persistence.json_rows import (
    FILE,
    PROFILE,
    SESSION,
    TURN,
    decode,
    decode_object,
    encode,
    encode_object,
    without_content,
)
from agent_runtime_adapters.persistence.paging import LARGEST, bounded, from_cursor, session_key, to_cursor
from agent_runtime_adapters.persistence.sqlite_database import open_connections, translating
from agent_runtime_adapters.persistence.sqlite_threads import GroupWriter, Job, Readers, closed

T = TypeVar("T")


class SqlitePersistence:
    """`ports.PersistenceAdapter` on a SQLite file, which is created with mode 0600 where it is missing.

    Args:
        path: the database file; two more lie beside it while it is open (`-wal`, `-shm`).
        busy_timeout_s: how long to wait for another process that holds the file before a call
            fails with `PersistenceFault`.
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._writer: GroupWriter | None = None
        self._readers: Readers | None = None

    async def open(self) -> None:
        """Create or migrate the file. Raises `PersistenceFault` where it cannot or must not be used."""

        def connect() -> tuple[sqlite3.Connection, list[sqlite3.Connection]]:
            with translating():
                return open_connections(self._path, busy_timeout_s=self._busy_timeout_s)

        writing, reading = await asyncio.to_thread(connect)
        self._writer, self._readers = GroupWriter(writing), Readers(reading)

    async def close(self) -> None:
        """Finish pending writes, then let go of the file."""
        if self._writer is not None:
            await self._writer.close()
        if self._readers is not None:
            await self._readers.close()

    async def create_session(self, record: SessionRecord) -> None:
        """Store a new session. Raises `Conflict` (code `already_exists`) where the id is taken."""

        def job(db: sqlite3.Connection) -> None:
            made = db.execute(
                "INSERT INTO sessions (session_id, owner, created_us, record) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session_id) DO NOTHING",
                (_text(record.session_id), _text(record.owner), session_key(record)[0], encode(record)),
            )
            if made.rowcount != 1:
                raise Conflict(
                    "There is such a session already.", code="already_exists", session_id=record.session_id
                )

        await self._write(job)

    async def load_session(self, session_id: str) -> SessionRecord | None:
        """Return the session, or None."""

        def job(db: sqlite3.Connection) -> SessionRecord | None:
            row = db.execute(
                "SELECT record FROM sessions WHERE session_id = ?", (_text(session_id),)
            ).fetchone()
            return row and decode(SESSION, row[0])

        return await self._read(job)

    async def update_session(self, record: SessionRecord) -> None:
        """Replace the record of an existing session. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            changed = db.execute(
                "UPDATE sessions SET owner = ?, created_us = ?, record = ? WHERE session_id = ?",
                (_text(record.owner), session_key(record)[0], encode(record), _text(record.session_id)),
            )
            if changed.rowcount != 1:
                raise NotFound.session(record.session_id)

        await self._write(job)

    async def delete_session(self, session_id: str) -> None:
        """Remove the session; the tables' own rules remove what belongs to it."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sessions WHERE session_id = ?", (_text(session_id),))

        await self._write(job)

    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        """The owner's sessions, newest first. Raises `InvalidRequest` (code `invalid_cursor`)."""
        wanted = bounded(limit)
        at, last_id = (LARGEST, "") if cursor is None else from_cursor(cursor)

        def job(db: sqlite3.Connection) -> tuple[SessionRecord, ...]:
            rows = db.execute(
                "SELECT record FROM sessions WHERE owner = ? AND (created_us, session_id) < (?, ?)"
                " ORDER BY created_us DESC, session_id DESC LIMIT ?",
                (_text(owner), at, _text(last_id), wanted + 1),
            )
            return tuple(decode(SESSION, text) for (text,) in rows)

        found = await self._read(job)
        page = found[:wanted]
        more = bool(page) and len(found) > wanted
        return SessionPage(page, to_cursor(session_key(page[-1])) if more else None)

    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        """Upsert blocks by id; each keeps its first index. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            _put_blocks(db, _number(db, session_id), blocks)

        await self._write(job)

    async def load_blocks(
        self, session_id: str, *, limit: int, before: int | None = None, conversation_id: str | None = None
    ) -> BlockPage:
        """The newest `limit` blocks below `before`, oldest first."""
        wanted = bounded(limit)
        below = LARGEST if before is None else bounded(before)
        conversation = None if conversation_id is None else _text(conversation_id)

        def job(db: sqlite3.Connection) -> tuple[StoredBlock, ...]:
            rows = db.execute(
                "SELECT block_index, block FROM blocks"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?1)"
                " AND block_index < ?2 AND (?3 IS NULL OR conversation_id = ?3)"
                " ORDER BY block_index DESC LIMIT ?4",
                (_text(session_id), below, conversation, wanted + 1),
            )
            return tuple(StoredBlock(index, decode(BLOCK, text)) for index, text in rows)

        found = await self._read(job)
        return BlockPage(found[:wanted][::-1], has_more=len(found) > wanted)

    async def block_index(self, session_id: str, block_id: str) -> int | None:
        """The index of a saved block, or None."""

        def job(db: sqlite3.Connection) -> int | None:
            row = db.execute(
                "SELECT block_index FROM blocks"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?) AND block_id = ?",
                (_text(session_id), _text(block_id)),
            ).fetchone()
            return row and int(row[0])

        return await self._read(job)

    async def save_turn(self, session_id: str, turn: Turn, blocks: Sequence[StoredBlock] = ()) -> None:
        """Upsert a turn and blocks in one atomic step. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = _number(db, session_id)
            message_id = None if turn.message_id is None else _text(turn.message_id)
            db.execute(
                "INSERT INTO turns (session, turn_index, turn_id, message_id, turn) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (session, turn_id) DO UPDATE SET"
                " turn_index = excluded.turn_index, message_id = excluded.message_id, turn = excluded.turn",
                (number, turn.index, _text(turn.turn_id), message_id, encode(turn)),
            )
            _put_blocks(db, number, blocks)

        await self._write(job)

    async def load_turns(self, session_id: str, *, limit: int, before: int | None = None) -> tuple[Turn, ...]:
        """The newest `limit` turns below `before`, in rising index."""
        below = LARGEST if before is None else bounded(before)

        def job(db: sqlite3.Connection) -> tuple[Turn, ...]:
            rows = db.execute(
                "SELECT turn FROM turns WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND turn_index < ? ORDER BY turn_index DESC LIMIT ?",
                (_text(session_id), below, bounded(limit)),
            )
            return tuple(decode(TURN, text) for (text,) in rows)[::-1]

        return await self._read(job)

    async def find_turn(self, session_id: str, message_id: str) -> Turn | None:
        """The first turn that a client's `message_id` began, or None."""

        def job(db: sqlite3.Connection) -> Turn | None:
            row = db.execute(
                "SELECT turn FROM turns WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND message_id = ? ORDER BY turn_index LIMIT 1",
                (_text(session_id), _text(message_id)),
            ).fetchone()
            return row and decode(TURN, row[0])

        return await self._read(job)

    async def append_transcript(
        self, session_id: str, key: str, offset: int, entries: Sequence[Mapping[str, Any]]
    ) -> None:
        """Append entries; places that exist are left alone. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = _number(db, session_id)
            db.executemany(
                "INSERT INTO transcript (session, key, place, entry) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session, key, place) DO NOTHING",
                (
                    (number, _text(key), place, encode_object(entry))
                    for place, entry in enumerate(entries, offset)
                ),
            )

        await self._write(job)

    async def load_transcript(self, session_id: str) -> dict[str, list[dict[str, Any]]]:
        """All of the transcript: key to entries in order of place, keys in order."""

        def job(db: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
            transcript: dict[str, list[dict[str, Any]]] = {}
            for key, entry in db.execute(
                "SELECT key, entry FROM transcript"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?) ORDER BY key, place",
                (_text(session_id),),
            ):
                transcript.setdefault(_untext(key), []).append(decode_object(entry))
            return transcript

        return await self._read(job)

    async def save_files(self, session_id: str, files: Sequence[WorkspaceFile]) -> None:
        """Upsert workspace files by path. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = _number(db, session_id)
            db.executemany(
                "INSERT INTO files (session, path, facts, content) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session, path) DO UPDATE SET"
                " facts = excluded.facts, content = excluded.content",
                ((number, _bytes(file.path), *_facts_and_content(file)) for file in files),
            )

        await self._write(job)

    async def delete_files(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove files by path. Unknown paths are ignored."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "DELETE FROM files WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND path = ?",
                ((_text(session_id), _bytes(path)) for path in paths),
            )

        await self._write(job)

    async def load_manifest(self, session_id: str) -> tuple[WorkspaceFile, ...]:
        """All files, sorted by path, without their content."""

        def job(db: sqlite3.Connection) -> tuple[WorkspaceFile, ...]:
            rows = db.execute(
                "SELECT facts FROM files WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " ORDER BY path",
                (_text(session_id),),
            )
            return tuple(decode(FILE, facts) for (facts,) in rows)

        return await self._read(job)

    async def load_file(self, session_id: str, path: str) -> WorkspaceFile | None:
        """One file with its content, or None."""

        def job(db: sqlite3.Connection) -> WorkspaceFile | None:
            row = db.execute(
                "SELECT facts, content FROM files"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?) AND path = ?",
                (_text(session_id), _bytes(path)),
            ).fetchone()
            if row is None:
                return None
            facts, content = row
            file = decode(FILE, facts)
            return file if content is None else file.model_copy(update={"content": _untext(content)})

        return await self._read(job)

    async def save_profile(self, profile: AgentProfile) -> None:
        """Upsert a profile by its id. Not part of the port: this is how a host puts profiles here."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO profiles (profile_id, profile) VALUES (?, ?)"
                " ON CONFLICT (profile_id) DO UPDATE SET profile = excluded.profile",
                (_text(profile.profile_id), encode(profile)),
            )

        await self._write(job)

    async def list_profiles(self) -> tuple[AgentProfile, ...]:
        """The profiles that were saved here, sorted by id."""

        def job(db: sqlite3.Connection) -> tuple[AgentProfile, ...]:
            rows = db.execute("SELECT profile FROM profiles ORDER BY profile_id")
            return tuple(decode(PROFILE, text) for (text,) in rows)

        return await self._read(job)

    async def load_profile(self, profile_id: str) -> AgentProfile | None:
        """One profile, or None."""

        def job(db: sqlite3.Connection) -> AgentProfile | None:
            row = db.execute(
                "SELECT profile FROM profiles WHERE profile_id = ?", (_text(profile_id),)
            ).fetchone()
            return row and decode(PROFILE, row[0])

        return await self._read(job)

    async def _write(self, job: Job[T]) -> T:
        if self._writer is None:
            raise closed()
        return await self._writer.write(job)

    async def _read(self, job: Job[T]) -> T:
        if self._readers is None:
            raise closed()
        return await self._readers.read(job)


def _number(db: sqlite3.Connection, session_id: str) -> int:
    row = db.execute("SELECT number FROM sessions WHERE session_id = ?", (_text(session_id),)).fetchone()
    if row is None:
        raise NotFound.session(session_id)
    return int(row[0])


def _put_blocks(db: sqlite3.Connection, number: int, blocks: Iterable[StoredBlock]) -> None:
    db.executemany(
        "INSERT INTO blocks (session, block_index, block_id, conversation_id, block) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (session, block_id) DO UPDATE SET"
        " conversation_id = excluded.conversation_id, block = excluded.block",
        (
            (
                number,
                stored.index,
                _text(stored.block.id),
                _text(stored.block.conversation_id),
                encode(stored.block),
            )
            for stored in blocks
        ),
    )


def _facts_and_content(file: WorkspaceFile) -> tuple[str, bytes | None]:
    return encode(without_content(file)), None if file.content is None else _bytes(file.content)


def _text(text: str) -> str | bytes:
    """What SQLite can bind: it takes no lone surrogates in text, so such a name is kept as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _bytes(text)
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _untext(stored: str | bytes) -> str:
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored
