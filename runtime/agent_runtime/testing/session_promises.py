"""What a store promises about sessions and blocks; a part of `persistence_contract`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from itertools import product

from agent_runtime.errors import Conflict, InvalidRequest
from agent_runtime.ports import PersistenceAdapter, StoredBlock
from agent_runtime.records import SandboxRef, TurnStatus
from agent_runtime.testing import samples
from agent_runtime.testing.stories import refused, story

SID = "session-1"
SANDBOX = SandboxRef(sandbox_id="", provider="local", isolation="none", started_at=samples.NOON)
"""A provider may call it what it likes."""

_OPEN = frozenset({TurnStatus.QUEUED, TurnStatus.RUNNING})
_STATUSES = (None, *TurnStatus)


class Promises:
    """What all parts of the contract need."""

    def adapter(self) -> AbstractAsyncContextManager[PersistenceAdapter]:
        """An opened, empty adapter; called once per test. This is what a host provides."""
        raise NotImplementedError


class SessionPromises(Promises):
    """Sessions: records, owners, lists."""

    @story
    async def test_a_session_comes_back_as_it_was_saved(self, store: PersistenceAdapter) -> None:
        """Every field of it, and the barest."""
        full, bare = samples.full_session("full"), samples.session("bare")
        await store.create_session(full)
        await store.create_session(bare)
        assert await store.load_session("full") == full
        assert await store.load_session("bare") == bare

    @story
    async def test_a_taken_session_id_is_a_conflict(self, store: PersistenceAdapter) -> None:
        """And the session that was there stays as it was."""
        await store.create_session(samples.session(SID))
        await refused(store.create_session(samples.session(SID, owner="mallory")), Conflict, "already_exists")
        assert await store.load_session(SID) == samples.session(SID)

    @story
    async def test_an_update_replaces_the_record_and_may_be_repeated(self, store: PersistenceAdapter) -> None:
        """Fields that are gone from the new record are gone from the store."""
        await store.create_session(samples.full_session(SID))
        for _ in range(2):
            await store.update_session(samples.session(SID, name="new"))
            assert await store.load_session(SID) == samples.session(SID, name="new")

    @story
    async def test_owners_see_their_own_sessions_only(self, store: PersistenceAdapter) -> None:
        """Also after a session changed hands."""
        for index, owner in enumerate(("ada", "bob", "ada", "Ada", "ad%")):
            await store.create_session(samples.session(f"s{index}", owner=owner))
        assert await _ids(store, "ada") == ["s2", "s0"]
        assert await _ids(store, "bob") == ["s1"]
        assert await _ids(store, "Ada") == ["s3"]
        assert await _ids(store, "ad%") == ["s4"]
        await store.update_session(samples.session("s0", owner="bob"))
        assert await _ids(store, "ada") == ["s2"]
        assert await _ids(store, "bob") == ["s1", "s0"]

    @story
    async def test_sessions_are_listed_newest_first_page_by_page(self, store: PersistenceAdapter) -> None:
        """Ties go by id downward; a page never ends with an empty one behind it."""
        ages = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
        for index, age in enumerate(ages):
            at = samples.NOON - timedelta(milliseconds=age)
            await store.create_session(samples.session(f"s{index}", created_at=at))
        order = sorted(range(len(ages)), key=lambda index: (ages[index], -index))
        expected = [f"s{index}" for index in order]
        for limit in (1, 3, 5, 10, 11):
            assert await _ids(store, "ada", limit) == expected, f"pages of {limit}"

    @story
    async def test_sessions_that_come_and_go_between_pages_disturb_no_other(
        self, store: PersistenceAdapter
    ) -> None:
        """Even when the session that the cursor stands on is deleted."""
        for index in range(6):
            at = samples.NOON + timedelta(seconds=index)
            await store.create_session(samples.session(f"s{index}", created_at=at))
        first = await store.list_sessions("ada", limit=3)
        assert [record.session_id for record in first.sessions] == ["s5", "s4", "s3"]
        await store.delete_session("s3")
        await store.delete_session("s5")
        await store.create_session(samples.session("s9", created_at=samples.NOON + timedelta(hours=1)))
        second = await store.list_sessions("ada", limit=3, cursor=first.next_cursor)
        assert [record.session_id for record in second.sessions] == ["s2", "s1", "s0"]
        assert second.next_cursor is None

    @story
    async def test_a_cursor_that_is_none_is_refused(self, store: PersistenceAdapter) -> None:
        """A client may send anything."""
        await store.create_session(samples.session(SID))
        for cursor in ("", "x", "%%%", "🦊", "0", "null", "czE6", "A" * 100_000, "\udcff", "s1:1:session-1"):
            await refused(
                store.list_sessions("ada", limit=1, cursor=cursor), InvalidRequest, "invalid_cursor"
            )


class UnfinishedPromises(Promises):
    """What a starting runtime has to take up again, and nothing else."""

    @story
    async def test_sessions_with_a_sandbox_or_an_open_turn_are_unfinished(
        self, store: PersistenceAdapter
    ) -> None:
        """Of all owners; each once, whatever of the two it has and how often."""
        assert await store.unfinished_sessions() == ()
        expected = set()
        for number, (sandbox, *statuses) in enumerate(product((None, SANDBOX), _STATUSES, _STATUSES)):
            record = samples.session(sid := f"s{number}", owner=f"o{number % 3}", sandbox=sandbox)
            await store.create_session(record)
            for index, status in enumerate(statuses):
                if status is not None:
                    await store.save_turn(sid, samples.turn(index, status=status))
            if sandbox or _OPEN.intersection(statuses):
                expected.add(sid)
        found = await store.unfinished_sessions()
        assert len(found) == len(expected)
        assert {record.session_id for record in found} == expected

    @story
    async def test_turns_that_are_not_over_are_found_behind_many_that_are(
        self, store: PersistenceAdapter
    ) -> None:
        """In rising index, those of this session only, and as they stand."""
        for sid in (SID, "other"):
            await store.create_session(samples.session(sid))
            assert await store.unfinished_turns(sid) == ()
        await store.save_turn("other", samples.turn(status=TurnStatus.RUNNING))
        await store.save_turn(SID, waiting := samples.turn(7, status=TurnStatus.QUEUED))
        await store.save_turn(SID, samples.turn(2, status=TurnStatus.QUEUED))
        for index in range(8, 150):
            await store.save_turn(SID, samples.turn(index, status=TurnStatus.COMPLETED))
        await store.save_turn(SID, running := samples.turn(2, status=TurnStatus.RUNNING))
        assert await store.unfinished_turns(SID) == (running, waiting)
        await store.save_turn(SID, samples.turn(2, status=TurnStatus.FAILED))
        assert await store.unfinished_turns(SID) == (waiting,)
        assert await store.unfinished_turns("nobody") == ()

    @story
    async def test_a_session_is_unfinished_for_as_long_as_it_is_so(self, store: PersistenceAdapter) -> None:
        """Turns begin and end, sandboxes come and go; the record is the newest one."""
        await store.create_session(samples.session(SID))
        for status, unfinished in (
            (TurnStatus.QUEUED, True),
            (TurnStatus.RUNNING, True),
            (TurnStatus.COMPLETED, False),
            (TurnStatus.RUNNING, True),
            (TurnStatus.CANCELLED, False),
        ):
            await store.save_turn(SID, samples.turn(status=status))
            assert await store.unfinished_sessions() == (samples.session(SID),) * unfinished
        with_sandbox = samples.full_session(SID)
        await store.update_session(with_sandbox)
        assert await store.unfinished_sessions() == (with_sandbox,)
        ended = samples.turn(1, status=TurnStatus.FAILED)
        await store.save_turn(SID, ended, record=samples.session(SID, name="asleep"))
        assert await store.unfinished_sessions() == ()
        await store.save_turn(SID, ended, record=with_sandbox)
        assert await store.unfinished_sessions() == (with_sandbox,)

    @story
    async def test_a_deleted_session_is_finished(self, store: PersistenceAdapter) -> None:
        """Also when a new one has its id."""
        await store.create_session(samples.session(SID, sandbox=SANDBOX))
        await store.create_session(samples.session("other"))
        for sid in (SID, "other"):
            await store.save_turn(sid, samples.turn(status=TurnStatus.RUNNING))
        await store.delete_session(SID)
        assert await store.unfinished_sessions() == (samples.session("other"),)
        await store.create_session(samples.session(SID))
        assert await store.unfinished_sessions() == (samples.session("other"),)


class BlockPromises(Promises):
    """Blocks: upserts, places, pages."""

    @story
    async def test_a_block_of_every_kind_comes_back(self, store: PersistenceAdapter) -> None:
        """With every field, odd text, opaque values with their own key names, pictures."""
        await store.create_session(samples.session(SID))
        blocks = samples.stored(*samples.every_block())
        await store.save_blocks(SID, blocks)
        page = await store.load_blocks(SID, limit=100)
        for saved, loaded in zip(blocks, page.blocks, strict=True):
            assert loaded == saved, f"{saved.block.type} changed"
        assert not page.has_more

    @story
    async def test_a_block_saved_again_is_replaced_in_its_first_place(
        self, store: PersistenceAdapter
    ) -> None:
        """Streaming, then complete; repeating a save changes nothing."""
        await store.create_session(samples.session(SID))
        await store.save_blocks(SID, samples.stored(samples.text("a", "old"), samples.text("b")))
        for _ in range(2):
            await store.save_blocks(SID, [StoredBlock(7, samples.text("a", "new"))])
            page = await store.load_blocks(SID, limit=10)
            assert page.blocks == (
                StoredBlock(0, samples.text("a", "new")),
                StoredBlock(1, samples.text("b")),
            )
        assert await store.block_index(SID, "a") == 0
        assert await store.block_index(SID, "c") is None

    @story
    async def test_a_block_twice_in_one_call_is_one_block(self, store: PersistenceAdapter) -> None:
        """The last one counts, in the first one's place."""
        await store.create_session(samples.session(SID))
        await store.save_blocks(SID, samples.stored(samples.text("a", "old"), samples.text("a", "new")))
        page = await store.load_blocks(SID, limit=10)
        assert page.blocks == (StoredBlock(0, samples.text("a", "new")),)

    @story
    async def test_the_same_block_id_in_two_sessions_is_two_blocks(self, store: PersistenceAdapter) -> None:
        """Agents choose ids; sessions do not meet."""
        for sid in ("one", "two"):
            await store.create_session(samples.session(sid))
            await store.save_blocks(sid, samples.stored(samples.text("a", sid)))
        for sid in ("one", "two"):
            page = await store.load_blocks(sid, limit=10)
            assert page.blocks == (StoredBlock(0, samples.text("a", sid)),)

    @story
    async def test_blocks_are_paged_backwards_while_new_ones_arrive(self, store: PersistenceAdapter) -> None:
        """Each page is in rising order; together they are all that was there at the beginning."""
        await store.create_session(samples.session(SID))
        await store.save_blocks(SID, samples.stored(*(samples.text(f"b{n}") for n in range(10))))
        seen: list[int] = []
        before: int | None = None
        arriving = 10
        while True:
            page = await store.load_blocks(SID, limit=3, before=before)
            seen = [found.index for found in page.blocks] + seen
            if not page.has_more:
                break
            before = page.blocks[0].index
            await store.save_blocks(SID, samples.stored(samples.text(f"new{arriving}"), start=arriving))
            arriving += 1
        assert seen == list(range(10))
        assert (await store.load_blocks(SID, limit=10, before=0)).blocks == ()

    @story
    async def test_one_conversation_is_paged_without_the_others(self, store: PersistenceAdapter) -> None:
        """`has_more` speaks of that conversation."""
        await store.create_session(samples.session(SID))
        names = ["main", "agent-1", "main", "agent-1", "main"]
        await store.save_blocks(
            SID,
            samples.stored(*(samples.text(f"b{n}", conversation_id=name) for n, name in enumerate(names))),
        )
        page = await store.load_blocks(SID, limit=2, conversation_id="main")
        assert [found.index for found in page.blocks] == [2, 4]
        assert page.has_more
        page = await store.load_blocks(SID, limit=2, before=2, conversation_id="main")
        assert [found.index for found in page.blocks] == [0]
        assert not page.has_more
        page = await store.load_blocks(SID, limit=9, conversation_id="agent-1")
        assert [found.index for found in page.blocks] == [1, 3]
        assert (await store.load_blocks(SID, limit=9, conversation_id="agent-2")).blocks == ()


async def _ids(store: PersistenceAdapter, owner: str, limit: int = 100) -> list[str]:
    """The ids of all of an owner's sessions, read page by page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list_sessions(owner, limit=limit, cursor=cursor)
        assert page.sessions or cursor is None, "an empty page came after a cursor"
        assert len(page.sessions) <= limit
        found += [record.session_id for record in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            return found
