"""What a session may choose, and what the driver is told."""

from typing import Any

import pytest

from agent_runtime.errors import InvalidRequest
from agent_runtime.ports import Agent
from agent_runtime.profile import AgentProfile, SubagentProfile, default_profile
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent

agent: Agent = ClaudeAgent()


def told(profile: AgentProfile, options: dict[str, Any], resume: str | None = None) -> dict[str, Any]:
    start = agent.start(profile, options, agent_session_id=resume, gateway_token="dummy")
    assert start.driver == "claude"
    return start.options


def test_the_default_profile_asks_no_questions() -> None:
    assert told(default_profile(), {}) == {"permissionMode": "bypassPermissions", "gatewayToken": "dummy"}


def test_all_that_a_profile_says_reaches_the_driver() -> None:
    child = SubagentProfile(description="d", prompt="p", tools=("Read",), model="haiku")
    profile = AgentProfile(
        profile_id="x",
        name="X",
        instructions="Be brief.",
        model="opus",
        tools=("Read", "Agent"),
        subagents={"reader": child, "other": SubagentProfile(description="d", prompt="p")},
        options={"maxTurns": 5},
    )
    assert told(profile, {}, resume="abc") == {
        "model": "opus",
        "permissionMode": "bypassPermissions",
        "maxTurns": 5,
        "instructions": "Be brief.",
        "tools": ["Read", "Agent"],
        "subagents": {
            "reader": {"description": "d", "prompt": "p", "tools": ["Read"], "model": "haiku"},
            "other": {"description": "d", "prompt": "p"},
        },
        "resume": "abc",
        "gatewayToken": "dummy",
    }


def test_no_tools_at_all_is_not_the_same_as_all_tools() -> None:
    assert told(default_profile().model_copy(update={"tools": ()}), {})["tools"] == []


def test_a_sessions_options_win_over_the_profiles() -> None:
    profile = default_profile().model_copy(update={"model": "opus", "options": {"maxTurns": 5}})
    options = {"model": "haiku", "maxTurns": 9, "maxBudgetUsd": 0.5, "permissionMode": "dontAsk"}
    assert told(profile, options) == {**options, "gatewayToken": "dummy"}


def test_good_options_are_kept_as_they_are() -> None:
    options = {"model": "haiku", "maxTurns": 1000, "maxBudgetUsd": 3, "permissionMode": "acceptEdits"}
    assert agent.check_options(options) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modle", "opus"),
        ("model", ""),
        ("model", None),
        ("model", "--dangerous"),
        ("model", "a\nb"),
        ("permissionMode", "plan"),
        ("permissionMode", ["bypassPermissions"]),
        ("maxTurns", 0),
        ("maxTurns", 1001),
        ("maxTurns", True),
        ("maxTurns", 1.5),
        ("maxBudgetUsd", 0),
        ("maxBudgetUsd", float("nan")),
        ("maxBudgetUsd", "1"),
        ("maxBudgetUsd", 10**400),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        agent.check_options({name: value})


@pytest.mark.parametrize(
    ("entries", "remembers"),
    [
        ({}, False),
        ({"main": []}, False),
        ({"main": [{"type": "queue-operation"}, {"type": "queue-operation"}]}, False),
        ({"main": [{"no": "type"}]}, False),
        ({"subagents/agent-a": [{"type": "user"}]}, False),
        ({"main": [{"type": "queue-operation"}, {"type": "user"}]}, True),
    ],
)
def test_only_a_conversation_in_which_something_was_said_is_resumed(
    entries: dict[str, list[dict[str, str]]], remembers: bool
) -> None:
    assert ClaudeAgent().remembers(entries) is remembers
