"""A read that fails is no answer: nothing is written on the strength of it, and trying again works.

The runtime reads before it writes in a few places: when a session is loaded, when a sandbox is given
its files and transcript back, when a message may have been sent before.
"""

import contextlib
from typing import Any

import pytest

from agent_runtime.errors import PersistenceFault
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import Curtain
from tests.runtime.world import ANNA, World, killed, runtime
from tests.waiting import eventually

LOADING = ["load_session", "load_manifest", "load_turns", "unfinished_turns", "load_blocks"]
WAKING = ["load_transcript", "load_file"]


async def works(stage: Stage) -> None:
    """Says something, writes a file of its own, and remembers it."""
    # A note of the runtime may stand before the message: its sandbox is a new one.
    said = stage.message if isinstance(stage.message, str) else stage.message[-1]["text"]
    stage.tell(AgentIdentity("agent-1"))
    stage.text(f"text-{stage.turn_id}", said)
    stage.write(f"{said}.txt", said.encode())
    stage.remember({"said": said})
    stage.rest()


async def kept(store: MemoryPersistence, sid: str) -> dict[str, Any]:
    """All that the store has of a session."""
    await store.open()  # whoever had it is gone
    blocks = (await store.load_blocks(sid, limit=1000)).blocks
    manifest = await store.load_manifest(sid)
    return {
        "record": await store.load_session(sid),
        "blocks": blocks,
        "turns": await store.load_turns(sid, limit=1000),
        "transcript": await store.load_transcript(sid),
        "files": [await store.load_file(sid, file.path) for file in manifest],
    }


async def a_session_with_a_past(store: MemoryPersistence) -> str:
    """Two turns, by a runtime that ended."""
    async with ScriptedSandboxes(works) as sandboxes, runtime(sandboxes, store) as world:
        sid = await world.new(message="one")
        await world.send(sid, "two")
        await world.ended(sid, 2)
    return sid


async def check_nothing_was_lost(world: World, sid: str, before: dict[str, Any]) -> None:
    """One turn more, and all that there was before is as it was."""
    after = await kept(world.store.inner, sid)
    for name in ("blocks", "turns"):
        assert after[name][: len(before[name])] == before[name]
    assert [file.path for file in after["files"]] == ["one.txt", "three.txt", "two.txt"]
    assert after["transcript"] == {"main": [{"said": said} for said in ("one", "two", "three")]}
    assert [turn.status for turn in after["turns"]] == [TurnStatus.COMPLETED] * 3
    assert len({stored.index for stored in after["blocks"]}) == len(after["blocks"])
    stage_recalled = world.sandboxes.made[-1].runner.recalled
    assert stage_recalled == {"main": [{"said": "one"}, {"said": "two"}]}


@pytest.mark.parametrize("read", LOADING)
async def test_a_session_that_cannot_be_read_is_not_loaded_and_nothing_is_written(read: str) -> None:
    store = MemoryPersistence()
    sid = await a_session_with_a_past(store)
    before = await kept(store, sid)
    async with ScriptedSandboxes(works) as sandboxes, runtime(sandboxes, store) as world:
        world.store.only, world.store.down = {read}, True
        for _ in range(3):
            with pytest.raises(PersistenceFault) as refusal:
                await world.send(sid, "three", "m3")
            assert refusal.value.code == "persistence_unavailable"
        world.store.down = False
        assert await kept(store, sid) == before
        await world.send(sid, "three", "m3")
        await world.ended(sid, 1)
        await check_nothing_was_lost(world, sid, before)


@pytest.mark.parametrize("read", WAKING)
async def test_a_sandbox_that_cannot_be_given_what_was_is_not_used(read: str) -> None:
    store = MemoryPersistence()
    sid = await a_session_with_a_past(store)
    before = await kept(store, sid)
    async with ScriptedSandboxes(works) as sandboxes, runtime(sandboxes, store) as world:
        world.store.only, world.store.down = {read}, True
        for _ in range(2):
            await world.manager.prewarm_session(ANNA, sid)
            await world.reaches(sid, Phase.FAILED)
            await eventually(lambda: not sandboxes.living())
        world.store.down = False
        found = await kept(store, sid)
        assert {name: found[name] for name in found if name != "record"} == {
            name: before[name] for name in before if name != "record"
        }
        await world.send(sid, "three", "m3")
        await world.ended(sid, 1)
        await check_nothing_was_lost(world, sid, before)


