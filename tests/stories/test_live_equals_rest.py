"""The whole system keeps its promise: live blocks equal stored blocks equal the agent's own record.

Real server, sandbox and agent; turns are interrupted at random moments (the seeds are fixed), sandboxes
die in mid-turn, agents are ended and resumed in new processes. After each of these all three are compared.
"""

import random
import signal
from typing import Any

import pytest

from agent_runtime.blocks import MAIN, Block, System
from agent_runtime.testing.scenarios import agent, bash
from agent_runtime.testing.script import Call, Say, Script, Think
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.stories.serving import Server, serving
from tests.stories.test_bad_luck import RUNNER
from tests.stories.test_bad_luck import send as send_signal
from tests.stories.test_main_job import essence, folded
from tests.stories.viewer import Viewer, get, new_session, viewing

MADE_UP = (
    "The agent gave no result.",
    "Interrupted.",
    "The turn failed before this tool gave a result.",
)
"""What the runtime answers for a call that the agent never answered."""


def slow_bash(text: str) -> Call:
    return Call("Bash", {"command": f"echo {text}", "description": "Tell"}, delay_s=0.05, chunk=8)


SCRIPTS: dict[str, Script] = {
    "talk": [
        [
            Think("I wonder. " * 6, delay_s=0.03),
            Say("I look at it now. " * 6, delay_s=0.03),
            slow_bash("one"),
        ],
        [Say("That was it. " * 12, delay_s=0.03)],
    ],
    "tools": [
        [
            bash("sleep 0.2; echo one", "First"),
            slow_bash("two"),
            slow_bash("three"),
            Say("Wait. " * 20, 0.03),
        ],
        [bash("sleep 0.4; echo four", "Fourth"), bash("exit 3", "Fifth")],
        [Say("All done.")],
    ],
    "children": [
        [agent("One", "go [[script:child]]"), agent("Two", "go [[script:child]]"), slow_bash("beside")],
        [Say("Both came back. " * 6, delay_s=0.03)],
    ],
    "behind": [
        [agent("Three", "go [[script:child]]", background=True), Say("It works on its own. " * 20, 0.03)],
        [Say("I go on. " * 20, 0.03)],
    ],
    "child": [[Say("A child."), bash("sleep 0.2; echo from-a-child", "Tell")], [Say("The child is done.")]],
}
KINDS = ("talk", "tools", "children", "behind")


@pytest.mark.parametrize("kind", KINDS)
async def test_interrupted_at_random_moments_and_resumed_all_three_are_the_same(kind: str) -> None:
    chance = random.Random(kind)
    async with serving(scripts=SCRIPTS) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            for number in (1, 2, 3):
                await viewer.send(session_id, f"[[script:{kind}]]", f"cut {number}")
                await after_events(viewer, number, chance.randrange(1, 45))
                await viewer.call("session:interrupt", {"sessionId": session_id})
                await turn_of(viewer, f"cut {number}")
                await compare(server, viewer, session_id)
            async with server.http.post(f"/api/sessions/{session_id}/stop") as response:
                assert response.status == 200
            await viewer.send(session_id, f"[[script:{kind}]]", "whole")
            whole = await turn_of(viewer, "whole")
            blocks = await compare(server, viewer, session_id)

    assert whole["status"] == "completed"
    assert {"user_message", "assistant_text", "tool_use", "tool_result"} <= {
        block["type"] for block in blocks
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sandbox_that_dies_in_mid_turn_and_the_turns_after_it_change_no_block(kind: str) -> None:
    chance = random.Random(f"killed {kind}")
    async with serving(scripts=SCRIPTS) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:text]]", "first")
            await turn_of(viewer, "first")
            await viewer.send(session_id, f"[[script:{kind}]]", "killed 1")
            await after_events(viewer, 2, chance.randrange(1, 45))
            send_signal(signal.SIGKILL, RUNNER, server)
            lost = await turn_of(viewer, "killed 1")
            before = await stored(server, session_id)
            await viewer.send(session_id, f"[[script:{kind}]]", "whole")
            whole = await turn_of(viewer, "whole")
            blocks = await compare(server, viewer, session_id, behind={"killed 1"})

    assert [lost["status"], whole["status"]] == ["failed", "completed"]
    assert blocks[: len(before)] == before
    assert any("Your sandbox was replaced" in str(asked.body) for asked in server.model.requests)
    assert "Your sandbox was replaced" not in str(blocks)


