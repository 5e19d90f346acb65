"""The real agent in a real sandbox gets what its profile and its user say: all of it, word for word."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.script import Call, Say
from agent_runtime.testing.scripted_model import ScriptedModel
from tests.stories.serving import serving
from tests.stories.viewer import new_session, viewing

PROFILE = """
name: Reviewer
instructions: Answer in rhymes.
model: claude-opus-5-5
tools: [Read, Bash, Agent]
subagents:
  critic:
    description: "Finds faults: all of them, always"
    prompt: You find faults.
    tools: [Read]
files:
  notes/first.txt: Mind the gap.
"""
LOOK = [[Call("Bash", {"command": "cat notes/first.txt", "description": "Read"})], [Say("I have read it.")]]


def asked_about(model: ScriptedModel, words: str) -> list[dict[str, Any]]:
    """The bodies of the requests that hold these words."""
    return [dict(asked.body) for asked in model.requests if words in json.dumps(asked.body["messages"])]


async def test_all_that_a_profile_says_reaches_the_agent_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "reviewer.yaml").write_text(PROFILE)
    async with serving(data=tmp_path, scripts={"look": LOOK}) as server:
        chosen = {"agentProfileRef": "reviewer", "sessionOptions": {"model": "claude-haiku-4-5"}}
        session_id = await new_session(server, **chosen)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:look]] peculiar words", "m1")
            await viewer.turns_ended(1)
        asked = asked_about(server.model, "peculiar words")[0]
        assert asked["model"].startswith("claude-haiku-4-5"), "the session's model wins over the profile's"
        assert "Answer in rhymes." in json.dumps(asked["system"])
        assert {tool["name"] for tool in asked["tools"]} == {"Read", "Bash", "Agent"}
        assert "Finds faults: all of them, always" in json.dumps([asked["tools"], asked["messages"]])
        (result,) = viewer.blocks("tool_result")
        assert "Mind the gap." in str(result["output"])


@pytest.mark.parametrize("text", ["--help", "- an item\n- another", "-5+3", "\n\n  indented", "x" * 300_000])
async def test_a_message_is_text_whatever_it_looks_like(text: str) -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, text, "m1")
            (turn,) = await viewer.turns_ended(1)
        assert turn["status"] == "completed"
        assert viewer.blocks("assistant_text"), "the agent answered"
        assert asked_about(server.model, json.dumps(text.strip())[1:-1])


async def test_no_command_line_shows_what_was_said() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:slow n=40]] between-us-only", "m1")
            await viewer.until(lambda event: event["type"] == "text_delta")
            lines = command_lines()
            await viewer.turns_ended(1)
        assert any(b"claude" in line for line in lines), "the agent's process was looked at"
        assert not any(b"between-us-only" in line for line in lines)


def command_lines() -> list[bytes]:
    """Of all processes of the machine."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(file.read_bytes())
    return found
