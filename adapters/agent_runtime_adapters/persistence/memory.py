"""MemoryPersistence: records for as long as the process lives; SQLite's honest twin.

For tests, demos and hosts that want nothing to last. It keeps JSON texts, not objects, so it agrees
with a real store on what comes back, and nothing that a caller does to a value later changes what was
saved. It never blocks and has no threads: each method runs from start to end without a pause,
which is all that atomicity takes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_runtime.blocks import BLOCK
from agent_runtime.errors import Conflict, NotFound, PersistenceFault
from agent_runtime.ports import BlockPage, SessionPage, StoredBlock
from agent_runtime.profile import AgentProfile
from agent_runtime.records import SessionRecord, Turn, WorkspaceFile
from agent_runtime_adapters.persistence.json_rows import (
    FILE,
    PROFILE,
    SESSION,
    TURN,
    UNFINISHED,
    decode,
    decode_object,
    encode,
    encode_object,
    without_content,
)
from agent_runtime_adapters.persistence.paging import (
    LARGEST,
    SessionKey,
    bounded,
    from_cursor,
    session_key,
    to_cursor,
)


@dataclass(slots=True)
class _Kept:
    """All that belongs to one session, as JSON texts."""

    owner: str
    key: SessionKey
    record: str
    has_sandbox: bool
    blocks: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """Block id to index, conversation and block."""
    turns: dict[str, tuple[int, str | None, str]] = field(default_factory=dict)
    """Turn id to index, message id and turn."""
    transcript: dict[str, dict[int, str]] = field(default_factory=dict)
    """Key to place to entry."""
    files: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Path to the file without content, and its content."""
    unfinished_turns: set[str] = field(default_factory=set)

    @property
    def is_unfinished(self) -> bool:
        return self.has_sandbox or bool(self.unfinished_turns)

    def put_record(self, record: SessionRecord, text: str) -> None:
        self.record, self.owner, self.key = text, record.owner, session_key(record)
        self.has_sandbox = record.sandbox is not None

    def put_turn(self, turn: Turn, text: str) -> None:
        self.turns[turn.turn_id] = (turn.index, turn.message_id, text)
        if turn.status in UNFINISHED:
            self.unfinished_turns.add(turn.turn_id)
        else:
            self.unfinished_turns.discard(turn.turn_id)