async def test_after_a_clear_the_new_conversation_is_resumed_and_all_blocks_are_kept() -> None:
    async with serving(scripts=SCRIPTS) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            for number, said in enumerate(
                ("the heron [[script:tools]]", "/clear", "the stork [[script:children]]")
            ):
                await viewer.send(session_id, said, f"{number}")
                await turn_of(viewer, f"{number}")
            async with server.http.post(f"/api/sessions/{session_id}/stop") as response:
                assert response.status == 200
            await viewer.send(session_id, "[[script:text]]", "after")
            await turn_of(viewer, "after")
            blocks = await compare(server, viewer, session_id)

    asked = str(server.model.requests[-1].body["messages"])
    assert "the stork" in asked
    assert "the heron" not in asked
    said = [block["content"] for block in blocks if block["type"] == "user_message"]
    assert [content for content in said if "go [[" not in content] == [
        "the heron [[script:tools]]", "/clear", "the stork [[script:children]]", "[[script:text]]",
    ]  # fmt: skip


async def after_events(viewer: Viewer, turn: int, count: int) -> None:
    """Return when so many events of the turn were told, or it is over."""
    turns, seen = 0, 0

    def enough(event: dict[str, Any]) -> bool:
        nonlocal turns, seen
        turns += event["type"] == "turn_start"
        seen += turns >= turn
        return seen > count or (turns >= turn and event["type"] == "turn_end")

    await viewer.until(enough)


async def turn_of(viewer: Viewer, message_id: str) -> dict[str, Any]:
    """How the turn of a message ended."""
    event = await viewer.until(
        lambda event: event["type"] == "turn_end" and event["turn"].get("messageId") == message_id
    )
    turn: dict[str, Any] = event["turn"]
    return turn


async def stored(server: Server, session_id: str) -> list[dict[str, Any]]:
    async with server.http.post(f"/api/sessions/{session_id}/sync") as response:
        assert response.status == 200
    page = await get(server, f"/api/sessions/{session_id}/blocks?limit=200")
    assert not page["hasMore"]
    blocks: list[dict[str, Any]] = page["blocks"]
    return blocks


async def compare(
    server: Server, viewer: Viewer, session_id: str, behind: set[str] | None = None
) -> list[dict[str, Any]]:
    """All three; returns the blocks. Of turns that are `behind` the transcript may lack the end.

    So it may of a turn that was interrupted before the agent had written its message down.
    """
    await viewer.until(lambda _: not any(is_at_work(block) for block in folded(viewer).values()))
    for _ in range(20):  # what an interrupted child says last may come while we read
        blocks, live = await stored(server, session_id), folded(viewer)
        if len(blocks) == len(live):
            break
    assert [block["id"] for block in blocks] == list(live)
    assert {block["id"]: block for block in blocks} == live

    transcript = await server.runtime.config.persistence.load_transcript(session_id)
    parsed = ClaudeAgent().read_transcript(transcript)
    ledger = (await get(server, f"/api/sessions/{session_id}/turns"))["turns"]
    lacking = {turn["turnId"] for turn in ledger if turn.get("messageId") in (behind or ())}
    lacking |= {turn["turnId"] for turn in ledger if was_never_heard(turn, blocks)}
    at_rest = {block.id for block in parsed}
    assert [block for block in parsed if block.id not in live and not is_only_at_rest(block)] == []
    missing = [block for block in blocks if block["id"] not in at_rest and block.get("turnId") not in lacking]
    assert [block for block in missing if not only_live(block, live)] == []
    for block in (block for block in parsed if block.id in live):
        shown = live[block.id]
        if shown.get("turnId") not in lacking:
            assert comparable(block.to_json(), shown) == comparable(shown, shown)
    for conversation in {block["conversationId"] for block in blocks}:
        assert in_order(parsed, conversation, live) == [
            block["id"]
            for block in blocks
            if block["conversationId"] == conversation and block["id"] in at_rest
        ]
    return blocks


def was_never_heard(turn: dict[str, Any], blocks: list[dict[str, Any]]) -> bool:
    """Interrupted before the agent wrote the message down: then it remembers nothing of the turn."""
    told = [block["type"] for block in blocks if block.get("turnId") == turn["turnId"]]
    return bool(turn["status"] == "cancelled" and told == ["user_message"])


def is_at_work(block: dict[str, Any]) -> bool:
    """A child in the background ends whenever it does."""
    return block["type"] == "subagent" and block["status"] == "running"


def in_order(parsed: tuple[Block, ...], conversation: str, live: dict[str, Any]) -> list[str]:
    return [block.id for block in parsed if block.conversation_id == conversation and block.id in live]


def is_only_at_rest(block: Block) -> bool:
    """Nobody is told how a child that died with its turn took it."""
    return isinstance(block, System) and block.subtype == "interrupted" and block.conversation_id != MAIN


def only_live(block: dict[str, Any], live: dict[str, dict[str, Any]]) -> bool:
    """What was not whole yet when it was cut off, with its answer; how a child took it is written later."""
    if block["type"] == "tool_result":
        block = live[block["toolUseId"]]
    return block["state"] == "aborted" or block.get("subtype") == "interrupted"


def comparable(block: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    made_up = {"output"} if live["type"] == "tool_result" and live["output"] in MADE_UP else set()
    return {name: value for name, value in essence(block).items() if name not in made_up}
