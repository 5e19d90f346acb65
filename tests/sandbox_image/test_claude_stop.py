"""An interrupt of the real agent ends everything that it does, in front and in the background."""

from datetime import UTC, datetime

import pytest

from agent_runtime.reports import AgentTurnEnded
from agent_runtime.testing.scenarios import agent, bash
from agent_runtime.testing.script import Say, Script, Wait
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from tests.sandbox_image.agent_world import (
    agent_world,
    answer_to,
    ask,
    descendants,
    line,
    lines,
    new_uuid,
    say,
    start,
)
from tests.sandbox_image.runner_client import Frame, RunnerClient
from tests.waiting import eventually

FOR_EVER = "while true; do sleep 1; done"
COMMAND = bash(FOR_EVER, "Wait behind", run_in_background=True)
CHILD = agent("Slow", "Be slow. [[script:child]]", background=True)
TALK = [Say("I go on talking. " * 100, delay_s=0.5)]
SCRIPTS: dict[str, Script] = {
    "child": [[bash(FOR_EVER, "Wait")]],
    "child_with_command": [[COMMAND], [bash(FOR_EVER, "Wait")]],
    "command": [[COMMAND], TALK],
    "subagent": [[CHILD], TALK],
    "both": [[CHILD], [COMMAND], TALK],
    "two": [[CHILD], [agent("Slow too", "Be slow. [[script:child]]", background=True)], [COMMAND], TALK],
    "tool": [[CHILD], [COMMAND], [bash(FOR_EVER, "In front")]],
    "in_front": [[agent("Slow", "Be slow. [[script:child_with_command]]")]],
    "nested": [[agent("Slow", "Be slow. [[script:child_with_command]]", background=True)], TALK],
    "at_rest": [[CHILD], [COMMAND], [Say("I rest.")]],
}
RUNNING = {"command": 1, "subagent": 1, "both": 2, "two": 3, "tool": 3, "in_front": 2, "nested": 2}
"""Commands that run when everything has begun."""


def tool_calls(client: RunnerClient) -> list[str]:
    return [
        part["input"]["description"]
        for line in lines(client)
        if line["type"] == "assistant"
        for part in line["message"]["content"]
        if part["type"] == "tool_use" and part["name"] == "Bash"
    ]


def background(client: RunnerClient) -> list[Frame]:
    """What runs in the background by the agent's own account."""
    told = [line["tasks"] for line in lines(client) if line.get("subtype") == "background_tasks_changed"]
    return told[-1] if told else []


def started(client: RunnerClient) -> set[int]:
    """The processes that the agent has started."""
    return descendants(client.of_kind("started")[0]["info"]["pid"])


@pytest.mark.parametrize("script", RUNNING)
async def test_after_an_interrupt_nothing_runs_and_no_model_is_asked(script: str) -> None:
    async with agent_world(SCRIPTS) as (runner, model):
        client = await runner.attach()
        await start(client)
        message = await say(client, f"[[script:{script}]]")
        await client.until(lambda _: len(tool_calls(client)) == RUNNING[script])
        await eventually(lambda: started(client))
        await client.result("interrupt")
        assert (await answer_to(client, message))["terminal_reason"].startswith("aborted")
        asked = len(model.requests)
        assert background(client) == []
        await eventually(lambda: not started(client))
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"
        assert len(model.requests) == asked + 1


async def test_what_an_agent_at_rest_left_running_is_ended_without_a_turn_about_it() -> None:
    async with agent_world(SCRIPTS) as (runner, model):
        client = await runner.attach()
        await start(client)
        await ask(client, "[[script:at_rest]]")
        await line(client, lambda line: line["type"] == "assistant" and line["parent_tool_use_id"])
        asked = len(model.requests)
        await client.result("interrupt")
        assert background(client) == []
        await eventually(lambda: not started(client))
        again = await ask(client, "[[script:text]]")
        assert again["subtype"] == "success"
        assert len(model.requests) == asked + 1
        assert sum(line["type"] == "result" for line in lines(client)) == 2


async def test_an_interrupt_takes_back_the_messages_that_the_agent_has_not_taken_up() -> None:
    async with agent_world({"tool": [[bash(FOR_EVER, "In front")]]}) as (runner, model):
        client = await runner.attach()
        await start(client)
        first = await say(client, "[[script:tool]]")
        await eventually_running(client)
        second = await say(client, "and this")
        await line(client, lambda line: line.get("command_uuid") == second)
        await client.result("interrupt")
        assert (await answer_to(client, first))["user_message_uuids"] == [first]
        await line(
            client, lambda line: (line.get("command_uuid"), line.get("state")) == (second, "cancelled")
        )
        again = await ask(client, "[[script:text]]")
        assert second not in again["user_message_uuids"]
        assert len(model.requests) == 2


async def eventually_running(client: RunnerClient) -> None:
    await line(client, lambda line: line["type"] == "assistant")
    await eventually(lambda: started(client))


async def test_a_message_that_an_interrupt_follows_at_once_ends_once_as_cancelled() -> None:
    async with agent_world({"silent": [[Wait(600)]]}) as (runner, _):
        client = await runner.attach()
        await start(client)
        sent = [new_uuid() for _ in range(10)]
        for message in sent:
            client.say("message", id=message, uuid=message, content="[[script:silent]]")
            await client.result("interrupt")
            await line(
                client,
                lambda line, wanted=message: (
                    (line.get("command_uuid"), line.get("state")) == (wanted, "cancelled")
                ),
            )
        again = await ask(client, "[[script:text]]")
        assert again["subtype"] == "success"
        translator = ClaudeTranslator()
        told = [
            fact.message_ids
            for native in lines(client)
            for fact in translator.translate(native, turn_id=None, at=datetime.now(UTC))
            if isinstance(fact, AgentTurnEnded)
        ]
        assert told[:-1] == [(message,) for message in sent]
