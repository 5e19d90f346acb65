"""A runtime that ends in mid-turn, by whatever means, and the next one that goes on in its sandboxes."""

import asyncio
import random
from typing import Any

import pytest

from agent_runtime.blocks import AssistantText, BlockState, ToolResult, ToolStatus, ToolUse
from agent_runtime.clock import now
from agent_runtime.errors import PersistenceFault
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate, TextDelta
from agent_runtime.ports import StoredBlock
from agent_runtime.records import Phase, Turn, TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnBegan
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import Curtain, assert_orderly, cut_off, others_get_on
from tests.runtime.world import ANNA, World, killed, runtime
from tests.waiting import eventually


async def stored(store: MemoryPersistence, session_id: str) -> list[StoredBlock]:
    await store.open()
    return list((await store.load_blocks(session_id, limit=1000)).blocks)


async def texts(store: MemoryPersistence, session_id: str) -> list[Any]:
    return [each.block.content for each in await stored(store, session_id) if hasattr(each.block, "content")]


async def test_a_turn_goes_on_over_a_kill_and_ends_once() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            stage = await curtain.playing()
            stage.text("early", "before the end")
            await others_get_on()
            await killed(it)
        stage.text("meanwhile", "while nobody listened")
        async with runtime(sandboxes, store) as it:
            await eventually(lambda: it.manager._loaded.find(session_id) is not None)
            assert await it.phase(session_id) is Phase.RUNNING
            curtain.raised.set()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert await texts(store, session_id) == [
                "hello",
                "before the end",
                "while nobody listened",
                "hello",
            ]
            assert len(sandboxes.made) == 1
            assert len(curtain.stages) == 1


async def test_a_turn_that_ended_while_nobody_listened_ends_once_for_all() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        curtain.raised.set()
        await others_get_on()
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert await it.phase(session_id) is Phase.READY
            await it.send(session_id, "again")
            assert len(await it.ended(session_id, 2)) == 2
            assert len(sandboxes.made) == 1


async def test_a_viewer_who_comes_back_sees_what_was_said_meanwhile_in_its_snapshot() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, stage = await cut_off(sandboxes, store, curtain)
        half = AssistantText(id="half", timestamp=now(), state=BlockState.STREAMING)
        stage.tell(BlockStart(block=half), TextDelta(block_id="half", delta="I was about"))
        async with runtime(sandboxes, store) as it:
            snapshot = await it.manager.snapshot(ANNA, session_id)
            assert snapshot.session.runtime.phase is Phase.RUNNING
            assert [block.type for block in snapshot.blocks] == ["user_message", "assistant_text"]
            assert snapshot.blocks[-1] == half.model_copy(
                update={"content": "I was about", "turn_id": snapshot.session.runtime.active_turn_id}
            )
            assert await it.of(session_id, "block_start") == []  # nothing is told again
            stage.tell(TextDelta(block_id="half", delta=" to say"))
            (delta,) = await it.reaches_events(session_id, "text_delta", 1)
            assert delta.delta == " to say"
            curtain.raised.set()
            await it.ended(session_id, 1)


async def test_blocks_keep_their_order_when_one_in_the_making_was_not_saved() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            stage = await curtain.playing()
            first = AssistantText(id="first", timestamp=now(), state=BlockState.STREAMING)
            stage.tell(BlockStart(block=first))
            stage.text("second", "saved before the first")
            await eventually(lambda: it.store.calls.count("save_blocks") >= 1)
            await others_get_on()
            await killed(it)
        saved = [each.block.id for each in await stored(store, session_id)]
        assert saved[1:] == ["second"]
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            whole = first.model_copy(update={"state": BlockState.COMPLETE, "content": "late"})
            stage.tell(BlockComplete(block_id="first", block=whole))
            curtain.raised.set()
            await it.ended(session_id, 1)
        blocks = await stored(store, session_id)
        assert [each.block.id for each in blocks][1:3] == ["first", "second"]
        assert [each.index for each in blocks] == list(range(len(blocks)))


