"""A runtime that dies or is ended, whenever that is, and the next one over the same folder.

Real processes and signals, real sandboxes that outlive them, the real agent in them, and viewers that
come back with the position they had. What a viewer was told must fold to what is stored, and that must be
what an agent makes that nobody disturbed, and what the agent itself remembers.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.chaos.fold import Folded
from tests.stories.process import House, Life, house, until
from tests.stories.test_main_job import essence, is_block
from tests.stories.viewer import Viewer, get, new_session, viewing

STREAM = Say("The heron stands in the reeds and waits. " * 40, delay_s=0.03)
LAST = Say("And that was the last word of it. " * 4, delay_s=0.03)


def work(seconds: int) -> Any:
    """A command that leaves a mark for each time that it runs."""
    return bash(f"echo ran >> count; sleep {seconds}; echo late > late.txt; cat count", "Work")


SCRIPTS: dict[str, Script] = {
    "stream": [[STREAM]],
    "work": [[Say("I begin."), work(2)], [Say("It is done.")]],
    "long": [[STREAM, work(1)], [Say("Half of it."), work(1)], [LAST]],
}

PROMPTS = {
    "streaming": ["[[script:stream]]"],
    "working": ["[[script:work]]"],
    "waited for": ["[[script:work]]", "[[script:text]] two", "[[script:text]] three"],
    "waking": ["[[script:text]] cold"],
    "handed over": ["[[script:text]] before", "[[script:text]] at once"],
}
"""What is said in each session of the first story."""


async def test_whatever_a_session_is_doing_when_its_runtime_is_killed_it_goes_on_and_loses_nothing(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, scripts=SCRIPTS) as it:
        folds = {name: Folded() for name in PROMPTS}
        async with it.life() as life:
            sessions = {name: await new_session(life) for name in PROMPTS}
            async with following(life, sessions, folds) as viewers:
                await begin_all(sessions, viewers)
                agents = {name: it.agents(sessions[name]) for name in WITH_AGENT}
                await say(viewers, sessions, "waking", 0)
                await say(viewers, sessions, "handed over", 1)
                await life.end(signal.SIGKILL)
        assert {name: it.agents(sessions[name]) for name in WITH_AGENT} == agents, "agents live on"

        stored: dict[str, list[dict[str, Any]]] = {}
        async with it.life() as life:
            undisturbed = {name: await new_session(life) for name in PROMPTS}
            async with following(life, sessions, folds), asyncio.TaskGroup() as tasks:
                for name, session_id in undisturbed.items():
                    tasks.create_task(run(life, session_id, PROMPTS[name]))
                for name, session_id in sessions.items():
                    turns = await all_ended(life, session_id, len(PROMPTS[name]))
                    assert [turn["status"] for turn in turns] == ["completed"] * len(turns), name
            assert {name: it.agents(sessions[name]) for name in WITH_AGENT} == agents
            for name in ("working", "waited for"):
                assert (it.workspace(sessions[name]) / "count").read_text() == "ran\n"
            for name, session_id in sessions.items():
                stored[name] = await blocks(life, session_id)
                assert list(folds[name].blocks.values()) == stored[name]
                assert told(whole(stored[name])) == told(await blocks(life, undisturbed[name])), name
            native = {name: it.native(session_id) for name, session_id in sessions.items()}
        for name, session_id in sessions.items():
            transcript = await it.transcript(session_id)
            assert spoken(transcript["main"]) == spoken(native[name])
            read = ClaudeAgent().read_transcript(transcript)
            remembered = [essence(block.to_json()) for block in read]
            assert remembered == [essence(block) for block in whole(stored[name])]
        cut = [block for each in stored.values() for block in each if block["state"] == "aborted"]
        assert [block["type"] for block in cut] == ["assistant_text"]
        assert STREAM.text.startswith(cut[0]["content"])


WITH_AGENT = ("streaming", "working", "waited for", "handed over")


async def begin_all(sessions: dict[str, str], viewers: dict[str, Viewer]) -> None:
    """Everything is under way that is to be under way when the end comes."""
    await say(viewers, sessions, "handed over", 0)
    for name in ("streaming", "working", "waited for"):
        await say(viewers, sessions, name, 0)
    for at in (1, 2):
        await say(viewers, sessions, "waited for", at)
    await viewers["handed over"].turns_ended(1)
    for name in ("working", "waited for"):
        await viewers[name].until(is_block("tool_use", "block_complete"))
    await viewers["streaming"].until(lambda event: event["type"] == "text_delta")


async def say(viewers: dict[str, Viewer], sessions: dict[str, str], name: str, at: int) -> None:
    ack = await viewers[name].send(sessions[name], PROMPTS[name][at], f"message {at}")
    assert ack["ok"], ack


async def run(life: Life, session_id: str, prompts: list[str]) -> None:
    """Say all of it, to an agent that nobody disturbs."""
    async with viewing(life, session_id) as viewer:
        for at, prompt in enumerate(prompts):
            await viewer.send(session_id, prompt, f"message {at}")
        await viewer.turns_ended(len(prompts))


@asynccontextmanager
async def following(
    life: Life, sessions: dict[str, str], folds: dict[str, Folded]
) -> AsyncIterator[dict[str, Viewer]]:
    """A viewer for each session, who joins with the position it has; what it hears is folded in the end."""
    async with AsyncExitStack() as stack:
        viewers = {name: await stack.enter_async_context(viewing(life)) for name in sessions}
        for name, session_id in sessions.items():
            position = folds[name].position
            where = {"sessionId": session_id, **({"position": position} if position else {})}
            ack = await viewers[name].call("session:join", where)
            assert ack["resume"] == "snapshot", "a log does not outlive its process"
            folds[name].take_join(ack)
        yield viewers
    for name, viewer in viewers.items():
        for event in viewer.events:
            folds[name].take_live(event)


async def all_ended(life: Life, session_id: str, count: int) -> list[dict[str, Any]]:
    """The turns of a session, once there are so many and none is under way."""

    async def ended() -> list[dict[str, Any]] | None:
        turns: list[dict[str, Any]] = (await get(life, f"/api/sessions/{session_id}/turns"))["turns"]
        over = all(turn["status"] not in {"queued", "running"} for turn in turns)
        return turns if over and len(turns) >= count else None

    found: list[dict[str, Any]] = await until(ended, within=30)
    assert len(found) == count
    return found


async def blocks(life: Life, session_id: str) -> list[dict[str, Any]]:
    """What is stored, in order."""
    found: list[dict[str, Any]] = (await get(life, f"/api/sessions/{session_id}/blocks?limit=200"))["blocks"]
    return found


def told(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks without what differs from one run of a script to the next: ids and times."""
    return [{name: value for name, value in essence(block).items() if name not in IDS} for block in blocks]


def whole(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without an answer that broke off, and without the news of it.

    The model is reached through the process that died. The agent asks again and forgets the first half,
    while its viewers have seen it.
    """
    return [block for block in blocks if block["state"] != "aborted" and block.get("subtype") != "api_retry"]


def spoken(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a native transcript that make a conversation; the others are the agent's notes."""
    return [entry for entry in entries if entry["type"] in {"user", "assistant"}]


IDS = {"id", "toolUseId"}
