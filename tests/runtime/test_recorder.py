"""The recorder: whatever becomes of the store, nothing is dropped and nothing comes out of order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_runtime.blocks import AssistantText, BlockState
from agent_runtime.conversation import Conversation
from agent_runtime.errors import InvalidRequest, PersistenceFault
from agent_runtime.events import BlockComplete, BlockStart, MetadataUpdate, TextDelta
from agent_runtime.ports import StoredBlock
from agent_runtime.recorder import Recorder
from agent_runtime.records import SessionRecord, Turn, TurnStatus, WorkspaceFile
from agent_runtime.workspace import file_of
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.faults import FaultyPersistence
from tests.waiting import eventually

AT = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[Recorder, FaultyPersistence]]:
    """A recorder with a session of its own; nothing is saved unless the story does it."""
    store = FaultyPersistence(MemoryPersistence())
    await store.open()
    record = SessionRecord(
        session_id="s",
        owner="anna",
        architecture="scripted",
        agent_profile_reference="p",
        created_at=AT,
        last_activity=AT,
    )
    await store.create_session(record)
    log = MemoryEventLog()
    yield (
        Recorder(
            record,
            Conversation(),
            files=(),
            position=await log.head("s"),
            log=log,
            persistence=store,
            sync_interval_s=0.001,
            page=50,
        ),
        store,
    )
    assert store.most_at_once <= 1


def text(block_id: str, content: str = "words") -> BlockComplete:
    return BlockComplete(block_id=block_id, block=AssistantText(id=block_id, timestamp=AT, content=content))


def file(path: str, content: bytes = b"x") -> WorkspaceFile:
    return file_of(path, content, modified_at=AT)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def stored_blocks(store: FaultyPersistence) -> list[str]:
    page = await store.inner.load_blocks("s", limit=10_000)
    return [stored.block.id for stored in page.blocks]


async def test_what_is_published_is_in_the_log_and_in_the_fold() -> None:
    async with recording() as (recorder, _):
        block = AssistantText(id="b", timestamp=AT, state=BlockState.STREAMING)
        await recorder.publish([BlockStart(block=block)])
        await recorder.publish([TextDelta(block_id="b", delta=piece) for piece in "abc"])
        assert recorder.position.seq == 2, "what arrived at once is one event"
        ((seen,), _) = recorder.conversation.blocks(5)
        assert isinstance(seen, AssistantText)
        assert seen.content == "abc"
        await recorder.publish([])
        assert recorder.position.seq == 2


async def test_totals_are_kept_until_others_are_told() -> None:
    async with recording() as (recorder, _):
        await recorder.publish([MetadataUpdate(cost_usd=1.5, model="m")])
        await recorder.publish([MetadataUpdate(context_tokens=7)])
        assert (recorder.record.model, recorder.record.context_tokens) == ("m", 7)
        assert recorder.record.cost_usd is None, "it belongs to a turn that has not ended"


async def test_a_write_that_is_cancelled_in_the_middle_is_made_again() -> None:
    async with recording() as (recorder, store):
        await recorder.publish([text("a")])
        recorder.file_changed(file("f"), deleted=False)
        recorder.transcript_grew("main", [{"n": 1}], size_bytes=10)
        for method in ("save_blocks", "save_files", "append_transcript"):
            store.only = {method}
            store.hold()
            async with asyncio.TaskGroup() as tasks:
                flushing = tasks.create_task(recorder.flush())
                await eventually(lambda: store.calls[-1] == method)  # noqa: B023
                recorder.transcript_grew("main", [{"n": len(method)}], size_bytes=10)
                await cancelled(flushing)
            store.let_go()
        store.only = None
        await recorder.flush()
        assert await stored_blocks(store) == ["a"]
        assert [each.path for each in await store.inner.load_manifest("s")] == ["f"]
        numbers = [entry["n"] for entry in (await store.inner.load_transcript("s"))["main"]]
        assert numbers == [1, len("save_blocks"), len("save_files"), len("append_transcript")]


async def test_a_cancelled_write_is_made_again_without_anybody_asking() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        syncing = tasks.create_task(recorder.keep_in_sync())
        await asyncio.sleep(0)
        store.down = True
        recorder.file_changed(file("f"), deleted=False)
        await recorder.publish([text("a")])
        asked = tasks.create_task(recorder.flush())
        await eventually(lambda: recorder.calls.failing)
        await cancelled(asked)
        store.down = False
        await eventually(lambda: "save_files" in store.calls and not recorder.calls.failing)
        assert await stored_blocks(store) == ["a"]
        syncing.cancel()


async def test_a_cancelled_write_does_not_leave_the_session_closed_to_messages() -> None:
    async with recording() as (recorder, store):
        store.down = True
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(recorder.update_record(name="new"))
            await eventually(lambda: recorder.calls.failing)
            await cancelled(writing)
        assert not recorder.calls.failing
        store.down = False
        await recorder.update_record(metadata={"k": "v"})
        kept = await store.inner.load_session("s")
        assert (kept.name, kept.metadata) == ("new", {"k": "v"})


async def test_while_the_store_is_down_everything_is_kept_and_tried_again() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        store.down = True
        for number in range(3):
            await recorder.publish([text(f"b{number}")])
            recorder.file_changed(file(f"f{number}"), deleted=False)
            recorder.transcript_grew("main", [{"n": number}], size_bytes=10)
        flushing = tasks.create_task(recorder.flush())
        await eventually(lambda: recorder.calls.failing and store.refused >= 2)
        await recorder.publish([text("b3")])
        recorder.transcript_grew("main", [{"n": 3}], size_bytes=10)
        store.down = False
        await flushing
        await recorder.flush()
        assert not recorder.calls.failing
        assert await stored_blocks(store) == ["b0", "b1", "b2", "b3"]
        kept = await store.inner.load_transcript("s")
        assert [entry["n"] for entry in kept["main"]] == [0, 1, 2, 3]


async def test_blocks_that_are_not_stored_yet_are_not_let_go() -> None:
    """The store is down while far more blocks come than are held for viewers."""
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        await recorder.publish([text("first")])
        store.hold()
        flushing = tasks.create_task(recorder.flush())
        await eventually(lambda: "save_blocks" in store.calls)
        await recorder.publish([text(f"b{number}") for number in range(1000)])
        store.let_go()
        await flushing
        await recorder.flush()
        assert await stored_blocks(store) == ["first", *(f"b{number}" for number in range(1000))]
        held, has_more = recorder.conversation.blocks(10_000)
        assert has_more
        assert len(held) < 1000


async def test_of_a_file_the_newest_wins_whatever_fails_in_between() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        recorder.file_changed(file("f", b"old"), deleted=False)
        recorder.file_changed(file("gone"), deleted=False)
        store.hold()
        flushing = tasks.create_task(recorder.flush())
        await eventually(lambda: "save_files" in store.calls)
        recorder.file_changed(file("f", b"new"), deleted=False)
        recorder.file_changed(file("gone"), deleted=True)
        await cancelled(flushing)
        store.let_go()
        await recorder.flush()
        kept = await store.inner.load_file("s", "f")
        assert kept.content == "new"
        assert await store.inner.load_file("s", "gone") is None
        assert sorted(recorder.files) == ["f"]


async def test_a_transcript_goes_on_where_the_store_has_it() -> None:
    async with recording() as (recorder, store):
        await store.append_transcript("s", "main", 0, [{"n": 0}, {"n": 1}])
        recorder.transcript_stored({"main": 2})
        recorder.transcript_grew("main", [{"n": 2}], size_bytes=10)
        recorder.transcript_grew("subagents/x", [{"n": 9}], size_bytes=10)
        await recorder.flush()
        recorder.transcript_grew("main", [{"n": 3}], size_bytes=10)
        await recorder.flush()
        assert await store.inner.load_transcript("s") == {
            "main": [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}],
            "subagents/x": [{"n": 9}],
        }


class Picky(MemoryPersistence):
    """Takes no block whose id is `bad`."""

    def __init__(self, like: MemoryPersistence) -> None:
        super().__init__()
        self._sessions, self._open = like._sessions, True

    async def save_blocks(self, session_id: str, blocks: Any) -> None:
        self._look_at(blocks)
        await super().save_blocks(session_id, blocks)

    async def save_turn(self, session_id: str, turn: Turn, blocks: Any = (), **named: Any) -> None:
        self._look_at(blocks)
        await super().save_turn(session_id, turn, blocks, **named)

    @staticmethod
    def _look_at(blocks: Any) -> None:
        if any(stored.block.id == "bad" for stored in blocks):
            raise InvalidRequest("cannot be written", code="unstorable_value")


async def test_a_block_that_no_store_can_take_costs_no_other() -> None:
    async with recording() as (recorder, store):
        store.inner = Picky(store.inner)
        await recorder.publish([text("a"), text("bad"), text("c")])
        await recorder.flush()
        assert await stored_blocks(store) == ["a", "c"]
        assert not recorder.calls.failing


async def test_a_session_that_was_deleted_needs_no_saving() -> None:
    async with recording() as (recorder, store):
        await recorder.publish([text("a")])
        recorder.file_changed(file("f"), deleted=False)
        recorder.transcript_grew("main", [{"n": 1}], size_bytes=10)
        await store.delete_session("s")
        await recorder.flush()
        await recorder.update_record(name="x")
        assert await store.inner.load_session("s") is None


async def test_one_call_more_is_told_when_the_store_is_down() -> None:
    async with recording() as (recorder, store):
        store.down = True
        with pytest.raises(PersistenceFault):
            await recorder.calls.once(lambda: store.load_session("s"))
        assert not recorder.calls.failing


async def test_records_of_one_block_never_change_its_place() -> None:
    async with recording() as (recorder, store):
        await recorder.publish([text("a"), text("b")])
        await recorder.flush()
        await recorder.publish([text("a", "again")])
        await recorder.flush()
        page = await store.inner.load_blocks("s", limit=9)
        first = AssistantText(id="a", timestamp=AT, content="again")
        assert page.blocks[0] == StoredBlock(0, first)


ENDED = Turn(turn_id="t", index=0, status=TurnStatus.COMPLETED, started_at=AT)


async def test_a_turns_end_waits_for_the_write_under_way_and_for_its_own_alone() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        syncing = tasks.create_task(recorder.keep_in_sync())
        store.calls.clear()
        store.hold()
        await recorder.publish([text("first")])
        await eventually(lambda: store.calls)
        await recorder.publish([text("second"), text("third")])
        ending = tasks.create_task(recorder.save_end(ENDED, cost_usd=1.5))
        store.let_go()
        await ending
        assert store.calls == ["save_blocks", "save_turn"]
        assert (await store.inner.load_session("s")).cost_usd == 1.5
        kept = await store.inner.load_blocks("s", limit=10)
        assert [each.block.id for each in kept.blocks] == ["first", "second", "third"]
        assert not recorder.dirty
        syncing.cancel()


async def test_a_turn_ends_whose_last_block_no_store_can_take() -> None:
    async with recording() as (recorder, store):
        await recorder.publish([text("good"), text("bad"), text("better")])
        store.inner = Picky(store.inner)
        await recorder.save_end(ENDED)
        kept = await store.inner.load_blocks("s", limit=10)
        assert [each.block.id for each in kept.blocks] == ["good", "better"]
        assert (await store.inner.load_turns("s", limit=1))[0].status is TurnStatus.COMPLETED


async def test_an_end_that_was_broken_off_leaves_all_that_is_to_be_saved() -> None:
    async with recording() as (recorder, store), asyncio.TaskGroup() as tasks:
        await recorder.publish([text("one")])
        recorder.note(agent_session_id="a")
        store.hold()
        ending = tasks.create_task(recorder.save_end(ENDED))
        await eventually(lambda: "save_turn" in store.calls)
        ending.cancel()
        await asyncio.wait([ending])
        store.let_go()
        await recorder.flush()
        assert (await store.inner.load_session("s")).agent_session_id == "a"
        assert len((await store.inner.load_blocks("s", limit=10)).blocks) == 1


async def test_between_turns_a_session_holds_a_page_and_the_store_has_the_rest() -> None:
    async with recording() as (recorder, store):
        await recorder.publish([text(str(number)) for number in range(60)])
        await recorder.flush()
        assert len(recorder.conversation.blocks(100)[0]) == 60
        await recorder.save_end(ENDED)
        held, has_more = recorder.conversation.blocks(100)
        assert ([block.id for block in held], has_more) == ([str(number) for number in range(10, 60)], True)
        older = await store.inner.load_blocks("s", limit=100, before=10)
        assert [each.block.id for each in older.blocks] == [str(number) for number in range(10)]
        await recorder.publish([text("next")])
        assert recorder.conversation.stored(["next"])[0].index == 60