async def test_a_message_that_was_not_handed_over_is_handed_over_once() -> None:
    store, told = MemoryPersistence(), []

    async def script(stage: Stage) -> None:
        told.append(stage.turn_id)
        await echo(stage)

    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="first")
            await it.ended(session_id, 1)

            async def nothing_arrives(frame: Any) -> bool:
                return frame["k"] != "message"

            sandboxes.made[0].runner.before = nothing_arrives
            receipt = await it.send(session_id, "second", "m2")
            await it.reaches(session_id, Phase.RUNNING)
            await killed(it)
        sandboxes.made[0].runner.before = all_arrives
        async with runtime(sandboxes, store) as it:
            again = await it.send(session_id, "second", "m2")
            assert (again.turn_id, again.duplicate) == (receipt.turn_id, True)
            await it.ended(session_id, 1)
            assert told.count(receipt.turn_id) == 1


async def all_arrives(_: Any) -> bool:
    return True


async def test_those_who_waited_come_next_without_anybody_asking() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="one")
            await curtain.playing()
            waiting = [await it.send(session_id, text) for text in ("two", "three")]
            await killed(it)
        curtain.raised.set()
        async with runtime(sandboxes, store) as it:
            turns = await it.ended(session_id, 3)
            assert [turn.turn_id for turn in turns[1:]] == [receipt.turn_id for receipt in waiting]
            assert await texts(store, session_id) == ["one", "one", "two", "two", "three", "three"]


async def test_a_session_that_waits_without_a_sandbox_is_taken_up_without_anybody_asking() -> None:
    store = MemoryPersistence()
    async with ScriptedSandboxes(echo) as sandboxes:
        never = asyncio.Event()

        async def hang(_: Any) -> None:
            await never.wait()

        sandboxes.before_create = hang
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            await it.reaches(session_id, Phase.WAKING)
            await killed(it)
        sandboxes.before_create = at_once
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED


async def at_once(_: Any) -> None:
    return


async def test_an_agent_that_ended_meanwhile_fails_its_turn_and_the_next_message_wakes_another() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, stage = await cut_off(sandboxes, store, curtain)
        stage.exit()
        curtain.raised.set()
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.error is not None
            assert turn.error.code == "agent_failed"
            await it.send(session_id, "next")
            assert (await it.ended(session_id, 2))[1].status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 2


async def test_a_sandbox_that_died_meanwhile_fails_its_turn_and_files_come_back() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            stage = await curtain.playing()
            stage.write("a.txt", b"a")
            await it.manager.sync_session(ANNA, session_id)
            await killed(it)
        sandboxes.made[0].die()
        curtain.raised.set()
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.error is not None
            assert turn.error.code == "sandbox_lost"
            await it.send(session_id, "next")
            await it.ended(session_id, 2)
            assert sandboxes.made[1].runner.files == {"a.txt": b"a"}
            assert len(await it.of(session_id, "workspace_restored")) == 1


async def test_options_that_the_agent_was_not_told_in_time_are_told_after_a_kill() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        await store.open()
        record = await store.load_session(session_id)
        assert record is not None
        assert record.agent_options == {}
        # As a change leaves it that came while the agent was started.
        await store.update_session(record.model_copy(update={"session_options": {"mood": 2}}))
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            commands = sandboxes.made[0].runner.commands
            await eventually(lambda: [each["options"] for each in commands if each["k"] == "options"])
            assert [each["options"] for each in commands if each["k"] == "options"] == [{"mood": 2}]
            curtain.raised.set()
            await it.ended(session_id, 1)
            stored = await store.load_session(session_id)
            assert stored is not None
            assert stored.agent_options == {"mood": 2}


async def test_connections_that_break_before_the_greeting_cost_no_turn() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        (sandbox,) = sandboxes.made
        attach, cuts = sandbox.runner.attach, iter(range(3))

        def cut_at_first(after: int, send: Any) -> None:
            if next(cuts, None) is None:
                attach(after, send)
            else:
                sandbox.break_connections()

        sandbox.runner.attach = cut_at_first  # type: ignore[method-assign]
        async with runtime(sandboxes, store) as it:
            curtain.raised.set()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert sandboxes.made == [sandbox]


async def test_a_closing_runtime_detaches_and_its_turn_goes_on() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            await curtain.playing()
        assert sandboxes.living()
        async with runtime(sandboxes, store) as it:
            curtain.raised.set()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 1


