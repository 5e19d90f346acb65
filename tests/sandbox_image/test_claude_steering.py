"""Messages that reach the real agent while it works: none is lost, and each is named in one result."""

from collections.abc import Callable

from agent_runtime.testing.scenarios import bash
from agent_runtime.testing.script import Say, Script
from tests.sandbox_image.agent_world import agent_world, answer_to, line, lines, results, say, start
from tests.sandbox_image.runner_client import Frame, RunnerClient

SCRIPTS: dict[str, Script] = {
    "work": [[bash("sleep 1; echo worked", "Work")], [Say("I have worked. " * 10, delay_s=0.2)]],
    "talk": [[Say("I talk. " * 40, delay_s=0.2)]],
    "behind": [
        [bash("echo behind", "Work behind", run_in_background=True)],
        [Say("I rest.")],
        [bash("sleep 1; echo looked", "Look after it")],
        [Say("All is done.")],
    ],
    "short": [[Say("That was short.")]],
}


def is_call(line: Frame) -> bool:
    return line["type"] == "assistant" and line["message"]["content"][0]["type"] == "tool_use"


def is_text(line: Frame) -> bool:
    return line["type"] == "stream_event" and line["event"].get("delta", {}).get("type") == "text_delta"


def is_last_text(line: Frame) -> bool:
    return line["type"] == "stream_event" and line["event"]["type"] == "message_stop"


def is_result(line: Frame) -> bool:
    return line["type"] == "result"


async def so_many(client: RunnerClient, wanted: Callable[[Frame], bool], count: int) -> None:
    await client.until(lambda _: sum(wanted(line) for line in lines(client)) >= count)


async def test_messages_that_come_while_a_tool_runs_are_taken_into_the_turn() -> None:
    async with agent_world(SCRIPTS) as (runner, model):
        client = await runner.attach()
        await start(client)
        first = await say(client, "[[script:work]]")
        await line(client, is_call)
        second, third = await say(client, "and the heron"), await say(client, "and the crane")
        await answer_to(client, first)
        assert results(client) == [[first, second, third]]
        assert len(model.requests) == 2
        assert "the heron" in str(model.requests[-1].body)
        assert "the crane" in str(model.requests[-1].body)


async def test_messages_that_come_before_the_first_byte_are_taken_in_at_the_first_tool() -> None:
    async with agent_world(SCRIPTS) as (runner, _):
        client = await runner.attach()
        await start(client)
        first, second = await say(client, "[[script:work]]"), await say(client, "and the heron")
        await answer_to(client, first)
        assert results(client) == [[first, second]]


async def test_messages_that_come_during_the_last_text_are_one_turn_of_their_own() -> None:
    async with agent_world(SCRIPTS) as (runner, _):
        client = await runner.attach()
        await start(client)
        first = await say(client, "[[script:talk]]")
        await line(client, is_text)
        second, third = await say(client, "[[script:short]]"), await say(client, "[[script:short]]")
        await answer_to(client, second)
        assert results(client) == [[first], [second, third]]


async def test_a_message_that_crosses_with_the_end_of_a_turn_is_a_turn_of_its_own() -> None:
    async with agent_world(SCRIPTS) as (runner, _):
        client = await runner.attach()
        await start(client)
        sent = [await say(client, "[[script:short]]")]
        for number in range(10):
            ends = is_last_text if number % 2 else is_result
            await so_many(client, ends, number + 1)
            sent.append(await say(client, "[[script:short]]"))
        await answer_to(client, sent[-1])
        assert results(client) == [[message] for message in sent]


async def test_a_turn_that_the_agent_began_by_itself_takes_messages_in_and_names_them() -> None:
    async with agent_world(SCRIPTS) as (runner, _):
        client = await runner.attach()
        await start(client)
        first = await say(client, "[[script:behind]]")
        await line(client, lambda line: is_call(line) and "Look after it" in str(line))
        second = await say(client, "and the heron")
        result = await answer_to(client, second)
        assert result["origin"]["kind"] == "task-notification"
        assert results(client) == [[first], [second]]


async def test_orders_to_the_agent_itself_wait_for_the_end_of_the_turn() -> None:
    async with agent_world(SCRIPTS) as (runner, _):
        client = await runner.attach()
        await start(client)
        first = await say(client, "[[script:work]]")
        await line(client, is_call)
        order, third = await say(client, "/context"), await say(client, "and the heron")
        await answer_to(client, order)
        assert results(client) == [[first, third], [order]]
