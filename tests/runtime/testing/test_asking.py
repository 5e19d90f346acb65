"""How a real agent's request is read: the shapes are those that the agent really sends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.testing.asking import MalformedRequest, continuing, read_ask, wants_summary, wants_title

REMINDER = {
    "type": "text",
    "text": "<system-reminder>\nNot from the user: [[script:wrong]]\n</system-reminder>",
}
ENVIRONMENT = {
    "role": "system",
    "content": "# Environment\n - Primary working directory: /home/a b/ws\n - more",
}
SUMMARY_REQUEST = {"role": "user", "content": "an <analysis> block followed by a <summary> block"}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def reply(value: str = "words") -> dict[str, Any]:
    return {"role": "assistant", "content": [text(value)]}


def call(call_id: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": call_id, "name": "Bash", "input": {}}],
    }


def result(value: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": [text(value)], "is_error": is_error}


def test_a_first_message_is_read_with_its_directive_its_place_and_its_tools():
    ask = read_ask(
        {
            "messages": [user(REMINDER, "Go. [[script:slow n=5 key=a/b]]"), ENVIRONMENT],
            "tools": [{"name": "Bash"}],
        }
    )
    assert (ask.script, ask.params, ask.step, ask.turn) == ("slow", {"n": "5", "key": "a/b"}, 0, 0)
    assert ask.prompt == "Go. [[script:slow n=5 key=a/b]]"
    assert ask.cwd == "/home/a b/ws"
    assert ask.tools == {"Bash"}
    assert ask.number("n", 1) == 5
    assert ask.number("n", 1, most=3) == 3
    assert ask.number("key", 7) == 7


def test_the_step_counts_replies_since_the_prompt_and_results_are_handed_on():
    messages = [
        user("earlier [[script:text]]"), reply(),
        user("now [[script:bash]]"), call("a"), user(result("one"), REMINDER),
        call("b"), user(result("two", is_error=True)),
    ]  # fmt: skip
    ask = read_ask({"messages": messages})
    assert (ask.script, ask.step, ask.turn) == ("bash", 2, 1)
    assert [(r.text, r.is_error) for r in ask.results] == [("one", False), ("two", True)]


def test_a_prompt_without_a_directive_does_not_inherit_an_older_one():
    ask = read_ask({"messages": [user("[[script:bash]]"), reply(), {"role": "user", "content": "thanks"}]})
    assert (ask.script, ask.step, ask.turn, ask.prompt) == (None, 0, 1, "thanks")


@pytest.mark.parametrize(
    "added",
    [
        "<task-notification>done [[script:wrong]]</task-notification>",
        "[Request interrupted by user]",
        "Output token limit hit. Resume directly",
        "Your response above was stopped by a safety classifier",
        "<local-command-stdout>Compacted</local-command-stdout>",
        "<system-reminder>x</system-reminder>",
    ],
)
def test_what_the_agent_adds_is_not_taken_for_a_prompt(added: str):
    ask = read_ask({"messages": [user("[[script:background]]"), call("a"), user(added)]})
    assert (ask.script, ask.step) == ("background", 1)


def test_a_prompt_in_one_message_with_what_the_agent_added_is_found():
    added = (
        "<command-name>/compact</command-name>",
        "<local-command-stdout>Compacted</local-command-stdout>",
    )
    ask = read_ask({"messages": [user("[[script:bash]]"), reply(), user(*added, "hello again")]})
    assert (ask.script, ask.prompt, ask.turn) == (None, "hello again", 1)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_script_goes_on_after_a_compaction_however_much_of_it_is_kept(kept: int):
    turn = [call("a"), user(result("one")), call("b"), user(result("two"))]
    request = {"messages": [user("[[script:files n=3]]"), *turn, SUMMARY_REQUEST]}
    assert wants_summary(request)
    asked = read_ask(request)
    assert asked.step == 2
    summary = "This session is being continued from ... Summary:\n" + continuing(request, "files", asked)
    after = read_ask(
        {"messages": [user(summary), *turn[len(turn) - 2 * kept :], call("c"), user(result("3"))]}
    )
    assert (after.script, after.params, after.step) == ("files", {"n": "3"}, 3)


def test_a_compacted_conversation_is_not_mistaken_for_a_new_one():
    messages = [user("This session is being continued from a previous one"), reply(), user("and now?")]
    assert read_ask({"messages": messages}).turn == 1


def test_the_request_for_a_title_is_known():
    titled = {"format": {"type": "json_schema", "schema": {"properties": {"title": {"type": "string"}}}}}
    assert wants_title({"messages": [user("x")], "output_config": titled})
    assert not wants_title({"messages": [user("title")], "output_config": {"effort": "high"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda deeper: (
        st.lists(deeper)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "type", "text", "tools", "system"]), deeper
        )
    ),
)


@given(JSON)
def test_whatever_comes_is_read_or_refused(body: object):
    for candidate in (
        body,
        {"messages": body},
        {"messages": [{"role": "user", "content": body}], "tools": body},
    ):
        try:
            ask = read_ask(candidate)
        except MalformedRequest:
            continue
        assert ask.step >= 0