async def test_a_closing_runtime_whose_store_is_down_loses_nothing() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="hello")
            stage = await curtain.playing()
            it.store.down = True
            stage.write("a.txt", b"a")
            stage.remember({"n": 1})
            stage.text("said", "while the store was down")
            await eventually(lambda: it.store.refused)
            async with asyncio.timeout(9):
                await it.manager.close()
        async with runtime(sandboxes, store) as it:
            curtain.raised.set()
            await it.ended(session_id, 1)
            assert (await texts(store, session_id))[1] == "while the store was down"
            assert [file.path for file in await store.load_manifest(session_id)] == ["a.txt"]
            assert await store.load_transcript(session_id) == {"main": [{"n": 1}]}


async def test_a_store_that_cannot_be_read_at_the_start_costs_no_agent_its_life() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        async with runtime(sandboxes, store) as it:
            it.store.only, it.store.down = {"block_index", "load_blocks"}, True
            await eventually(lambda: it.store.refused)
            await others_get_on()
            assert sandboxes.living()
            it.store.down = False
            curtain.raised.set()
            await it.manager.snapshot(ANNA, session_id)
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 1


class UntilATurnEnds(MemoryPersistence):
    """A store that goes away right after it took the end of a turn, until `back`."""

    def __init__(self) -> None:
        super().__init__()
        self.back = False
        self.away = asyncio.Event()

    async def save_turn(self, session_id: str, turn: Turn, *rest: Any, **named: Any) -> None:
        if self.away.is_set() and not self.back:
            raise PersistenceFault("The store is away.")
        await super().save_turn(session_id, turn, *rest, **named)
        if turn.ended_at is not None:
            self.away.set()


async def test_a_message_that_steered_and_was_answered_between_two_lives_is_not_asked_again() -> None:
    """The end of the first turn was stored, the beginning of the next one was not any more."""
    one_by_one, store = OneByOne(), UntilATurnEnds()
    async with ScriptedSandboxes(one_by_one) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="one")
            await eventually(lambda: one_by_one.playing == ["one"])
            steered = await it.send(session_id, "two", when_busy="steer")
            assert steered.outcome == "steered"
            one_by_one.go_on.release()
            await store.away.wait()
            await killed(it)
        one_by_one.go_on.release()
        await eventually(lambda: one_by_one.done == ["one", "two"])
        store.back = True
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            await all_ended(it, session_id)
            first, second = await it.turns(session_id)
            assert [turn.status for turn in (first, second)] == [TurnStatus.COMPLETED] * 2
            assert one_by_one.done == ["one", "two"]
            blocks = await stored(store, session_id)
            assert [(each.block.turn_id, each.block.type) for each in blocks] == [
                (first.turn_id, "user_message"),
                (first.turn_id, "assistant_text"),
                (second.turn_id, "user_message"),
                (second.turn_id, "assistant_text"),
            ]