class MemoryPersistence:
    """`ports.PersistenceAdapter` in dictionaries.

    What was saved lasts as long as the object: a closed one can be opened again, as a file could.
    """

    def __init__(self) -> None:
        self._open = False
        self._sessions: dict[str, _Kept] = {}
        self._profiles: dict[str, str] = {}

    async def open(self) -> None:
        """Begin to answer."""
        self._open = True

    async def close(self) -> None:
        """Answer no more."""
        self._open = False

    async def check(self) -> None:
        """Memory can be written as long as it is there."""
        self._check_open()

    async def create_session(self, record: SessionRecord) -> None:
        """Store a new session. Raises `Conflict` (code `already_exists`) where the id is taken."""
        self._check_open()
        if record.session_id in self._sessions:
            raise Conflict(
                "There is such a session already.", code="already_exists", session_id=record.session_id
            )
        key, has_sandbox = session_key(record), record.sandbox is not None
        self._sessions[record.session_id] = _Kept(record.owner, key, encode(record), has_sandbox)

    async def load_session(self, session_id: str) -> SessionRecord | None:
        """Return the session, or None."""
        kept = self._find(session_id)
        return None if kept is None else decode(SESSION, kept.record)

    async def update_session(self, record: SessionRecord) -> None:
        """Replace the record of an existing session. Raises `NotFound` (`session_not_found`)."""
        self._get(record.session_id).put_record(record, encode(record))

    async def delete_session(self, session_id: str) -> None:
        """Forget the session and all that belongs to it."""
        self._check_open()
        self._sessions.pop(session_id, None)

    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        """The owner's sessions, newest first. Raises `InvalidRequest` (code `invalid_cursor`)."""
        self._check_open()
        wanted = bounded(limit)
        below = (LARGEST, "") if cursor is None else from_cursor(cursor)
        own = (kept for kept in self._sessions.values() if kept.owner == owner and kept.key < below)
        found = sorted(own, key=lambda kept: kept.key, reverse=True)
        page = found[:wanted]
        more = bool(page) and len(found) > wanted
        return SessionPage(
            tuple(decode(SESSION, kept.record) for kept in page), to_cursor(page[-1].key) if more else None
        )

    async def unfinished_sessions(self) -> tuple[SessionRecord, ...]:
        """Sessions with a sandbox in their record, or with a turn that is queued or running."""
        self._check_open()
        return tuple(decode(SESSION, kept.record) for kept in self._sessions.values() if kept.is_unfinished)

    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        """Upsert blocks by id; each keeps its first index. Raises `NotFound` (`session_not_found`)."""
        self._get(session_id).blocks.update(self._rows(session_id, blocks))

    async def load_blocks(
        self, session_id: str, *, limit: int, before: int | None = None, conversation_id: str | None = None
    ) -> BlockPage:
        """The newest `limit` blocks below `before`, oldest first."""
        kept = self._find(session_id)
        wanted = bounded(limit)
        found = sorted(
            (index, text)
            for index, conversation, text in (kept.blocks.values() if kept else ())
            if (before is None or index < before) and conversation_id in (None, conversation)
        )
        page = found[max(0, len(found) - wanted) :]
        blocks = tuple(StoredBlock(index, decode(BLOCK, text)) for index, text in page)
        return BlockPage(blocks, has_more=len(found) > len(page))

    async def block_index(self, session_id: str, block_id: str) -> int | None:
        """The index of a saved block, or None."""
        kept = self._find(session_id)
        return kept.blocks[block_id][0] if kept and block_id in kept.blocks else None

    async def save_turn(
        self,
        session_id: str,
        turn: Turn,
        blocks: Sequence[StoredBlock] = (),
        *,
        record: SessionRecord | None = None,
    ) -> None:
        """Upsert a turn, blocks and the record in one step. Raises `NotFound` (`session_not_found`)."""
        kept = self._get(session_id)
        # First all that can fail, then all that cannot.
        text, rows = encode(turn), self._rows(session_id, blocks)
        record_text = None if record is None else encode(record)
        kept.put_turn(turn, text)
        kept.blocks.update(rows)
        if record is not None and record_text is not None:
            kept.put_record(record, record_text)

    async def load_turns(self, session_id: str, *, limit: int, before: int | None = None) -> tuple[Turn, ...]:
        """The newest `limit` turns below `before`, in rising index."""
        kept = self._find(session_id)
        found = sorted(
            (index, text)
            for index, _, text in (kept.turns.values() if kept else ())
            if before is None or index < before
        )
        return tuple(decode(TURN, text) for _, text in found[max(0, len(found) - bounded(limit)) :])

    async def unfinished_turns(self, session_id: str) -> tuple[Turn, ...]:
        """The turns that are queued or running, in rising index."""
        kept = self._find(session_id)
        found = sorted(kept.turns[turn_id][::2] for turn_id in kept.unfinished_turns) if kept else []
        return tuple(decode(TURN, text) for _, text in found)

    async def find_turn(self, session_id: str, message_id: str) -> Turn | None:
        """The first turn that a client's `message_id` began, or None."""
        kept = self._find(session_id)
        found = sorted(
            (row[0], row[2]) for row in (kept.turns.values() if kept else ()) if row[1] == message_id
        )
        return decode(TURN, found[0][1]) if found else None

    async def append_transcript(
        self, session_id: str, key: str, offset: int, entries: Sequence[Mapping[str, Any]]
    ) -> None:
        """Append entries; places that exist are left alone. Raises `NotFound` (`session_not_found`)."""
        kept = self._get(session_id)
        new = {place: encode_object(entry) for place, entry in enumerate(entries, offset)}
        if new:
            kept.transcript[key] = new | kept.transcript.get(key, {})

    async def load_transcript(self, session_id: str) -> dict[str, list[dict[str, Any]]]:
        """All of the transcript: key to entries in order of place, keys in order."""
        kept = self._find(session_id)
        return {
            key: [decode_object(entries[place]) for place in sorted(entries)]
            for key, entries in sorted(kept.transcript.items() if kept else ())
        }

    async def save_files(self, session_id: str, files: Sequence[WorkspaceFile]) -> None:
        """Upsert workspace files by path. Raises `NotFound` (`session_not_found`)."""
        new = {file.path: (encode(without_content(file)), file.content) for file in files}
        self._get(session_id).files.update(new)

    async def delete_files(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove files by path. Unknown paths are ignored."""
        kept = self._find(session_id)
        if kept is not None:
            for path in paths:
                kept.files.pop(path, None)

    async def load_manifest(self, session_id: str) -> tuple[WorkspaceFile, ...]:
        """All files, sorted by path, without their content."""
        kept = self._find(session_id)
        return tuple(decode(FILE, facts) for _, (facts, _) in sorted(kept.files.items() if kept else ()))

    async def load_file(self, session_id: str, path: str) -> WorkspaceFile | None:
        """One file with its content, or None."""
        kept = self._find(session_id)
        if kept is None or path not in kept.files:
            return None
        facts, content = kept.files[path]
        return decode(FILE, facts).model_copy(update={"content": content})

    async def save_profile(self, profile: AgentProfile) -> None:
        """Upsert a profile by its id. Not part of the port: this is how a host puts profiles here."""
        self._check_open()
        self._profiles[profile.profile_id] = encode(profile)

    async def list_profiles(self) -> tuple[AgentProfile, ...]:
        """The profiles that were saved here, sorted by id."""
        self._check_open()
        return tuple(decode(PROFILE, text) for _, text in sorted(self._profiles.items()))

    async def load_profile(self, profile_id: str) -> AgentProfile | None:
        """One profile, or None."""
        self._check_open()
        text = self._profiles.get(profile_id)
        return None if text is None else decode(PROFILE, text)

    def _check_open(self) -> None:
        if not self._open:
            raise PersistenceFault("The store is not open.", retryable=False)

    def _find(self, session_id: str) -> _Kept | None:
        self._check_open()
        return self._sessions.get(session_id)

    def _get(self, session_id: str) -> _Kept:
        kept = self._find(session_id)
        if kept is None:
            raise NotFound.session(session_id)
        return kept

    def _rows(self, session_id: str, blocks: Sequence[StoredBlock]) -> dict[str, tuple[int, str, str]]:
        known = self._get(session_id).blocks
        rows: dict[str, tuple[int, str, str]] = {}
        for stored in blocks:
            block = stored.block
            first = rows.get(block.id) or known.get(block.id)
            index = first[0] if first else stored.index
            rows[block.id] = (index, block.conversation_id, encode(block))
        return rows
