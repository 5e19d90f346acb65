import asyncio
import json
import sys
from typing import Any

import aiohttp
import pytest

from agent_runtime.testing.scenarios import SCENARIOS
from agent_runtime.testing.script import AFTER_THE_END, Ask, Break, Call, Fail, Say, Think
from agent_runtime.testing.scripted_model import KEPT_REQUESTS, ScriptedModel

Event = dict[str, Any]


def request(*prompts: str, stream: bool = True, **more: Any) -> dict[str, Any]:
    """A conversation in which each prompt but the last was answered."""
    messages: list[dict[str, Any]] = []
    for prompt in prompts:
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"}]
    return {"model": "m", "max_tokens": 9, "stream": stream, "messages": messages[:-1], **more}


async def post(model: ScriptedModel, body: Any, **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{model.url}/v1/messages?beta=true", json=body, headers=headers) as response,
    ):
        if response.content_type != "text/event-stream":
            return response.status, await response.json()
        lines = (await response.text()).splitlines()
        return response.status, [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def folded(events: list[Event]) -> list[dict[str, Any]]:
    """Streamed blocks as a client folds them."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            for ours, theirs in (("text", "text"), ("thinking", "thinking"), ("json", "partial_json")):
                if theirs in delta:
                    block[ours] += delta[theirs]
            block["signature"] = delta.get("signature", block.get("signature"))
    return blocks


MIXED = {
    "mixed": [[Think("I see. " * 9), Say("Now: " * 9), Call("Bash", {"command": "é ls"}), Call("Read", {})]]
}


async def test_a_streamed_answer_and_a_whole_one_say_the_same():
    async with ScriptedModel(MIXED) as model:
        status, events = await post(model, request("[[script:mixed]]"))
        _, whole = await post(model, request("[[script:mixed]]", stream=False))
    assert status == 200
    thought, said, bash, read = folded(events)
    assert [part["type"] for part in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert thought["thinking"] == whole["content"][0]["thinking"]
    assert thought["signature"] == whole["content"][0]["signature"]
    assert said["text"] == whole["content"][1]["text"]
    assert json.loads(bash["json"]) == whole["content"][2]["input"] == {"command": "é ls"}
    assert json.loads(read["json"]) == {}
    assert bash["id"] != read["id"]
    assert whole["stop_reason"] == events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] > 1


async def test_the_events_of_a_stream_come_in_the_apis_order():
    async with ScriptedModel(MIXED) as model:
        _, events = await post(model, request("[[script:mixed]]"))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    open_at = [event["index"] for event in events if event["type"].startswith("content_block")]
    assert open_at == sorted(open_at), "a block ends before the next begins"


async def test_a_list_is_played_step_by_step_and_then_it_is_over():
    async with ScriptedModel({"three": [[Say("one")], [Say("two")]]}) as model:
        body = request("[[script:three]]", stream=False)
        said = []
        for _ in range(3):
            _, answer = await post(model, body)
            said.append(answer["content"][0]["text"])
            body["messages"].append({"role": "assistant", "content": answer["content"]})
    assert said == ["one", "two", AFTER_THE_END]


async def test_a_function_sees_what_was_asked():
    def echo(ask: Ask) -> list[Say]:
        return [Say(f"{ask.prompt}|{ask.step}|{ask.turn}|{sorted(ask.tools)}")]

    async with ScriptedModel({"echo": echo}, default="echo") as model:
        _, answer = await post(model, request("hi", stream=False, tools=[{"name": "Bash"}]))
    assert answer["content"][0]["text"] == "hi|0|0|['Bash']"


async def test_the_default_is_for_first_messages_and_later_ones_are_told_what_this_is():
    async with ScriptedModel(default="demo", pace=0) as model:
        await post(model, request("build something"))
        await post(model, request("build something", "and then?"))
        _, events = await post(model, request("build something", "[[script:text]]"))
    assert [asked.script for asked in model.requests] == ["demo", "hello", "text"]
    assert "plain text" in folded(events)[0]["text"]


async def test_an_unknown_script_is_answered_kindly_and_an_unknown_default_is_refused():
    async with ScriptedModel() as model:
        _, answer = await post(model, request("[[script:nope]]", stream=False))
    assert "no script called `nope`" in answer["content"][0]["text"]
    with pytest.raises(ValueError, match="nope"):
        ScriptedModel(default="nope")


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"hang", "stall"}))
async def test_every_ready_script_can_be_played_streamed_and_whole(name: str):
    async with ScriptedModel(pace=0) as model:
        if name == "cut":
            with pytest.raises(aiohttp.ClientError):
                await post(model, request("[[script:cut n=50]]"))
        for stream in (True, False):
            status, answer = await post(model, request(f"[[script:{name} n=50]]", stream=stream))
            assert status == (500 if name == "error" else 200)
            assert answer


async def test_errors_come_as_often_as_asked_and_each_session_has_its_own_count():
    async with ScriptedModel() as model:
        body = request("[[script:error status=529 times=2 retry_after=3]]", stream=False)

        async def statuses(session: str) -> list[int]:
            return [(await post(model, body, **{"X-Claude-Code-Session-Id": session}))[0] for _ in range(3)]

        assert await statuses("a") == [529, 529, 200]
        assert await statuses("b") == [529, 529, 200]
        _, error = await post(model, body)
        assert error["error"]["type"] == "overloaded_error"


async def test_a_script_may_fail_with_advice():
    script = {"later": [[Fail(429, "rate_limit_error", retry_after_s=2)]]}
    async with (
        ScriptedModel(script) as model,
        aiohttp.ClientSession() as client,
        client.post(f"{model.url}/v1/messages", json=request("[[script:later]]")) as response,
    ):
        assert (response.status, response.headers["retry-after"]) == (429, "2")


async def test_a_break_falls_into_the_middle_of_a_block():
    script = {"broken": [[Say("half a sentence"), Break("overloaded", times=1), Say("after")]]}
    async with ScriptedModel(script) as model:
        _, events = await post(model, request("[[script:broken]]"))
        assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        assert "content_block_stop" not in [event["type"] for event in events]
        _, events = await post(model, request("[[script:broken]]"))
        assert [block["text"] for block in folded(events)] == ["half a sentence", "after"]


async def test_a_cut_ends_the_connection_without_an_end_of_the_answer():
    async with ScriptedModel() as model:
        with pytest.raises(aiohttp.ClientError):
            await post(model, request("[[script:cut]]"))
        status, _ = await post(model, request("[[script:cut]]"))
    assert status == 200


async def test_delays_are_kept_and_the_pace_shortens_them():
    loop = asyncio.get_running_loop()
    script = {
        "slow": [[Say("abcd", chunk=1, delay_s=0.05)]],
        "endless": [[Say("abcd", chunk=1, delay_s=600)]],
    }
    async with ScriptedModel(script, pace=1.0) as model:
        begun = loop.time()
        await post(model, request("[[script:slow]]"))
        assert loop.time() - begun >= 0.2
    async with ScriptedModel(script, pace=0.0) as model:
        await post(model, request("[[script:endless]]"))  # no test is given 40 minutes


async def test_tokens_are_counted_and_titles_are_given():
    titled = {"format": {"type": "json_schema", "schema": {"properties": {"title": {}}}}}
    async with ScriptedModel() as model, aiohttp.ClientSession() as client:
        async with client.post(
            f"{model.url}/v1/messages/count_tokens?beta=true", json=request("x")
        ) as response:
            assert (await response.json())["input_tokens"] > 1
        _, answer = await post(model, request("x [[script:bash]]", stream=False, output_config=titled))
    assert json.loads(answer["content"][0]["text"])["title"]


@pytest.mark.parametrize(
    "body", ["no json", "[]", "{}", '{"messages": []}', '{"messages": [1]}', "[" * 100_000]
)
async def test_a_malformed_request_is_a_400(body: str):
    async with (
        ScriptedModel() as model,
        aiohttp.ClientSession() as client,
        client.post(f"{model.url}/v1/messages", data=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"
        async with client.get(f"{model.url}/v1/models") as other:
            assert other.status == 404


async def test_requests_are_kept_for_assertions_within_a_bound():
    async with ScriptedModel() as model, aiohttp.ClientSession() as client:
        for at in range(KEPT_REQUESTS + 5):
            body = request(f"{at} [[script:text]]", stream=at % 2 == 0)
            async with client.post(
                f"{model.url}/v1/messages", json=body, headers={"x-api-key": "k"}
            ) as response:
                await response.read()
    assert len(model.requests) == KEPT_REQUESTS
    newest = model.requests[-1]
    assert (newest.script, newest.step, newest.headers["x-api-key"]) == ("text", 0, "k")
    assert newest.stream == (newest.body["stream"] is True)


async def test_it_runs_from_the_command_line_and_says_where():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent_runtime.testing.scripted_model",
        "--pace",
        "0",
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        assert ready["event"] == "ready"
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{ready['url']}/v1/messages", json=request("hi", stream=False)) as response,
        ):
            assert response.status == 200
    finally:
        process.terminate()
        await process.wait()
