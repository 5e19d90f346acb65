"""One session through random bad luck: whatever happens in whatever order, each message ends once."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from agent_runtime.blocks import BlockState, ToolResult, ToolUse
from agent_runtime.clock import now
from agent_runtime.errors import Conflict, PersistenceFault, RateLimited, SandboxFault
from agent_runtime.events import BlockComplete, BlockStart
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnBegan
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.scripts import assert_orderly
from tests.runtime.world import ANNA, World, killed, runtime, world
from tests.waiting import eventually

STEPS = 60
HASTY: dict[str, Any] = {
    "interrupt_grace_s": 0.02,
    "wake_timeout_s": 2.0,
    "agent_idle_timeout_s": 0.02,
    "sandbox_idle_timeout_s": 0.04,
}


class Luck:
    """A script and a world that go wrong by dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.calm = False
        self.at_work: dict[int, asyncio.Lock] = {}
        self.count = 0
        self.sent: list[str] = []

    async def script(self, stage: Stage) -> None:
        """An agent answers one message after the other, also those that come in mid-turn."""
        async with self.at_work.setdefault(id(stage.recalled), asyncio.Lock()):
            await self.play(stage)

    async def play(self, stage: Stage) -> None:
        self.count += 1
        number = self.count
        name = f"{number}"
        stage.tell(AgentIdentity("agent"))
        tool = ToolUse(id=f"tool-{name}", tool_name="Bash", tool_use_id=f"call-{name}", timestamp=now())
        stage.tell(
            BlockStart(block=tool.model_copy(update={"state": BlockState.STREAMING})),
            BlockComplete(block_id=tool.id, block=tool),
        )
        await self.idle()
        stage.write(f"{name}.txt", name.encode())
        stage.write("large.bin", bytes(self.dice.randrange(200_000)))
        stage.remember({"n": number})
        fate = 1.0 if self.calm else self.dice.random()
        if fate < 0.1:
            stage.exit()
        elif fate < 0.2:
            await asyncio.Event().wait()
        else:
            answer = ToolResult(
                id=f"answer-{name}", tool_use_id=tool.tool_use_id, output="ok", timestamp=now()
            )
            stage.tell(
                BlockStart(block=answer.model_copy(update={"state": BlockState.STREAMING})),
                BlockComplete(block_id=answer.id, block=answer),
            )
            stage.rest(TurnStatus.CANCELLED if stage.interrupted.is_set() else TurnStatus.COMPLETED)
            if self.dice.random() < 0.3:
                stage.tell(AgentTurnBegan())
                stage.text(f"own-{name}", "by myself")
                stage.rest(autonomous=True)

    async def create(self, _: SandboxSpec) -> None:
        await self.idle()
        if not self.calm and self.dice.random() < 0.2:
            raise SandboxFault("Bad luck.")

    async def idle(self) -> None:
        for _ in range(self.dice.randrange(30)):
            await asyncio.sleep(0)

    async def strike(self, it: World, session_id: str, tasks: asyncio.TaskGroup) -> None:
        living = it.sandboxes.living()
        match self.dice.randrange(11):
            case 0 | 1 | 2:
                tasks.create_task(self.send(it, session_id))
            case 3:
                turn_id = self.dice.choice([None, *self.sent])
                tasks.create_task(tolerated(it.manager.interrupt(ANNA, session_id, turn_id)))
            case 4 if living:
                living[0].die()
            case 5 if living:
                living[0].break_connections()
            case 6:
                tasks.create_task(tolerated(it.manager.stop_session(ANNA, session_id)))
            case 7:
                it.store.down = not it.store.down
            case 8:
                await asyncio.sleep(self.dice.random() * 0.06)  # idle, perhaps
            case 9:
                options = {"n": self.dice.randrange(9)}
                tasks.create_task(tolerated(it.manager.update_options(ANNA, session_id, options)))
            case _:
                tasks.create_task(tolerated(it.manager.prewarm_session(ANNA, session_id)))
        await self.idle()

    async def send(self, it: World, session_id: str) -> None:
        message_id = f"m{self.dice.randrange(20)}"
        try:
            manner = self.dice.choice(["queue", "steer", "interrupt", "reject"])
            receipt = await it.send(session_id, "go", message_id, when_busy=manner)
        except (PersistenceFault, Conflict, RateLimited):
            return
        self.sent.append(receipt.turn_id)


