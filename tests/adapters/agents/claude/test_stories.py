"""The facts about the agent that are easiest to get wrong, each told once."""

import pickle

from agent_runtime.blocks import (
    MAIN,
    AssistantText,
    Block,
    BlockState,
    Subagent,
    SubagentStatus,
    Thinking,
    ToolResult,
    ToolStatus,
    ToolUse,
    UserMessage,
)
from agent_runtime.events import BlockComplete, BlockStart, MetadataUpdate, TextDelta
from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnBegan, AgentTurnEnded
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from tests.adapters.agents.claude.scenarios import (
    AT,
    in_conversation,
    lines,
    live_blocks,
    transcript,
    translate_all,
    translated,
)


def ended(scenario: str) -> list[AgentTurnEnded]:
    return [fact for fact in translated(scenario) if isinstance(fact, AgentTurnEnded)]


def kinds(blocks: list[Block]) -> list[str]:
    return [block.type for block in blocks]


def test_parallel_tools_answer_in_the_order_in_which_they_finish() -> None:
    blocks = live_blocks(translated("parallel_tools"))
    calls = [block for block in blocks if isinstance(block, ToolUse)]
    results = [block for block in blocks if isinstance(block, ToolResult)]
    assert [call.input["description"] for call in calls] == ["a", "b", "c"]
    assert [result.output for result in results] == ["three", "two", "one"]
    assert {call.status for call in calls} == {ToolStatus.SUCCESS}


def test_a_tool_may_answer_while_its_message_is_still_being_written() -> None:
    blocks = live_blocks(translated("results_before_message_ends"))
    assert kinds(blocks) == [
        "tool_use", "tool_result", "tool_use", "tool_result", "assistant_text", "assistant_text",
    ]  # fmt: skip
    assert blocks[4].id == f"{message_of(blocks[4])}:2"


def message_of(block: Block) -> str:
    return block.id.rpartition(":")[0]


def test_text_of_a_failed_request_is_aborted_and_the_answer_is_a_new_block() -> None:
    abandoned, answer = live_blocks(translated("stream_failed_then_whole"))
    assert isinstance(abandoned, AssistantText)
    assert isinstance(answer, AssistantText)
    assert (abandoned.state, answer.state) == (BlockState.ABORTED, BlockState.COMPLETE)
    assert answer.content.startswith(abandoned.content)
    assert message_of(abandoned) != message_of(answer)


def test_what_was_whole_before_a_request_failed_stays() -> None:
    blocks = live_blocks(translated("stream_failed_after_tool"))
    assert kinds(blocks) == ["assistant_text", "tool_use", "tool_result", "error", "assistant_text"]
    assert {block.state for block in blocks} == {BlockState.COMPLETE}
    assert [turn.status for turn in ended("stream_failed_after_tool")] == [TurnStatus.COMPLETED]


def test_an_interrupted_text_keeps_what_was_said_and_the_turn_is_cancelled() -> None:
    text, mark, *later = live_blocks(translated("interrupt_text"))
    assert isinstance(text, AssistantText)
    assert text.state is BlockState.ABORTED
    assert text.content.startswith("word0 word1")
    assert mark.type == "system"
    assert kinds(later) == ["assistant_text"]
    assert [turn.status for turn in ended("interrupt_text")] == [TurnStatus.CANCELLED, TurnStatus.COMPLETED]
    assert ended("interrupt_text")[0].stop_reason == "interrupted"


def test_an_interrupted_tool_is_cancelled_not_failed() -> None:
    call, result, _mark = live_blocks(translated("interrupt_tool"))
    assert isinstance(call, ToolUse)
    assert isinstance(result, ToolResult)
    assert (call.status, result.is_error) == (ToolStatus.CANCELLED, True)


def test_a_call_that_was_never_whole_is_aborted() -> None:
    calls = [b for b in live_blocks(translated("interrupt_tool_input")) if isinstance(b, ToolUse)]
    assert [(call.state, call.status, call.input) for call in calls] == [
        (BlockState.ABORTED, ToolStatus.CANCELLED, {})
    ]


def test_a_refused_tool_is_denied_and_a_failed_one_is_an_error() -> None:
    def status(scenario: str) -> str:
        return next(b.status for b in live_blocks(translated(scenario)) if isinstance(b, ToolUse))

    assert status("denied_by_hook") == status("denied_by_user") == status("denied_by_mode") == "denied"
    assert status("tool_failed") == status("unknown_tool") == "error"


