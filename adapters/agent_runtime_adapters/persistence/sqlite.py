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
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_runtime.blocks import BLOCK
from agent_runtime.errors import Conflict
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
)
from agent_runtime_adapters.persistence.paging import LARGEST, bounded, from_cursor, session_key, to_cursor
from agent_runtime_adapters.persistence.sqlite_database import FilesInPlace, open_connections, translating
from agent_runtime_adapters.persistence.sqlite_rows import (
    FIND_UNFINISHED_TURNS,
    as_bytes,
    as_text,
    facts_and_content,
    from_text,
    put_blocks,
    put_record,
    put_turn,
    sandbox_id,
    session_number,
    unfinished_records,
)
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

        def connect() -> tuple[sqlite3.Connection, list[sqlite3.Connection], FilesInPlace]:
            with translating():
                opened = open_connections(self._path, busy_timeout_s=self._busy_timeout_s)
                return *opened, FilesInPlace(self._path)

        writing, reading, files = await asyncio.to_thread(connect)
        self._writer, self._readers = GroupWriter(writing, files.check), Readers(reading, files.check)

    async def close(self) -> None:
        """Finish pending writes, then let go of the file."""
        if self._writer is not None:
            await self._writer.close()
        if self._readers is not None:
            await self._readers.close()

    async def check(self) -> None:
        """Write the schema's number over itself: one page, and all that a commit needs."""

        def job(db: sqlite3.Connection) -> None:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {int(version)}")

        await self._write(job)

    async def create_session(self, record: SessionRecord) -> None:
        """Store a new session. Raises `Conflict` (code `already_exists`) where the id is taken."""

        def job(db: sqlite3.Connection) -> None:
            made = db.execute(
                "INSERT INTO sessions (session_id, owner, created_us, record, sandbox_id)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (session_id) DO NOTHING",
                (
                    as_text(record.session_id),
                    as_text(record.owner),
                    session_key(record)[0],
                    encode(record),
                    sandbox_id(record),
                ),
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
                "SELECT record FROM sessions WHERE session_id = ?", (as_text(session_id),)
            ).fetchone()
            return row and decode(SESSION, row[0])

        return await self._read(job)

    async def update_session(self, record: SessionRecord) -> None:
        """Replace the record of an existing session. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            put_record(db, record)

        await self._write(job)

    async def delete_session(self, session_id: str) -> None:
        """Remove the session; the tables' own rules remove what belongs to it."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sessions WHERE session_id = ?", (as_text(session_id),))

        await self._write(job)

    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        """The owner's sessions, newest first. Raises `InvalidRequest` (code `invalid_cursor`)."""
        wanted = bounded(limit)
        at, last_id = (LARGEST, "") if cursor is None else from_cursor(cursor)

        def job(db: sqlite3.Connection) -> tuple[SessionRecord, ...]:
            rows = db.execute(
                "SELECT record FROM sessions WHERE owner = ? AND (created_us, session_id) < (?, ?)"
                " ORDER BY created_us DESC, session_id DESC LIMIT ?",
                (as_text(owner), at, as_text(last_id), wanted + 1),
            )
            return tuple(decode(SESSION, text) for (text,) in rows)

        found = await self._read(job)
        page = found[:wanted]
        more = bool(page) and len(found) > wanted
        return SessionPage(page, to_cursor(session_key(page[-1])) if more else None)

    async def unfinished_sessions(self) -> tuple[SessionRecord, ...]:
        """Sessions with a sandbox in their record, or with a turn that is queued or running."""
        return await self._read(lambda db: tuple(unfinished_records(db)))

    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        """Upsert blocks by id; each keeps its first index. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            put_blocks(db, session_id, blocks)

        await self._write(job)

    async def load_blocks(
        self, session_id: str, *, limit: int, before: int | None = None, conversation_id: str | None = None
    ) -> BlockPage:
        """The newest `limit` blocks below `before`, oldest first."""
        wanted = bounded(limit)
        below = LARGEST if before is None else bounded(before)
        conversation = None if conversation_id is None else as_text(conversation_id)

        def job(db: sqlite3.Connection) -> tuple[StoredBlock, ...]:
            rows = db.execute(
                "SELECT block_index, block FROM blocks"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?1)"
                " AND block_index < ?2 AND (?3 IS NULL OR conversation_id = ?3)"
                " ORDER BY block_index DESC LIMIT ?4",
                (as_text(session_id), below, conversation, wanted + 1),
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
                (as_text(session_id), as_text(block_id)),
            ).fetchone()
            return row and int(row[0])

        return await self._read(job)

    async def save_turn(
        self,
        session_id: str,
        turn: Turn,
        blocks: Sequence[StoredBlock] = (),
        *,
        record: SessionRecord | None = None,
    ) -> None:
        """Upsert a turn, blocks and the record in one step. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = session_number(db, session_id)
            put_turn(db, number, turn)
            put_blocks(db, session_id, blocks)
            if record is not None:
                put_record(db, record)

        await self._write(job)

    async def load_turns(self, session_id: str, *, limit: int, before: int | None = None) -> tuple[Turn, ...]:
        """The newest `limit` turns below `before`, in rising index."""
        below = LARGEST if before is None else bounded(before)

        def job(db: sqlite3.Connection) -> tuple[Turn, ...]:
            rows = db.execute(
                "SELECT turn FROM turns WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND turn_index < ? ORDER BY turn_index DESC LIMIT ?",
                (as_text(session_id), below, bounded(limit)),
            )
            return tuple(decode(TURN, text) for (text,) in rows)[::-1]

        return await self._read(job)

    async def unfinished_turns(self, session_id: str) -> tuple[Turn, ...]:
        """The turns that are queued or running, in rising index."""

        def job(db: sqlite3.Connection) -> tuple[Turn, ...]:
            rows = db.execute(FIND_UNFINISHED_TURNS, (as_text(session_id),))
            return tuple(decode(TURN, text) for (text,) in rows)

        return await self._read(job)

    async def find_turn(self, session_id: str, message_id: str) -> Turn | None:
        """The first turn that a client's `message_id` began, or None."""

        def job(db: sqlite3.Connection) -> Turn | None:
            row = db.execute(
                "SELECT turn FROM turns WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND message_id = ? ORDER BY turn_index LIMIT 1",
                (as_text(session_id), as_text(message_id)),
            ).fetchone()
            return row and decode(TURN, row[0])

        return await self._read(job)

    async def append_transcript(
        self, session_id: str, key: str, offset: int, entries: Sequence[Mapping[str, Any]]
    ) -> None:
        """Append entries; places that exist are left alone. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = session_number(db, session_id)
            db.executemany(
                "INSERT INTO transcript (session, key, place, entry) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session, key, place) DO NOTHING",
                (
                    (number, as_text(key), place, encode_object(entry))
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
                (as_text(session_id),),
            ):
                transcript.setdefault(from_text(key), []).append(decode_object(entry))
            return transcript

        return await self._read(job)

    async def save_files(self, session_id: str, files: Sequence[WorkspaceFile]) -> None:
        """Upsert workspace files by path. Raises `NotFound` (`session_not_found`)."""

        def job(db: sqlite3.Connection) -> None:
            number = session_number(db, session_id)
            db.executemany(
                "INSERT INTO files (session, path, facts, content) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session, path) DO UPDATE SET"
                " facts = excluded.facts, content = excluded.content",
                ((number, as_bytes(file.path), *facts_and_content(file)) for file in files),
            )

        await self._write(job)

    async def delete_files(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove files by path. Unknown paths are ignored."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "DELETE FROM files WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " AND path = ?",
                ((as_text(session_id), as_bytes(path)) for path in paths),
            )

        await self._write(job)

    async def load_manifest(self, session_id: str) -> tuple[WorkspaceFile, ...]:
        """All files, sorted by path, without their content."""

        def job(db: sqlite3.Connection) -> tuple[WorkspaceFile, ...]:
            rows = db.execute(
                "SELECT facts FROM files WHERE session = (SELECT number FROM sessions WHERE session_id = ?)"
                " ORDER BY path",
                (as_text(session_id),),
            )
            return tuple(decode(FILE, facts) for (facts,) in rows)

        return await self._read(job)

    async def load_file(self, session_id: str, path: str) -> WorkspaceFile | None:
        """One file with its content, or None."""

        def job(db: sqlite3.Connection) -> WorkspaceFile | None:
            row = db.execute(
                "SELECT facts, content FROM files"
                " WHERE session = (SELECT number FROM sessions WHERE session_id = ?) AND path = ?",
                (as_text(session_id), as_bytes(path)),
            ).fetchone()
            if row is None:
                return None
            facts, content = row
            file = decode(FILE, facts)
            return file if content is None else file.model_copy(update={"content": from_text(content)})

        return await self._read(job)

    async def save_profile(self, profile: AgentProfile) -> None:
        """Upsert a profile by its id. Not part of the port: this is how a host puts profiles here."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO profiles (profile_id, profile) VALUES (?, ?)"
                " ON CONFLICT (profile_id) DO UPDATE SET profile = excluded.profile",
                (as_text(profile.profile_id), encode(profile)),
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
                "SELECT profile FROM profiles WHERE profile_id = ?", (as_text(profile_id),)
            ).fetchone()
            return row and decode(PROFILE, row[0])

        return await self._read(job)

    def _write(self, job: Job[T]) -> Coroutine[Any, Any, T]:
        if self._writer is None:
            raise closed()
        return self._writer.write(job)

    async def _read(self, job: Job[T]) -> T:
        if self._readers is None:
            raise closed()
        return await self._readers.read(job)
