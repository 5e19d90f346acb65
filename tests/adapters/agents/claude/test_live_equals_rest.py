"""The law: the blocks of a live run equal the blocks of its transcript, ids and order included."""

from typing import Any

import pytest

from agent_runtime.blocks import MAIN, Block, BlockState, Subagent, System, ToolResult, UserMessage
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_sandbox.drivers.shown_order import NOTE
from tests.adapters.agents.claude.scenarios import (
    CUT_OFF,
    SCENARIOS,
    in_conversation,
    kept,
    lines,
    live_blocks,
    transcript,
    translated,
)

ONLY_LIVE = {
    "turn_id": "the transcript knows no turns of ours",
    "timestamp": "lines are printed a little after they were written down, or have no time at all",
    "duration_ms": "a subagent's is only in the line that tells of its end",
    "display_name": "an MCP tool's title is only printed",
}
"""Fields that are not compared, and why."""


ONLY_LIVE_SCENARIOS = {"subagent_without_its_text"}
"""Recorded with the forwarding of a subagent's text turned off, which the driver turns on."""
RECORDED = sorted(set(SCENARIOS) - ONLY_LIVE_SCENARIOS)


def in_both(block: Block, live: list[Block], rest: list[Block]) -> bool:
    """Whether both records can hold this block."""
    match block:
        case UserMessage(conversation_id="main"):
            return False  # live, the session makes it before the agent is told
        case System(subtype="api_retry"):
            return False  # written down under another id, and not every time
        case System(subtype="interrupted") if block.conversation_id in killed(live):
            return False  # nobody is told how a child that died with its turn took it
        case ToolResult() if block.tool_use_id in thrown_away(live, rest):
            return False  # as the call
    return block.id not in thrown_away(live, rest)


def thrown_away(live: list[Block], rest: list[Block]) -> set[str]:
    """What was streamed for a request that failed, or was no whole call yet when the user interrupted."""
    kept = {block.id for block in rest}
    return {block.id for block in live if block.state is BlockState.ABORTED and block.id not in kept}


def killed(live: list[Block]) -> set[str]:
    return {
        block.subagent_id for block in live if isinstance(block, Subagent) and block.status == "cancelled"
    }


def comparable(blocks: list[Block], conversation: str, live: list[Block], rest: list[Block]) -> list[Any]:
    made_up = {block.id for block in live if isinstance(block, ToolResult) and block.output == CUT_OFF}
    return [
        # The words for a call that was never answered are the runtime's, and not always the same.
        block.model_dump(exclude={*ONLY_LIVE, "output"} if block.id in made_up else set(ONLY_LIVE))
        for block in in_conversation(blocks, conversation)
        if in_both(block, live, rest)
    ]


def order(blocks: list[Block], live: list[Block], rest: list[Block]) -> list[str]:
    """The blocks of all conversations in order, but for results that the runtime made at the turn's end."""
    made_up = {block.id for block in live if isinstance(block, ToolResult) and block.output == CUT_OFF}
    return [block.id for block in blocks if in_both(block, live, rest) and block.id not in made_up]


@pytest.mark.parametrize("scenario", RECORDED)
def test_a_run_has_the_same_blocks_live_and_at_rest(scenario: str) -> None:
    live = live_blocks(translated(scenario))
    rest = list(ClaudeAgent().read_transcript(kept(scenario)))
    assert {block.conversation_id for block in live} | {MAIN} == {block.conversation_id for block in rest}
    for conversation in {block.conversation_id for block in rest}:
        assert comparable(rest, conversation, live, rest) == comparable(live, conversation, live, rest)
    assert order(rest, live, rest) == order(live, live, rest)


@pytest.mark.parametrize("scenario", RECORDED)
def test_a_transcript_without_the_drivers_notes_has_the_same_blocks(scenario: str) -> None:
    bare = {key: [e for e in entries if e["type"] != NOTE] for key, entries in transcript(scenario).items()}
    noted, plain = (list(ClaudeAgent().read_transcript(each)) for each in (kept(scenario), bare))
    assert {block.id: block for block in plain} == {block.id: block for block in noted}


def test_what_was_shown_while_another_block_was_written_stands_after_it() -> None:
    """The agent wrote each result down before the call that was being streamed when it came."""
    blocks = ClaudeAgent().read_transcript(transcript("shown_while_streaming"))
    kinds = [block.type for block in in_conversation(blocks) if block.type != "user_message"]
    assert kinds == [
        *("tool_use", "tool_use", "tool_result", "tool_use", "tool_result", "tool_result", "assistant_text"),
        *("tool_use", "assistant_text", "tool_result", "assistant_text"),
        *("tool_use", "subagent", "assistant_text", "tool_result", "assistant_text", "assistant_text"),
    ]


def test_what_the_user_said_is_found_in_the_transcript_under_the_id_of_its_turn() -> None:
    [sent] = {uuid for line in lines("steered") for uuid in line.get("user_message_uuids", [])[1:]}
    said = [b for b in ClaudeAgent().read_transcript(transcript("steered")) if isinstance(b, UserMessage)]
    assert [block.content for block in said] == ["x [[scn:midbash]]", "also this"]
    assert said[1].id == sent


def test_a_slash_command_is_read_back_as_it_was_typed() -> None:
    said = [b for b in ClaudeAgent().read_transcript(transcript("commands")) if isinstance(b, UserMessage)]
    assert [block.content for block in said] == [
        "x [[scn:text]]", "y [[scn:bash]]", "/compact", "/context", "/clear", "z [[scn:text]]",
    ]  # fmt: skip


def test_a_picture_that_the_user_sent_is_read_back() -> None:
    [said] = [b for b in ClaudeAgent().read_transcript(transcript("image")) if isinstance(b, UserMessage)]
    assert [part.type for part in said.content if not isinstance(part, str)] == ["text", "image"]