async def tolerated(call: Awaitable[Any]) -> None:
    """A store that is down may be said to be; a sandbox may die in the middle of a change of options."""
    with contextlib.suppress(PersistenceFault, SandboxFault, Conflict):
        await call


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_each_message_ends_once(seed: int) -> None:
    luck = Luck(seed)
    async with world(luck.script, **HASTY) as it:
        it.sandboxes.before_create = luck.create
        session_id = await it.new()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(STEPS):
                await luck.strike(it, session_id, tasks)
            it.store.down = False
            luck.calm = True
        await it.manager.interrupt(ANNA, session_id, None)
        await it.manager.stop_session(ANNA, session_id)
        await ready(it)
        last = await it.send(session_id, "last")
        await it.manager.stop_session(ANNA, session_id)
        events = await it.events(session_id)
        ends = Counter(event.turn.turn_id for event in events if event.type == "turn_end")
        starts = Counter(event.turn.turn_id for event in events if event.type == "turn_start")
        assert set(ends.values()) == {1}
        assert starts == ends
        assert {*luck.sent, last.turn_id} <= ends.keys()
        assert_orderly(events)
        await assert_kept(it, session_id)
        assert not it.sandboxes.living()
        assert all(sandbox.stopped for sandbox in it.sandboxes.made)
        assert it.store.most_at_once <= 1
        await eventually(lambda: not it.gateway.opened)


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_between_deaths_each_message_ends_once(seed: int) -> None:
    luck, store = Luck(seed), MemoryPersistence()
    async with ScriptedSandboxes(luck.script) as sandboxes:
        sandboxes.before_create, session_id = luck.create, ""
        for _ in range(4):
            async with runtime(sandboxes, store, leaves=True, **HASTY) as it:
                session_id = session_id or await it.new()
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(STEPS // 4):
                        await luck.strike(it, session_id, tasks)
                    it.store.down = False
                await luck.idle()
                await killed(it)
        luck.calm = True
        async with runtime(sandboxes, store, **HASTY) as it:
            await it.manager.snapshot(ANNA, session_id)
            await it.manager.interrupt(ANNA, session_id, None)
            await it.manager.stop_session(ANNA, session_id)
            last = await it.send(session_id, "last")
            await it.manager.stop_session(ANNA, session_id)
            turns = await store.load_turns(session_id, limit=1000)
            assert {*luck.sent, last.turn_id} <= {turn.turn_id for turn in turns}
            assert all(turn.ended_at is not None for turn in turns)
            await assert_kept(it, session_id)
            stored = (await store.load_blocks(session_id, limit=1000)).blocks
            said = [each.block.id for each in stored if each.block.type == "user_message"]
            assert sorted(said) == sorted(turn.turn_id for turn in turns if turn.message_id)
            assert [each.index for each in stored] == list(range(len(stored)))
            assert all(each.block.state is not BlockState.STREAMING for each in stored)
            assert not sandboxes.living()


class Diligent(Luck):
    """An agent that answers whatever it is told, one after the other, and an interrupt with its end.

    Some agents forget at an interrupt what they were told and have not begun; `forgetful` says so.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.forgetful = self.dice.random() < 0.5
        self.waiting: dict[int, list[Stage]] = {}

    async def script(self, stage: Stage) -> None:
        waiting = self.waiting.setdefault(id(stage.recalled), [])
        waiting.append(stage)
        async with self.at_work.setdefault(id(stage.recalled), asyncio.Lock()):
            if stage in waiting:
                waiting.remove(stage)
                await self.play(stage)
            if self.forgetful and stage.interrupted.is_set():
                while waiting:
                    forgotten = waiting.pop(0).turn_id
                    stage.rest(TurnStatus.CANCELLED, message_ids=(forgotten,))

    async def play(self, stage: Stage) -> None:
        for number in range(self.dice.randrange(1, 4)):
            stage.text(f"{stage.turn_id}-{number}", "some ", "words")
            await self.idle()
            if stage.interrupted.is_set():
                stage.rest(TurnStatus.CANCELLED, message_ids=(stage.turn_id,))
                return
        stage.rest(message_ids=(stage.turn_id,))

    async def strike(self, it: World, session_id: str, tasks: asyncio.TaskGroup) -> None:
        match self.dice.randrange(8):
            case 0 | 1 | 2:
                tasks.create_task(self.send(it, session_id))
            case 3:
                turn_id = self.dice.choice([None, *self.sent[-3:]])
                tasks.create_task(tolerated(it.manager.interrupt(ANNA, session_id, turn_id)))
            case 4 if living := it.sandboxes.living():
                living[0].break_connections()
            case 5:
                it.store.down = not it.store.down
            case 6:
                await asyncio.sleep(self.dice.random() * 0.03)  # idle, perhaps
            case _:
                tasks.create_task(tolerated(it.manager.prewarm_session(ANNA, session_id)))
        await self.idle()


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_between_deaths_each_message_is_answered_without_anybody_asking(
    seed: int,
) -> None:
    luck, store = Diligent(seed), MemoryPersistence()
    async with ScriptedSandboxes(luck.script) as sandboxes:
        session_id = ""
        for _ in range(5):
            async with runtime(sandboxes, store, leaves=True, **HASTY) as it:
                session_id = session_id or await it.new()
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(luck.dice.randrange(1, 12)):
                        await luck.strike(it, session_id, tasks)
                    it.store.down = False
                await luck.idle()
                await killed(it)
        async with runtime(sandboxes, store, **HASTY) as it:
            await it.manager.snapshot(ANNA, session_id)
            async with asyncio.timeout(10):
                while any(turn.ended_at is None for turn in await it.turns(session_id)):
                    await asyncio.sleep(0.001)
            assert set(luck.sent) <= {turn.turn_id for turn in await it.turns(session_id)}


async def ready(it: World) -> None:
    """The last write that failed is tried again after its back-off."""
    async with asyncio.timeout(10):
        while not (await it.manager.readiness()).ok:
            await asyncio.sleep(0.01)


async def assert_kept(it: World, session_id: str) -> None:
    """What the store holds is what was told."""
    store = it.store.inner
    turns = await store.load_turns(session_id, limit=1000)
    assert [turn.index for turn in turns] == sorted({turn.index for turn in turns})
    told = [block.to_json() for block in (await it.manager.snapshot(ANNA, session_id)).blocks]
    page = await store.load_blocks(session_id, limit=max(1, len(told)))
    assert [stored.block.to_json() for stored in page.blocks] == told
    entries = (await store.load_transcript(session_id)).get("main", [])
    numbers = [entry["n"] for entry in entries]
    assert numbers == sorted(set(numbers)), "no entry twice, none out of order"
