"""The manager: sessions of several owners, made once, found by their owner, deleted for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_runtime.changes import SessionChange
from agent_runtime.creation import NewSession
from agent_runtime.errors import Conflict, NotFound, PersistenceFault
from agent_runtime.manager import SessionManager
from agent_runtime.ports import Principal
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import never_rests, others_get_on, refused
from tests.runtime.world import ANNA, BERT, runtime, world
from tests.waiting import eventually

# Owners.

EVERY_CALL: list[Callable[[SessionManager, Principal, str], Awaitable[Any]]] = [
    lambda m, who, s: m.session(who, s),
    lambda m, who, s: m.snapshot(who, s),
    lambda m, who, s: m.update_session(who, s, name="mine"),
    lambda m, who, s: m.update_options(who, s, {}),
    lambda m, who, s: m.delete_session(who, s),
    lambda m, who, s: m.stop_session(who, s),
    lambda m, who, s: m.prewarm_session(who, s),
    lambda m, who, s: m.sync_session(who, s),
    lambda m, who, s: m.send(who, s, "hi", message_id=None, when_busy="queue"),
    lambda m, who, s: m.interrupt(who, s, None),
    lambda m, who, s: m.turns(who, s, before=None, limit=5),
    lambda m, who, s: m.blocks(who, s, before=None, limit=5, conversation_id=None),
    lambda m, who, s: m.manifest(who, s),
    lambda m, who, s: m.file(who, s, "a.txt"),
]


@pytest.mark.parametrize("call", EVERY_CALL)
async def test_a_session_of_another_owner_looks_absent(call: Any) -> None:
    async with world() as it:
        session_id = await it.new(workspace_files=(("a.txt", b"a"),))
        for who, asked in ((BERT, session_id), (ANNA, "no-such-session")):
            with pytest.raises(NotFound) as no:
                await call(it.manager, who, asked)
            assert no.value.code == "session_not_found"
        assert await it.phase(session_id) is Phase.DORMANT
        assert await it.turns(session_id) == ()


async def test_a_list_and_a_watch_show_the_own_sessions_only() -> None:
    async with world() as it:
        seen: list[SessionChange] = []
        cancel = it.manager.watch(BERT, seen.append)
        await it.new(name="hers")
        assert await it.manager.list_sessions(BERT, limit=10, cursor=None) == ((), None)
        his, _ = await it.manager.create_session(BERT, NewSession("scripted"))
        await it.manager.delete_session(BERT, his.session_id)
        assert [(each.kind, each.session_id) for each in seen] == [
            ("created", his.session_id),
            ("deleted", his.session_id),
        ]
        cancel()
        await it.manager.create_session(BERT, NewSession("scripted"))
        assert len(seen) == 2


async def test_a_watcher_that_fails_harms_no_session() -> None:
    async with world() as it:
        calls: list[SessionChange] = []

        def fail(change: SessionChange) -> None:
            calls.append(change)
            raise ZeroDivisionError

        it.manager.watch(ANNA, fail)
        session_id = await it.new(message="hello")
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        assert calls


# Creating.


async def test_the_same_key_makes_one_session_for_each_owner() -> None:
    async with world() as it:
        new = NewSession("scripted", idempotency_key="k", workspace_files=(("a", b"1"),), message="hello")
        made = await asyncio.gather(*(it.manager.create_session(ANNA, new) for _ in range(5)))
        his, his_was_made = await it.manager.create_session(BERT, new)
        assert len({session.session_id for session, _ in made}) == 1
        assert sorted(was_made for _, was_made in made) == [False] * 4 + [True]
        assert his_was_made
        session_id = made[0][0].session_id
        assert his.session_id != session_id
        await it.ended(session_id, 1)
        assert len(await it.turns(session_id)) == 1
        assert [file.path for file in await it.manager.manifest(ANNA, session_id)] == ["a"]


@pytest.mark.parametrize("broken", ["save_files", "save_turn"])
async def test_a_creation_that_failed_half_way_is_completed_by_the_same_key(broken: str) -> None:
    async with world() as it:
        new = NewSession("scripted", idempotency_key="k", workspace_files=(("a", b"1"),), message="hello")
        it.store.only, it.store.down = {broken}, True
        with pytest.raises(PersistenceFault):
            await it.manager.create_session(ANNA, new)
        it.store.down = False
        session, was_made = await it.manager.create_session(ANNA, new)
        assert not was_made
        await it.ended(session.session_id, 1)
        assert it.sandboxes.made[0].runner.files == {"a": b"1"}


async def test_two_who_ask_at_once_get_one_session_object() -> None:
    async with ScriptedSandboxes() as sandboxes:
        store = MemoryPersistence()
        async with runtime(sandboxes, store) as before:
            session_id = await before.new()
        async with runtime(sandboxes, store) as it:
            await asyncio.gather(*(it.manager.snapshot(ANNA, session_id) for _ in range(5)))
            assert it.store.calls.count("load_manifest") == 1
            await asyncio.gather(it.send(session_id, "a"), it.send(session_id, "b"))
            await it.ended(session_id, 2)
            assert len(sandboxes.made) == 1


# Deleting.


async def test_a_deletion_in_mid_turn_leaves_nothing() -> None:
    async with world(never_rests) as it:
        session_id = await it.new(message="hello", workspace_files=(("a.txt", b"a"),))
        await it.reaches(session_id, Phase.RUNNING)
        await it.manager.delete_session(ANNA, session_id)
        assert not it.sandboxes.living()
        assert not it.gateway.opened
        with pytest.raises(NotFound):
            await it.manager.session(ANNA, session_id)
        store = it.store.inner
        assert await store.load_manifest(session_id) == ()
        assert await store.load_turns(session_id, limit=5) == ()
        assert (await store.load_blocks(session_id, limit=5)).blocks == ()
        assert (await it.log.head(session_id)).seq == 0


async def test_of_two_deletions_one_finds_nothing() -> None:
    async with world() as it:
        session_id = await it.new(message="hello")
        seen: list[SessionChange] = []
        it.manager.watch(ANNA, seen.append)
        done = await asyncio.gather(
            it.manager.delete_session(ANNA, session_id),
            it.manager.delete_session(ANNA, session_id),
            return_exceptions=True,
        )
        assert [type(each) for each in done if each] == [NotFound]
        assert [change.kind for change in seen].count("deleted") == 1


async def test_a_deletion_while_others_load_ends_in_absence() -> None:
    async with ScriptedSandboxes() as sandboxes:
        store = MemoryPersistence()
        async with runtime(sandboxes, store) as before:
            session_id = await before.new()
        async with runtime(sandboxes, store) as it:
            calls = [it.manager.snapshot(ANNA, session_id) for _ in range(3)]
            deletion = it.manager.delete_session(ANNA, session_id)
            done = await asyncio.gather(calls[0], deletion, *calls[1:], return_exceptions=True)
            assert all(not isinstance(each, Exception) or isinstance(each, NotFound) for each in done)
            with pytest.raises(NotFound):
                await it.manager.snapshot(ANNA, session_id)


async def test_a_message_that_races_a_deletion_is_not_kept() -> None:
    async with world() as it:
        session_id = await it.new()
        it.store.only = {"save_turn"}
        it.store.hold()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(refused(it.send(session_id, "late", "m")))
            await eventually(lambda: "save_turn" in it.store.calls)
            deleting = tasks.create_task(it.manager.delete_session(ANNA, session_id))
            await others_get_on()
            it.store.let_go()
            await deleting
        assert isinstance(sending.result(), NotFound | Conflict)
        assert not it.sandboxes.living()


async def test_a_session_of_many_blocks_looks_the_same_before_and_after_it_left_memory() -> None:
    async def script(stage: Stage) -> None:
        for number in range(120):
            stage.text(f"block-{number}", "words")
        stage.rest()

    async with world(script) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        await it.manager.stop_session(ANNA, session_id)
        before = await it.manager.snapshot(ANNA, session_id)
        session = it.manager._loaded.find(session_id)
        assert session is not None
        await it.manager._loaded.unload(session, None)
        after = await it.manager.snapshot(ANNA, session_id)
        assert after.blocks == before.blocks
        assert (len(after.blocks), after.has_more) == (50, True)
        again = it.manager._loaded.find(session_id)
        assert again is not None
        assert len(again.recorder.conversation.blocks(1000)[0]) == 50
        page, more = await it.manager.blocks(
            ANNA, session_id, before=after.blocks[0].id, limit=100, conversation_id=None
        )
        assert (len(page), more) == (71, False)