class OneByOne:
    """A script that answers messages one after the other, as agents do; each waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Semaphore(0)
        self.playing: list[str] = []
        self.done: list[str] = []
        self._turn = asyncio.Lock()

    async def __call__(self, stage: Stage) -> None:
        async with self._turn:
            self.playing.append(stage.message)
            await self.go_on.acquire()
            stage.text(f"{stage.turn_id}-text", stage.message)
            stage.rest(message_ids=(stage.turn_id,))
            self.done.append(stage.message)


# However often, whenever.


class Telling:
    """A script that works on one message after the other, in small steps; others get on after each."""

    def __init__(self) -> None:
        self.told = 0
        self._turn = asyncio.Lock()

    async def __call__(self, stage: Stage) -> None:
        async with self._turn:
            await self._work(stage)

    async def _work(self, stage: Stage) -> None:
        stage.tell(AgentIdentity("agent"), AgentTurnBegan())
        for number in range(6):
            await self.step(stage, f"{stage.message}-{number}")
        stage.rest(message_ids=(stage.turn_id,), total_cost_usd=0.5 * (1 + self.told))
        self.told += 1

    async def step(self, stage: Stage, name: str) -> None:
        text = AssistantText(id=f"{name}-text", timestamp=now(), state=BlockState.STREAMING)
        call = ToolUse(id=f"{name}-call", tool_name="Write", tool_use_id=f"{name}-call", timestamp=now())
        result = ToolResult(id=f"{name}-result", tool_use_id=call.tool_use_id, timestamp=now(), output="ok")
        stage.tell(BlockStart(block=text))
        for piece in ("some ", "words ", name):
            stage.tell(TextDelta(block_id=text.id, delta=piece))
            await asyncio.sleep(0)
        stage.tell(BlockStart(block=call.model_copy(update={"state": BlockState.STREAMING})))
        whole = text.model_copy(update={"content": f"some words {name}", "state": BlockState.COMPLETE})
        stage.tell(BlockComplete(block_id=text.id, block=whole))
        await asyncio.sleep(0)
        stage.tell(BlockComplete(block_id=call.id, block=call))
        stage.write(f"{name}.txt", name.encode())
        stage.write("shared.txt", name.encode())
        stage.remember({"n": name})
        await asyncio.sleep(0)
        stage.tell(BlockUpdate(block_id=call.id, updates={"status": ToolStatus.SUCCESS.value}))
        stage.tell(
            BlockStart(block=result.model_copy(update={"state": BlockState.STREAMING})),
            BlockComplete(block_id=result.id, block=result),
        )
        await asyncio.sleep(0)


MESSAGES = ("a", "b", "c")


@pytest.mark.parametrize("when_busy", ["queue", "steer"])
@pytest.mark.parametrize("seed", range(40))
async def test_whenever_it_is_killed_nothing_is_missing_doubled_or_changed(seed: int, when_busy: str) -> None:
    dice, store = random.Random(seed), MemoryPersistence()
    async with ScriptedSandboxes(Telling()) as sandboxes:
        session_id, kills = "", dice.randrange(1, 12)
        for _ in range(kills):
            async with runtime(sandboxes, store, leaves=True, sync_interval_s=0.001) as it:
                session_id = session_id or await it.new()
                for name in MESSAGES:
                    await it.send(session_id, name, f"m-{name}", when_busy=when_busy)
                await some_time(dice)
                await killed(it)
        async with runtime(sandboxes, store, sync_interval_s=0.001) as it:
            for name in MESSAGES:
                await it.send(session_id, name, f"m-{name}", when_busy=when_busy)
            await it.manager.snapshot(ANNA, session_id)
            await all_ended(it, session_id)
            assert_orderly(await it.events(session_id))
            await check_whole(it, store, session_id, sandboxes)


async def some_time(dice: random.Random) -> None:
    for _ in range(dice.randrange(400)):
        await asyncio.sleep(0)


async def all_ended(it: World, session_id: str) -> None:
    async with asyncio.timeout(20):
        while {turn.status for turn in await it.turns(session_id)} & {TurnStatus.QUEUED, TurnStatus.RUNNING}:
            await asyncio.sleep(0.001)
        session = it.manager._loaded.find(session_id)
        assert session is not None
        await session._machine.idle()  # a turn is stored as ended before its end is told


async def check_whole(
    it: World, store: MemoryPersistence, session_id: str, sandboxes: ScriptedSandboxes
) -> None:
    turns = await it.turns(session_id)
    assert [(turn.message_id, turn.status) for turn in turns] == [
        (f"m-{name}", TurnStatus.COMPLETED) for name in MESSAGES
    ]
    expected = []
    for turn, name in zip(turns, MESSAGES, strict=True):
        expected.append((turn.turn_id, turn.turn_id, "complete"))
        for number in range(6):
            expected += [
                (f"{name}-{number}-{kind}", turn.turn_id, "complete") for kind in ("text", "call", "result")
            ]
    blocks = await stored(store, session_id)
    assert [(each.block.id, each.block.turn_id, each.block.state) for each in blocks] == expected
    assert [each.index for each in blocks] == list(range(len(blocks)))
    for each in blocks:
        if isinstance(each.block, AssistantText):
            assert each.block.content == f"some words {each.block.id.removesuffix('-text')}"
        if isinstance(each.block, ToolUse):
            assert each.block.status is ToolStatus.SUCCESS
    names = [f"{name}-{number}" for name in MESSAGES for number in range(6)]
    assert await store.load_transcript(session_id) == {"main": [{"n": name} for name in names]}
    files = {file.path for file in await store.load_manifest(session_id)}
    assert files == {"shared.txt", *(f"{name}.txt" for name in names)}
    shared = await store.load_file(session_id, "shared.txt")
    assert shared is not None
    assert shared.content == "c-5"
    assert len(sandboxes.living()) == 1
    assert sandboxes.living()[0].runner.files["shared.txt"] == b"c-5"
    assert len({turn.cost_usd for turn in turns}) == 1
