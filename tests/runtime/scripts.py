"""Scripts for the scripted agent, and what holds for every log of events."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from agent_runtime.blocks import BlockState, ToolUse
from agent_runtime.clock import now
from agent_runtime.errors import RuntimeFault
from agent_runtime.events import BlockComplete, BlockStart, TextDelta
from agent_runtime.records import TurnStatus
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.world import World, killed, runtime
from tests.waiting import eventually


class Curtain:
    """A script that plays `echo` for each message once it is raised, or until it is interrupted."""

    def __init__(self) -> None:
        self.raised = asyncio.Event()
        self.stages: list[Stage] = []

    async def __call__(self, stage: Stage) -> None:
        self.stages.append(stage)
        async with asyncio.TaskGroup() as tasks:
            either = [tasks.create_task(event.wait()) for event in (self.raised, stage.interrupted)]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in either:
                task.cancel()
        if stage.interrupted.is_set():
            stage.rest(TurnStatus.CANCELLED, stop_reason="interrupted")
        else:
            await echo(stage)

    async def playing(self, count: int = 1) -> Stage:
        await eventually(lambda: len(self.stages) >= count)
        return self.stages[count - 1]


async def never_rests(stage: Stage) -> None:
    """Opens a block and a tool call, and works on."""
    tool = ToolUse(id="t", tool_name="Bash", tool_use_id="call", timestamp=now())
    stage.tell(
        BlockStart(block=tool.model_copy(update={"state": BlockState.STREAMING})),
        BlockComplete(block_id="t", block=tool),
    )
    half = {"id": "half", "type": "assistant_text", "state": "streaming", "timestamp": "2026-01-01T00:00:00Z"}
    stage.line({"event": {"type": "block_start", "block": half}})
    stage.tell(TextDelta(block_id="half", delta="I was about to"))


def kinds(events: list[Any]) -> list[str]:
    return [event.type for event in events]


def assert_orderly(events: list[Any]) -> None:
    """What holds for every log: turns begin and end once, blocks are closed, tools answered."""
    turn: str | None = None
    open_blocks: set[str] = set()
    ended: set[str] = set()
    called: list[str] = []
    answered: list[str] = []
    for event in events:
        match event.type:
            case "turn_start":
                assert event.turn.turn_id not in ended
                turn = turn or event.turn.turn_id
            case "turn_end":
                assert event.turn.turn_id not in ended
                ended.add(event.turn.turn_id)
                if turn == event.turn.turn_id:
                    turn = None
                    assert not open_blocks
            case "block_start":
                open_blocks.add(event.block.id)
            case "block_complete":
                open_blocks.remove(event.block_id)
                if event.block.type == "tool_use":
                    called.append(event.block.tool_use_id)
                if event.block.type == "tool_result":
                    answered.append(event.block.tool_use_id)
    assert turn is None
    assert not open_blocks
    assert sorted(set(called)) == sorted(answered)


async def others_get_on() -> None:
    """Let every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


async def eventually_told(it: World, session_id: str, kind: str) -> None:
    async with asyncio.timeout(20):
        while not await it.of(session_id, kind):
            await it.log.wait(session_id, await it.log.head(session_id))


async def waits(_: Stage) -> None:
    """Takes the message and says nothing."""


async def refused(call: Awaitable[Any]) -> RuntimeFault | None:
    """What a call is refused with, if it is."""
    try:
        await call
    except RuntimeFault as fault:
        return fault
    return None


async def cut_off(
    sandboxes: ScriptedSandboxes, store: MemoryPersistence, curtain: Curtain
) -> tuple[str, Stage]:
    """A runtime that was killed in the middle of its first turn; the session and the agent's stage."""
    async with runtime(sandboxes, store, leaves=True) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        await killed(it)
    return session_id, stage
