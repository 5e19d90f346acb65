"""The law where a run is cut off: the agent is killed between two lines, the session closes what is open.

What the agent had written down by then may be a little behind what it printed, or ahead of it.

1.  Where both reach equally far, live equals rest as at the end of a run, at every point.
2.  Wherever they reach: a block that is whole in both has the same content in both and the same place
    among those that both have; one that was cut off live, and is whole at rest, begins with what was
    seen of it. What only one of them has came from lines that the other does not have.
3.  Every call is answered once in both. One that only one of them saw answered is cancelled in the other.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.blocks import (
    MAIN,
    AssistantText,
    Block,
    BlockState,
    Subagent,
    Thinking,
    ToolResult,
    ToolUse,
    UserMessage,
)
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.adapters.agents.claude.scenarios import (
    CUT_OFF,
    Transcript,
    kept,
    lines,
    live_blocks,
    translate_all,
    written,
)
from tests.adapters.agents.claude.test_live_equals_rest import RECORDED, comparable, order

PLACES = 1000
NEVER_ANSWERED = "The tool call was cut off."


def cut_live(scenario: str, cut: int) -> list[Block]:
    return live_blocks(translate_all(lines(scenario)[:cut]))


@pytest.mark.parametrize("scenario", RECORDED)
def test_at_every_point_of_a_run_live_equals_rest(scenario: str) -> None:
    for cut in range(len(lines(scenario)) + 1):
        live = cut_live(scenario, cut)
        rest = list(ClaudeAgent().read_transcript(kept(scenario, cut)))
        for conversation in {block.conversation_id for block in live + rest}:
            at_rest = comparable(rest, conversation, live, rest)
            assert at_rest == comparable(live, conversation, live, rest), (cut, conversation)
        assert order(rest, live, rest) == order(live, live, rest), cut


@st.composite
def cuts(draw: st.DrawFn) -> tuple[str, int, dict[str, int]]:
    """A recording, where its lines were cut, and up to which line each thread of its transcript reaches."""
    scenario = draw(st.sampled_from(RECORDED))
    cut = draw(st.integers(0, PLACES)) * len(lines(scenario)) // PLACES
    return scenario, cut, {key: max(cut + draw(st.integers(-12, 12)), 0) for key in written(scenario)}


@settings(max_examples=600, deadline=None)
@given(cuts())
def test_what_both_have_is_the_same_wherever_each_was_cut_off(cut: tuple[str, int, dict[str, int]]) -> None:
    scenario, printed, reach = cut
    native = lines(scenario)
    live = cut_live(scenario, printed)
    rest = list(ClaudeAgent().read_transcript(reaching(scenario, reach)))
    shown, stored = ({block.id: block for block in blocks} for blocks in (live, rest))
    for block_id in shown.keys() & stored.keys():
        assert_agree(shown[block_id], stored[block_id])
    assert_answered_once(live)
    assert_answered_once(rest)

    behind, ahead = min([printed, *reach.values()]), max([printed, *reach.values()])
    surely = {block.id for block in cut_live(scenario, behind) if is_whole(block)}
    at_most = {block.id for block in cut_live(scenario, min(ahead, len(native)))}
    assert surely <= shown.keys()
    assert {b for b in surely if not missing_at_rest(scenario, b)} <= stored.keys()
    assert {b.id for b in rest if not is_said(b)} <= at_most | {block.id for block in live}
    for conversation in {block.conversation_id for block in live}:
        one, other = (
            [block.id for block in blocks if block.conversation_id == conversation and is_own(block)]
            for blocks in (live, rest)
        )
        assert [id_ for id_ in one if id_ in other] == [id_ for id_ in other if id_ in one]


def reaching(scenario: str, reach: dict[str, int]) -> Transcript:
    return {key: kept(scenario, until)[key] for key, until in reach.items()}


def assert_agree(live: Block, rest: Block) -> None:
    match live, rest:
        case (AssistantText() | Thinking(), AssistantText() | Thinking()):
            if live.state is BlockState.ABORTED:
                assert rest.content.startswith(live.content)
            else:
                assert live.content == rest.content
        case (ToolUse(), ToolUse()):
            if live.state is rest.state is BlockState.COMPLETE:
                assert live.input == rest.input
            assert live.tool_name == rest.tool_name
            assert live.status == rest.status or "cancelled" in {live.status, rest.status}
        case (ToolResult(), ToolResult()):
            if is_own(live) and is_own(rest):
                assert live.output == rest.output
                assert live.is_error == rest.is_error
        case (Subagent(), Subagent()):
            assert (live.subagent_id, live.name, live.input) == (rest.subagent_id, rest.name, rest.input)
        case _:
            assert live.type == rest.type


def is_own(block: Block) -> bool:
    """Not made up for a call that was never answered."""
    return not isinstance(block, ToolResult) or block.output not in (CUT_OFF, NEVER_ANSWERED)


def is_whole(block: Block) -> bool:
    return block.state is BlockState.COMPLETE and is_own(block)


def is_said(block: Block) -> bool:
    """The session makes it before the agent is told."""
    return isinstance(block, UserMessage) and block.conversation_id == MAIN


def missing_at_rest(scenario: str, block_id: str) -> bool:
    """Whether the transcript of the whole run has no such block."""
    return block_id not in {block.id for block in ClaudeAgent().read_transcript(kept(scenario))}


def assert_answered_once(blocks: list[Block]) -> None:
    called = [block.tool_use_id for block in blocks if isinstance(block, ToolUse)]
    answered = [block.tool_use_id for block in blocks if isinstance(block, ToolResult)]
    assert sorted(called) == sorted(answered)