@pytest.mark.parametrize("read", WAKING)
async def test_a_message_whose_sandbox_cannot_be_given_what_was_fails_and_the_next_finds_all(
    read: str,
) -> None:
    store = MemoryPersistence()
    sid = await a_session_with_a_past(store)
    async with ScriptedSandboxes(works) as sandboxes, runtime(sandboxes, store) as world:
        world.store.only, world.store.down = {read}, True
        await world.send(sid, "three", "m3")
        (turn,) = await world.ended(sid, 1)
        assert turn.status is TurnStatus.FAILED
        assert turn.error is not None
        assert turn.error.code == "persistence_unavailable"
        assert sandboxes.made == [] or not sandboxes.living()
        world.store.down = False
        await world.send(sid, "four", "m4")
        await world.ended(sid, 2)
        found = await kept(store, sid)
        assert [file.path for file in found["files"]] == ["four.txt", "one.txt", "two.txt"]
        assert found["transcript"] == {"main": [{"said": said} for said in ("one", "two", "four")]}
        assert sandboxes.made[-1].runner.recalled == {"main": [{"said": "one"}, {"said": "two"}]}


async def test_a_message_is_not_taken_while_nobody_knows_whether_it_was_sent_before() -> None:
    store = MemoryPersistence()
    sid = await a_session_with_a_past(store)
    async with ScriptedSandboxes(works) as sandboxes, runtime(sandboxes, store) as world:
        await world.manager.snapshot(ANNA, sid)
        world.store.only, world.store.down = {"find_turn"}, True
        for _ in range(3):
            with pytest.raises(PersistenceFault):
                await world.send(sid, "three", "m3")
        assert len(await world.turns(sid)) == 2
        world.store.down = False
        first = await world.send(sid, "three", "m3")
        again = await world.send(sid, "three", "m3")
        assert (again.turn_id, again.duplicate) == (first.turn_id, True)
        await world.ended(sid, 1)
        assert len(await world.turns(sid)) == 3


async def test_what_is_unfinished_is_asked_for_until_the_store_tells() -> None:
    store = FailsAtFirst()
    async with ScriptedSandboxes(works) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as world:
            sid = await world.new(message="one")
            await world.reaches(sid, Phase.RUNNING)
            await killed(world)
        store.failures["unfinished_sessions"] = 2
        async with runtime(sandboxes, store) as world:
            (turn,) = await world.ended(sid, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 1


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("read", [*LOADING, "block_index"])
async def test_a_turn_that_cannot_be_taken_up_at_first_goes_on_later_in_its_sandbox(
    read: str, times: int
) -> None:
    curtain, store = Curtain(), FailsAtFirst()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as world:
            sid = await world.new(message="hello")
            stage = await curtain.playing()
            stage.text("early", "before the end")
            await eventually(lambda: "save_blocks" in world.store.calls)
            await killed(world)
        before = await kept(store, sid)
        store.failures[read] = times
        async with runtime(sandboxes, store) as world:
            for _ in range(times):
                await refused_or_loaded(world, sid)
            await eventually(lambda: store.failures[read] == 0)
            assert (await kept(store, sid))["turns"] == before["turns"]
            await refused_or_loaded(world, sid)
            await world.manager.snapshot(ANNA, sid)
            curtain.raised.set()
            (turn,) = await world.ended(sid, 1)
            assert turn.status is TurnStatus.COMPLETED
            texts = [stored.block.content for stored in (await kept(store, sid))["blocks"]]
            assert texts == ["hello", "before the end", "hello"]
            assert len(sandboxes.made) == 1


async def refused_or_loaded(world: World, sid: str) -> None:
    """Somebody looks at the session, which loads it if that can be."""
    with contextlib.suppress(PersistenceFault):
        await world.manager.snapshot(ANNA, sid)


class FailsAtFirst(MemoryPersistence):
    """Reads fail as often as `failures` says, by their names."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name.startswith("_") or name not in super().__getattribute__("failures"):
            return method

        async def call(*arguments: Any, **named: Any) -> Any:
            if self.failures[name] > 0:
                self.failures[name] -= 1
                raise PersistenceFault("The store is down.")
            return await method(*arguments, **named)

        return call
