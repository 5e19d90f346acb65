"""Every recording becomes exactly the events that were reviewed, and keeps the rules of a stream.

A new version of the agent shows itself here as a diff that can be read. To write the golden files
anew: `UPDATE_GOLDEN=1 pytest tests/adapters/agents/claude/test_golden.py`.
"""

import dataclasses
import json
import os
from typing import Any

import pytest

from agent_runtime.blocks import ToolResult, ToolUse
from agent_runtime.conversation import merge_deltas
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate, Delta, TextDelta
from agent_runtime.frozen import Frozen
from agent_runtime.reports import AgentTurnBegan, AgentTurnEnded, Translated
from tests.adapters.agents.claude.scenarios import GOLDEN, SCENARIOS, read, translated

NEVER_ANSWERED = {"budget": "the budget ended the turn before the tool ran"}
NEVER_ANSWERED |= dict.fromkeys(
    (
        "interrupt_background_subagent",
        "interrupt_background_three",
        "interrupt_subagent",
        "interrupt_subagent_with_command",
        "interrupt_tool_input",
    ),
    "interrupted; the session answers what was left",
)


def shown(fact: Translated) -> dict[str, Any]:
    if isinstance(fact, Frozen | Delta):
        return fact.to_json()
    told = {
        name: value.to_json() if isinstance(value, Frozen) else value
        for name in (field.name for field in dataclasses.fields(fact))
        if (value := getattr(fact, name)) not in (None, ())
    }
    return {"report": type(fact).__name__, **json.loads(json.dumps(told))}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_recording_becomes_the_reviewed_events(scenario: str) -> None:
    facts = [shown(fact) for fact in merge_deltas(translated(scenario))]
    golden = GOLDEN / scenario / "events.jsonl"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text("".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts), "utf-8")
    assert facts == read(golden)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_block_begins_once_and_is_completed_once(scenario: str) -> None:
    started: set[str] = set()
    completed: set[str] = set()
    for fact in translated(scenario):
        match fact:
            case BlockStart():
                assert fact.block.id not in started
                started.add(fact.block.id)
            case BlockComplete():
                assert fact.block_id in started - completed
                completed.add(fact.block_id)
            case Delta():
                assert fact.block_id in started - completed
            case BlockUpdate():
                assert fact.block_id in completed
    assert started == completed


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_tool_call_gets_one_result(scenario: str) -> None:
    whole = [fact.block for fact in translated(scenario) if isinstance(fact, BlockComplete)]
    called = [block.tool_use_id for block in whole if isinstance(block, ToolUse)]
    answered = [block.tool_use_id for block in whole if isinstance(block, ToolResult)]
    assert len(called) == len(set(called))
    assert len(answered) == len(set(answered))
    assert set(answered) <= set(called)
    assert set(answered) == set(called) or scenario in NEVER_ANSWERED


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_streamed_is_what_the_whole_block_holds(scenario: str) -> None:
    streamed: dict[str, str] = {}
    for fact in translated(scenario):
        if isinstance(fact, TextDelta):
            streamed[fact.block_id] = streamed.get(fact.block_id, "") + fact.delta
        if isinstance(fact, BlockComplete) and fact.block_id in streamed:
            assert getattr(fact.block, "content", None) == streamed[fact.block_id]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_turn_that_began_also_ends(scenario: str) -> None:
    facts = translated(scenario)
    began = sum(isinstance(fact, AgentTurnBegan) for fact in facts)
    ended = [fact for fact in facts if isinstance(fact, AgentTurnEnded)]
    assert began == len(ended) > 0
    assert all((fact.error is not None) == (fact.status == "failed") for fact in ended)