def test_a_long_output_says_that_it_was_cut() -> None:
    [result] = [b for b in live_blocks(translated("long_output")) if isinstance(b, ToolResult)]
    assert result.truncated is True


def test_thinking_streams_like_text_and_tells_how_long_it_took() -> None:
    facts = translated("thinking")
    [thought] = [block for block in live_blocks(facts) if isinstance(block, Thinking)]
    pieces = [f.delta for f in facts if isinstance(f, TextDelta) and f.block_id == thought.id]
    assert "".join(pieces) == thought.content
    assert thought.duration_ms == 1


def test_a_background_subagent_brings_a_turn_that_nobody_asked_for() -> None:
    facts = translated("background_subagent")
    asked, by_itself = ended("background_subagent")
    assert (asked.autonomous, by_itself.autonomous) == (False, True)
    assert len(asked.message_ids) == 1
    assert by_itself.message_ids == ()
    first_end = facts.index(asked)
    completed = [f for f in facts if isinstance(f, BlockComplete) and isinstance(f.block, Subagent)]
    assert facts.index(completed[0]) < first_end, "the child's block is whole before its turn ends"
    [child] = [block for block in live_blocks(facts) if isinstance(block, Subagent)]
    assert (child.status, child.output) == (SubagentStatus.SUCCESS, "Background subagent result.")


def test_the_child_of_a_child_has_a_conversation_of_its_own() -> None:
    blocks = live_blocks(translated("nested_subagents"))
    outer, inner = [block for block in blocks if isinstance(block, Subagent)]
    assert (outer.conversation_id, inner.conversation_id) == (MAIN, outer.subagent_id)
    for child in (outer, inner):
        prompt, *_rest = in_conversation(blocks, child.subagent_id)
        assert isinstance(prompt, UserMessage)
        assert prompt.content == child.input["prompt"]
    assert kinds(in_conversation(blocks, inner.subagent_id)) == [
        "user_message", "thinking", "assistant_text", "tool_use", "tool_result", "assistant_text",
    ]  # fmt: skip


def test_two_children_at_once_do_not_mix() -> None:
    blocks = live_blocks(translated("two_subagents"))
    children = [block for block in blocks if isinstance(block, Subagent)]
    assert [child.input["description"] for child in children] == ["Sub A", "Sub B"]
    told = [kinds(in_conversation(blocks, child.subagent_id)) for child in children]
    assert told[0] == told[1]


def test_an_overloaded_model_fails_the_turn_with_a_code_that_invites_another_try() -> None:
    retry, error = live_blocks(translated("error_529"))
    assert (retry.type, error.type) == ("system", "error")
    [turn] = ended("error_529")
    assert turn.error is not None
    assert (turn.status, turn.error.code, turn.error.retryable) == ("failed", "model_overloaded", True)


def test_every_kind_of_failure_has_its_stable_code() -> None:
    def code(scenario: str) -> str | None:
        error = ended(scenario)[0].error
        return error.code if error else None

    assert code("error_401") == code("error_no_key") == "model_authentication_failed"
    assert code("error_429") == "model_rate_limited"
    assert code("error_400") == code("error_413") == "model_request_rejected"
    assert code("error_500") == "model_error"
    assert code("refusal") == "model_refused"
    assert code("output_limit") == "model_output_limit"
    assert code("turn_limit") == "turn_limit_reached"
    assert code("budget") == "budget_exceeded"


def test_a_steered_turn_answers_both_messages() -> None:
    [turn] = ended("steered")
    assert len(turn.message_ids) == 2


def test_two_messages_that_waited_together_are_one_turn_that_names_both() -> None:
    assert [len(fact.message_ids) for fact in ended("queued_messages_together")] == [1, 2]


def test_a_turn_of_the_agents_own_that_took_a_message_in_is_that_messages_turn() -> None:
    own = ended("background_turn_takes_a_message")[-1]
    assert len(own.message_ids) == 1
    assert own.autonomous is False
    assert ended("background_command")[-1].autonomous is True


def test_a_message_that_is_cancelled_before_it_is_taken_up_ends_as_cancelled() -> None:
    states = [("one", "queued"), ("one", "cancelled")]
    (ended,) = translate_all(lifecycle(*states))
    assert ended == AgentTurnEnded(TurnStatus.CANCELLED, stop_reason="interrupted", message_ids=("one",))


