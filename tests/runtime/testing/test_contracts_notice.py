"""The shipped suites notice stores and logs that break a promise."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent_runtime.events import Event, Gap, LogEntry, Position, Replay
from agent_runtime.ports import BlockPage, EventLog, PersistenceAdapter, SessionPage, StoredBlock
from agent_runtime.records import SessionRecord, Turn, WorkspaceFile
from agent_runtime.testing.log_contract import BOUND_BYTES, EventLogContract
from agent_runtime.testing.persistence_contract import PersistenceContract
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence


class DeletesTheRecordOnly(MemoryPersistence):
    left: tuple[str, tuple[StoredBlock, ...]] = ("", ())

    async def delete_session(self, session_id: str) -> None:
        blocks = (await self.load_blocks(session_id, limit=100)).blocks
        await super().delete_session(session_id)
        self.left = (session_id, blocks) if blocks else self.left

    async def create_session(self, record: SessionRecord) -> None:
        await super().create_session(record)
        session_id, blocks = self.left
        if session_id == record.session_id:
            await super().save_blocks(session_id, blocks)


class TakesTheLastIndex(MemoryPersistence):
    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        kept = (await self.load_blocks(session_id, limit=10**6)).blocks
        record = await self.load_session(session_id)
        ids = {stored.block.id for stored in blocks}
        if record is not None and ids & {stored.block.id for stored in kept}:
            await super().delete_session(session_id)
            await super().create_session(record)
            await super().save_blocks(session_id, [found for found in kept if found.block.id not in ids])
        await super().save_blocks(session_id, blocks)


class SavesInTwoSteps(MemoryPersistence):
    async def save_turn(self, session_id: str, turn: Turn, blocks: Sequence[StoredBlock] = ()) -> None:
        await super().save_turn(session_id, turn)
        await asyncio.sleep(0)  # as a round trip to a server would
        await super().save_blocks(session_id, blocks)


class PagesByCount(MemoryPersistence):
    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        start = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else 0
        everything = (await super().list_sessions(owner, limit=10**6)).sessions
        more = start + limit < len(everything)
        return SessionPage(everything[start : start + limit], str(start + limit) if more else None)


class ShowsEverybody(MemoryPersistence):
    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        return await super().list_sessions(owner.lower(), limit=limit, cursor=cursor)


class AlwaysHasMore(MemoryPersistence):
    async def load_blocks(self, session_id: str, **options: Any) -> BlockPage:
        page = await super().load_blocks(session_id, **options)
        return dataclasses.replace(page, has_more=bool(page.blocks))


class OverwritesTheTranscript(MemoryPersistence):
    async def append_transcript(
        self, session_id: str, key: str, offset: int, entries: Sequence[Mapping[str, Any]]
    ) -> None:
        before = (await self.load_transcript(session_id)).get(key, [])
        await super().append_transcript(session_id, key, max(offset, len(before)), entries)


class ShowsContentInTheManifest(MemoryPersistence):
    async def load_manifest(self, session_id: str) -> tuple[WorkspaceFile, ...]:
        files = [
            await self.load_file(session_id, file.path) for file in await super().load_manifest(session_id)
        ]
        return tuple(file for file in files if file is not None)


class CleansPaths(MemoryPersistence):
    async def save_files(self, session_id: str, files: Sequence[WorkspaceFile]) -> None:
        cleaned = [
            file.model_copy(update={"path": file.path.encode("utf-8", "replace").decode()}) for file in files
        ]
        await super().save_files(session_id, cleaned)


STORES = [
    DeletesTheRecordOnly,
    TakesTheLastIndex,
    SavesInTwoSteps,
    PagesByCount,
    ShowsEverybody,
    AlwaysHasMore,
    OverwritesTheTranscript,
    ShowsContentInTheManifest,
    CleansPaths,
]


class CallsAGapNothing(MemoryEventLog):
    async def since(self, session_id: str, after: Position) -> Replay | Gap:
        answer = await super().since(session_id, after)
        return Replay((), answer.head) if isinstance(answer, Gap) else answer


class LeavesAHole(MemoryEventLog):
    async def since(self, session_id: str, after: Position) -> Replay | Gap:
        answer = await super().since(session_id, after)
        if isinstance(answer, Replay) and len(answer.entries) > 2:
            return Replay(answer.entries[:1] + answer.entries[2:], answer.head)
        return answer


class KeepsItsEpoch(MemoryEventLog):
    async def drop(self, session_id: str) -> None:
        del session_id


class KeepsEverything(MemoryEventLog):
    def __init__(self, *, max_bytes_per_session: int) -> None:
        super().__init__(max_bytes_per_session=max_bytes_per_session * 1000)


class TakesEventsOneByOne(MemoryEventLog):
    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        entries: tuple[LogEntry, ...] = ()
        for event in events:
            entries += await super().append(session_id, [event])
            await asyncio.sleep(0)  # as a round trip to a server would
        return entries


LOGS = [CallsAGapNothing, LeavesAHole, KeepsItsEpoch, KeepsEverything, TakesEventsOneByOne]


def stories(suite: type) -> Iterator[str]:
    return (name for name in dir(suite) if name.startswith("test_"))


def broken(suite: object) -> list[str]:
    """The promises that were found broken."""
    found = []
    for name in stories(type(suite)):
        try:
            getattr(suite, name)()
        except Exception:
            found.append(name)
    return found


@pytest.mark.parametrize("flawed", STORES, ids=lambda flawed: flawed.__name__)
def test_a_flawed_store_is_found_out(flawed: type[MemoryPersistence]) -> None:
    class Suite(PersistenceContract):
        @asynccontextmanager
        async def adapter(self) -> AsyncIterator[PersistenceAdapter]:
            store = flawed()
            await store.open()
            yield store

    assert 1 <= len(broken(Suite())) <= 8


@pytest.mark.parametrize("flawed", LOGS, ids=lambda flawed: flawed.__name__)
def test_a_flawed_log_is_found_out(flawed: type[MemoryEventLog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.testing.stories.STORY_BOUND_S", 2.0)

    class Suite(EventLogContract):
        @asynccontextmanager
        async def adapter(self) -> AsyncIterator[EventLog]:
            yield flawed(max_bytes_per_session=BOUND_BYTES)

    assert 1 <= len(broken(Suite())) <= 8


def test_a_suite_without_an_adapter_fails_every_story() -> None:
    assert broken(PersistenceContract()) == list(stories(PersistenceContract))
