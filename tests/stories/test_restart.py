"""A runtime that dies or is ended, whenever that is, and the next one over the same folder.

Real processes and signals, real sandboxes that outlive them, the real agent in them, and viewers that
come back with the position they had. What a viewer was told must fold to what is stored, and that must be
what an agent makes that nobody disturbed, and what the agent itself remembers.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Ask, Reply, Say, Script, Wait
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.chaos.fold import Folded
from tests.stories.process import Life, house, program, until
from tests.stories.test_main_job import essence, is_block
from tests.stories.viewer import Viewer, get, new_session, viewing
from tests.waiting import eventually

STREAM = Say("The heron stands in the reeds and waits. " * 30, delay_s=0.02)
LAST = Say("And that was the last word of it. " * 2, delay_s=0.03)

ALONE = "Nobody was there when I said this."
TERM_S = 4.0
"""For a runtime to let go of what lives on."""
INT_S = 10.0
"""For a runtime to end an agent at work with its sandbox."""
ORPHAN_S = 1.0


def broken_off() -> Script:
    """A text whose first telling stays in its middle, until whoever asked for it is gone."""
    asked: list[Ask] = []

    def reply(ask: Ask) -> Reply:
        asked.append(ask)
        return [STREAM] if len(asked) > 1 else [Say(STREAM.text[: len(STREAM.text) // 2]), Wait(600)]

    return reply


def work() -> Any:
    """A command of a second that leaves a mark for each time that it runs."""
    return bash("echo ran >> count; sleep 1; echo late > late.txt; cat count", "Work")


SCRIPTS: dict[str, Script] = {
    "work": [[Say("I begin."), work()], [Say("It is done.")]],
    "long": [[STREAM, work()], [Say("Half of it."), work()], [LAST]],
    "alone": [[Wait(0.5), Say(ALONE)]],
    "endless": [[bash("while true; do sleep 5; done", "Work for ever")]],
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
    async with house(tmp_path, scripts=SCRIPTS | {"stream": broken_off()}) as it:
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


async def test_three_kills_in_one_turn_and_it_still_ends_once_and_whole(tmp_path: Path) -> None:
    moments: list[Callable[[dict[str, Any]], bool]] = [
        lambda event: event["type"] == "text_delta",
        is_block("tool_use", "block_complete"),
        lambda event: event["type"] == "block_complete" and event["block"].get("content") == LAST.text,
    ]
    async with house(tmp_path, scripts=SCRIPTS) as it:
        folds, sessions, agents = {"only": Folded()}, dict[str, str](), []
        for kill, moment in enumerate(moments):
            async with it.life() as life:
                if not sessions:
                    sessions["only"] = await new_session(life)
                async with following(life, sessions, folds) as viewers:
                    if kill == 0:
                        await viewers["only"].send(sessions["only"], "[[script:long]]", "long")
                    await viewers["only"].until(moment)
                    await life.end(signal.SIGKILL)
            agents += it.agents(sessions["only"])
        async with it.life() as life:
            async with following(life, sessions, folds):
                (turn,) = await all_ended(life, sessions["only"], 1)
            stored = await blocks(life, sessions["only"])
            ran = (it.workspace(sessions["only"]) / "count").read_text()
            kept = await file(life, sessions["only"], "count")

    assert turn["status"] == "completed"
    assert len(agents) == 3
    assert len(set(agents)) == 1
    assert ran == kept == "ran\nran\n"
    assert list(folds["only"].blocks.values()) == stored
    assert [block.get("content", block.get("output")) for block in whole(stored)] == [
        *("[[script:long]]", STREAM.text, None, "ran"),
        *("Half of it.", None, "ran\nran", LAST.text),
    ]


async def test_a_message_sent_ten_times_around_a_kill_is_one_turn_and_the_model_hears_it_once(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, scripts=SCRIPTS) as it:
        async with it.life() as life, AsyncExitStack() as stack:
            session_id = await new_session(life)
            viewers = [await stack.enter_async_context(viewing(life, session_id)) for _ in range(5)]
            await viewers[0].send(session_id, "[[script:text]] before", "before")
            await viewers[0].turns_ended(1)
            os.kill(it.runner(session_id), signal.SIGSTOP)  # the agent cannot hear it yet
            sends = [viewer.send(session_id, "[[script:text]] the heron", "same") for viewer in viewers * 2]
            acks = await asyncio.gather(*sends)
            await life.end(signal.SIGKILL)
        os.kill(it.runner(session_id), signal.SIGCONT)
        async with it.life() as life, viewing(life, session_id) as viewer:
            acks.append(await viewer.send(session_id, "[[script:text]] the heron", "same"))
            _, turn = await all_ended(life, session_id, 2)
            said = [block["content"] for block in whole(await blocks(life, session_id))]
        asked = [ask for ask in it.model.requests if "the heron" in str(ask.body)]

    assert {ack["turnId"] for ack in acks} == {turn["turnId"]}
    assert [ack["duplicate"] for ack in acks].count(False) == 1
    assert turn["status"] == "completed"
    assert len(said) == 4
    assert said.count("[[script:text]] the heron") == 1
    assert len(asked) == 1


async def test_sigterm_leaves_the_agents_at_work_and_sigint_ends_them(tmp_path: Path) -> None:
    async with house(tmp_path, scripts=SCRIPTS) as it:
        async with it.life() as life:
            working, ending = await new_session(life), await new_session(life)
            async with viewing(life, working) as one, viewing(life, ending) as other:
                await other.send(ending, "[[script:text]]", "before")
                await other.turns_ended(1)
                await one.send(working, "[[script:work]]", "work")
                await one.until(is_block("tool_use", "block_complete"))
                await other.send(ending, "[[script:alone]]", "alone")
                await eventually(lambda: it.model.requests[-1].script == "alone")
                os.kill(it.runner(ending), signal.SIGSTOP)  # what its agent says stays in a pipe
                await eventually(lambda: ALONE in str(it.native(ending)))
                took = await life.end(signal.SIGTERM)
        assert life.process.returncode == 0
        assert took < TERM_S
        os.kill(it.runner(ending), signal.SIGCONT)
        await eventually(lambda: it.journal(ending).count(b'"type":"result"'))
        agents = it.agents(working), it.agents(ending)

        async with it.life() as life:
            (worked,) = await all_ended(life, working, 1)
            _, ended = await all_ended(life, ending, 2)
            assert [turn["status"] for turn in (worked, ended)] == ["completed", "completed"]
            assert [block.get("content") for block in await blocks(life, ending)][-1] == ALONE
            assert [block["type"] for block in whole(await blocks(life, working))] == [
                *("user_message", "assistant_text", "tool_use", "tool_result", "assistant_text")
            ]
            assert (it.agents(working), it.agents(ending)) == agents
            async with viewing(life, working) as one:
                await one.send(working, "[[script:endless]]", "endless")
                await one.until(is_block("tool_use", "block_complete"))
                took = await life.end(signal.SIGINT)
        assert life.process.returncode == 0
        assert took < INT_S
        assert it.sandboxes() == ()

        async with it.life() as life:
            _, broken_off = await all_ended(life, working, 2)
            assert (broken_off["status"], broken_off["error"]["code"]) == ("failed", "runtime_stopped")
            assert [block["type"] for block in await blocks(life, working)][-3:] == [
                *("user_message", "tool_use", "tool_result")
            ]


async def test_agents_of_a_runtime_that_never_comes_back_end_by_themselves(tmp_path: Path) -> None:
    async with house(tmp_path, scripts=SCRIPTS, orphanTimeoutS=ORPHAN_S) as it:
        async with it.life() as life:
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await viewer.send(session_id, "[[script:endless]]", "endless")
                await viewer.until(is_block("tool_use", "block_complete"))
                await eventually(lambda: "sleep" in it.inside(session_id).values())
                inside = it.inside(session_id)
                await life.end(signal.SIGKILL)
        assert set(inside.values()) >= {"claude", "sleep"}
        await eventually(lambda: not any(map(program, inside)), within=ORPHAN_S + 12)

        async with it.life() as life:
            (turn,) = await all_ended(life, session_id, 1)
            await eventually(lambda: it.sandboxes() == ())
            assert (turn["status"], turn["error"]["code"]) == ("failed", "sandbox_lost")
            await run(life, session_id, ["[[script:text]] again"])


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


async def file(life: Life, session_id: str, path: str) -> str:
    """A file as it is kept."""
    async with life.http.get(f"/api/sessions/{session_id}/files/{path}") as response:
        assert response.status == 200
        return await response.text()


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