def test_a_message_that_is_cancelled_with_its_turn_ends_with_the_result() -> None:
    begun = [{"type": "system", "subtype": "init"}]
    result = [{"type": "result", "user_message_uuids": ["one"], "terminal_reason": "aborted_tools"}]
    given, over = lifecycle(("one", "queued"), ("one", "started")), lifecycle(("one", "cancelled"))
    for native in (given + begun + over + result, given + begun + result + over):
        ends = [fact for fact in translate_all(native) if isinstance(fact, AgentTurnEnded)]
        assert [end.message_ids for end in ends] == [("one",)]


def lifecycle(*states: tuple[str, str]) -> list[dict[str, str]]:
    return [
        {"type": "command_lifecycle", "command_uuid": message, "state": state} for message, state in states
    ]


def test_an_interrupt_cancels_subagents_and_commands_in_the_background() -> None:
    blocks = live_blocks(translated("interrupt_background_three"))
    children = [block for block in blocks if isinstance(block, Subagent)]
    assert [child.status for child in children] == [SubagentStatus.CANCELLED] * 2
    results = [block.tool_use_id for block in blocks if isinstance(block, ToolResult)]
    assert sorted(results) == sorted(block.tool_use_id for block in blocks if isinstance(block, ToolUse))


def test_children_stopped_while_the_agent_rests_answer_for_themselves() -> None:
    blocks = live_blocks(translated("interrupt_background_at_rest"))
    results = {block.tool_use_id: block for block in blocks if isinstance(block, ToolResult)}
    (child,) = [block for block in blocks if isinstance(block, Subagent)]
    (call,) = [b for b in in_conversation(blocks, child.subagent_id) if isinstance(b, ToolUse)]
    assert child.status == SubagentStatus.CANCELLED
    assert call.status == ToolStatus.CANCELLED
    assert "doesn't want to proceed" in str(results[call.tool_use_id].output)


def test_clearing_gives_the_agent_a_new_identity() -> None:
    identities = [f.agent_session_id for f in translated("commands") if isinstance(f, AgentIdentity)]
    assert len(identities) == len(set(identities)) == 2


def test_totals_grow_over_the_session_and_usage_is_of_the_turn() -> None:
    facts = translated("background_subagent")
    totals = [fact.usage for fact in facts if isinstance(fact, MetadataUpdate)]
    turns = [fact.usage for fact in facts if isinstance(fact, AgentTurnEnded)]
    assert [usage and usage.output_tokens for usage in totals] == [118, 148]
    assert [usage and usage.output_tokens for usage in turns] == [118, 30]


def test_a_translator_that_joins_in_the_middle_of_a_text_takes_it_up() -> None:
    native = lines("interrupt_text")
    joined = next(at for at, line in enumerate(native) if "content_block_delta" in str(line)) + 5
    facts = translate_all(native[joined:])
    whole = live_blocks(translated("interrupt_text"))[0]
    starts = [fact.block.id for fact in facts if isinstance(fact, BlockStart)]
    assert starts[0] == whole.id
    assert next(f.block for f in facts if isinstance(f, BlockComplete)).id == whole.id


def test_a_transcript_that_was_cut_off_leaves_no_call_unanswered() -> None:
    kept = transcript("parallel_tools")
    until_calls = [entry for entry in kept["main"] if "toolUseResult" not in entry][:6]
    blocks = ClaudeAgent().read_transcript({"main": until_calls})
    calls = [block for block in blocks if isinstance(block, ToolUse)]
    assert calls
    assert {call.status for call in calls} == {ToolStatus.CANCELLED}
    assert len([block for block in blocks if isinstance(block, ToolResult)]) == len(calls)


def test_the_turn_is_stamped_on_every_event_and_block() -> None:
    translator = ClaudeTranslator()
    for line in lines("nested_subagents"):
        for fact in translator.translate(line, turn_id="t", at=AT):
            if not isinstance(fact, AgentIdentity | AgentTurnBegan | AgentTurnEnded):
                assert fact.turn_id == "t"
                assert getattr(fact, "block", fact).turn_id == "t"


def test_a_translator_does_not_grow_with_the_turns_it_read() -> None:
    translator = ClaudeTranslator()

    native = lines("parallel_tools")
    for line in native:
        translator.translate(line, turn_id=None, at=AT)
    before = len(pickle.dumps(translator))
    for _ in range(50):
        for line in native:
            translator.translate(line, turn_id=None, at=AT)
    assert len(pickle.dumps(translator)) == before
