"""The gateway goes away while the real agent works, as when the runtime is started anew."""

import asyncio

import pytest

from agent_runtime.testing.scenarios import agent, bash
from agent_runtime.testing.script import Say, Script
from tests.sandbox_image.agent_world import agent_world_with_gateway, answer_to, ask, line, lines, say, start
from tests.sandbox_image.runner_client import Frame

SCRIPTS: dict[str, Script] = {
    "talk": [[Say("I talk for a while. " * 20, delay_s=0.3)]],
    "work": [[bash("sleep 0.5; echo worked", "Work")], [Say("I have worked.")]],
    "delegate": [[agent("Work", "Work. [[script:work]]")], [Say("The child has worked.")]],
}
RETRIES = 10


def is_retry(line: Frame) -> bool:
    return line.get("subtype") == "api_retry"


def is_text(line: Frame) -> bool:
    return line["type"] == "stream_event" and line["event"].get("delta", {}).get("type") == "text_delta"


def is_call(line: Frame) -> bool:
    return line["type"] == "assistant" and line["message"]["content"][0].get("name") == "Bash"


@pytest.mark.parametrize("script", ["talk", "work"])
async def test_a_turn_goes_on_when_the_gateway_comes_back(script: str) -> None:
    async with agent_world_with_gateway(SCRIPTS) as (runner, _, gateway):
        client = await runner.attach()
        await start(client)
        message = await say(client, f"[[script:{script}]]")
        await line(client, is_text if script == "talk" else is_call)
        gateway.vanish()
        retry = await line(client, is_retry)
        await line(client, lambda line: is_retry(line) and line["attempt"] >= 2)
        await gateway.open()
        assert (await answer_to(client, message))["terminal_reason"] == "completed"
        assert retry["max_retries"] == RETRIES


async def test_a_child_goes_on_when_the_gateway_comes_back() -> None:
    async with agent_world_with_gateway(SCRIPTS) as (runner, model, gateway):
        client = await runner.attach()
        await start(client)
        message = await say(client, "[[script:delegate]]")
        await line(client, is_call)
        asked = len(model.requests)
        gateway.vanish()
        await line(client, lambda line: line["type"] == "user" and "worked" in str(line["message"]))
        await gateway.open()
        assert (await answer_to(client, message))["result"] == "The child has worked."
        assert len(model.requests) == asked + 2


async def test_an_interrupt_while_the_gateway_is_away_ends_the_turn_at_once() -> None:
    async with agent_world_with_gateway(SCRIPTS) as (runner, _, gateway):
        client = await runner.attach()
        await start(client)
        message = await say(client, "[[script:talk]]")
        await line(client, is_text)
        gateway.vanish()
        await line(client, lambda line: is_retry(line) and line["attempt"] >= 3)
        async with asyncio.timeout(10):
            await client.result("interrupt")
            assert (await answer_to(client, message))["terminal_reason"] == "aborted_streaming"
        await gateway.open()
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"
        assert sum(line["type"] == "result" for line in lines(client)) == 2
