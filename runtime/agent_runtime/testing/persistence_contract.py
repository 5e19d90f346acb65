"""PersistenceContract: is your `PersistenceAdapter` right? Derive from it and let pytest tell you.

    class TestMyStore(PersistenceContract):
        @asynccontextmanager
        async def adapter(self):
            store = MyStore(...)          # empty
            await store.open()
            try:
                yield store
            finally:
                await store.close()

Each method is one promise of `ports.PersistenceAdapter`, tested through the port alone. What a suite
cannot see from outside (that data survives a crash of your database, say) stays yours to test. For
readable failures: `pytest.register_assert_rewrite("agent_runtime.testing.persistence_contract")`.
"""

from __future__ import annotations

import asyncio

from agent_runtime.errors import NotFound
from agent_runtime.ports import PersistenceAdapter, SessionPage
from agent_runtime.profile import AgentProfile
from agent_runtime.testing import samples
from agent_runtime.testing.content_promises import FilePromises, TranscriptPromises, TurnPromises
from agent_runtime.testing.session_promises import SID, BlockPromises, SessionPromises, UnfinishedPromises
from agent_runtime.testing.stories import refused, story


class PersistenceContract(
    SessionPromises, UnfinishedPromises, BlockPromises, TurnPromises, TranscriptPromises, FilePromises
):
    """The promises of `ports.PersistenceAdapter`; those that concern all of it are here."""

    async def keep_profile(self, store: PersistenceAdapter, profile: AgentProfile) -> bool:
        """Put a profile into the store in the host's own way; False where it keeps none there."""
        del store, profile
        return False

    @story
    async def test_reading_what_is_absent_is_empty_and_no_error(self, store: PersistenceAdapter) -> None:
        """The runtime asks first and decides then."""
        for sid in ("nobody", "", "\udcff", "' OR 1=1 --"):
            await _check_empty(store, sid)
        assert await store.list_sessions("nobody", limit=10) == SessionPage((), None)
        assert await store.load_profile("nobody") is None

    @story
    async def test_a_check_changes_nothing_and_may_be_made_at_any_time(
        self, store: PersistenceAdapter
    ) -> None:
        """Beside other writes too."""
        await store.create_session(samples.session(SID))
        await asyncio.gather(*(store.check() for _ in range(10)), store.save_files(SID, [samples.file()]))
        await store.check()
        assert await store.load_session(SID) == samples.session(SID)
        assert await store.load_file(SID, "a.txt") == samples.file()

    @story
    async def test_nothing_is_saved_for_an_unknown_session(self, store: PersistenceAdapter) -> None:
        """So a deleted session cannot come back by a late write."""
        code = "session_not_found"
        await refused(store.update_session(samples.session(SID)), NotFound, code)
        await refused(store.save_blocks(SID, samples.stored(samples.text())), NotFound, code)
        await refused(store.save_turn(SID, samples.turn(), samples.stored(samples.text())), NotFound, code)
        with_record = store.save_turn(SID, samples.turn(), record=samples.session(SID))
        await refused(with_record, NotFound, code)
        await refused(store.append_transcript(SID, "main", 0, [{"a": 1}]), NotFound, code)
        await refused(store.save_files(SID, [samples.file()]), NotFound, code)
        await store.delete_files(SID, ["a.txt"])
        await _check_empty(store, SID)
        assert await store.unfinished_sessions() == ()
        await store.create_session(samples.session(SID))
        assert (await store.load_blocks(SID, limit=10)).blocks == ()

    @story
    async def test_deleting_a_session_removes_all_of_it_and_nothing_else(
        self, store: PersistenceAdapter
    ) -> None:
        """For ever: a new session of the same id is empty. Twice is as good as once."""
        await _fill(store, SID)
        await _fill(store, "session-2")
        for _ in range(2):
            await store.delete_session(SID)
            await _check_empty(store, SID)
        await store.create_session(samples.session(SID))
        assert (await store.load_blocks(SID, limit=10)).blocks == ()
        assert await store.load_transcript(SID) == {}
        assert await store.load_manifest(SID) == ()
        assert await store.load_turns(SID, limit=10) == ()
        assert len((await store.load_blocks("session-2", limit=10)).blocks) == 1
        assert await store.load_file("session-2", "a.txt") == samples.file()

    @story
    async def test_what_a_caller_does_to_a_value_later_is_not_saved(self, store: PersistenceAdapter) -> None:
        """Saved is saved: values are frozen, but the objects inside them are not."""
        metadata = {"list": [1]}
        await store.create_session(samples.session(SID, metadata=metadata))
        metadata["list"].append(2)
        first = await store.load_session(SID)
        assert first is not None
        assert first.metadata == {"list": [1]}
        first.metadata["list"].append(3)
        again = await store.load_session(SID)
        assert again is not None
        assert again.metadata == {"list": [1]}

    @story
    async def test_sessions_do_not_meet_however_many_work_at_once(self, store: PersistenceAdapter) -> None:
        """Each finds exactly its own, in order."""

        async def live(sid: str) -> None:
            await store.create_session(samples.session(sid, owner=sid))
            for index in range(10):
                block = samples.text(f"b{index}", sid)
                await store.save_turn(sid, samples.turn(index), samples.stored(block, start=index))
                await store.append_transcript(sid, "main", index, [{"sid": sid, "n": index}])
            await store.save_files(sid, [samples.file("a", sid.encode())])

        sids = [f"s{number}" for number in range(50)]
        async with asyncio.TaskGroup() as all_at_once:
            for sid in sids:
                all_at_once.create_task(live(sid))
        for sid in sids:
            page = await store.load_blocks(sid, limit=100)
            expected = samples.stored(*(samples.text(f"b{index}", sid) for index in range(10)))
            assert list(page.blocks) == expected
            assert await store.load_turns(sid, limit=100) == tuple(samples.turn(n) for n in range(10))
            assert await store.load_transcript(sid) == {"main": [{"sid": sid, "n": n} for n in range(10)]}
            assert await store.load_file(sid, "a") == samples.file("a", sid.encode())

    @story
    async def test_profiles_are_listed_by_id_and_loaded(self, store: PersistenceAdapter) -> None:
        """Where the host keeps profiles in the store; elsewhere there are none."""
        profiles = (samples.profile("critic"), samples.profile("writer"))
        kept = [await self.keep_profile(store, profile) for profile in reversed(profiles)]
        assert await store.list_profiles() == (profiles if all(kept) else ())
        assert await store.load_profile("writer") == (profiles[1] if all(kept) else None)

    @story
    async def test_closing_twice_is_harmless(self, store: PersistenceAdapter) -> None:
        """Shutdown paths meet."""
        await store.create_session(samples.session(SID))
        await store.close()
        await store.close()


async def _fill(store: PersistenceAdapter, sid: str) -> None:
    await store.create_session(samples.session(sid))
    await store.save_turn(sid, samples.turn(), samples.stored(samples.text()))
    await store.append_transcript(sid, "main", 0, [{"a": 1}])
    await store.save_files(sid, [samples.file()])


async def _check_empty(store: PersistenceAdapter, sid: str) -> None:
    assert await store.load_session(sid) is None
    page = await store.load_blocks(sid, limit=10)
    assert page.blocks == ()
    assert not page.has_more
    assert await store.block_index(sid, "b1") is None
    assert await store.load_turns(sid, limit=10) == ()
    assert await store.find_turn(sid, "message-0") is None
    assert await store.load_transcript(sid) == {}
    assert await store.load_manifest(sid) == ()
    assert await store.load_file(sid, "a.txt") is None
