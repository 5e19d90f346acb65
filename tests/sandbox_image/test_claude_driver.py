"""The real agent binary behind the runner, against the scripted model; its only way out is a socket."""

import signal

from tests.sandbox_image.agent_world import (
    a_conversation_about_a_heron,
    agent_world,
    alive,
    answer_to,
    ask,
    descendants,
    kill,
    new_uuid,
    start,
    transcript_of,
)
from tests.sandbox_image.runner_client import RunnerClient
from tests.waiting import eventually


def line_types(client: RunnerClient) -> set[str]:
    return {frame["line"]["type"] for frame in client.of_kind("agent")}


async def test_a_turn_gives_native_lines_a_transcript_and_the_files_it_made() -> None:
    async with agent_world() as (runner, model):
        client = await runner.attach()
        await start(client, instructions="Answer in rhymes.")
        result = await ask(client, "please [[script:bash]]")
        assert result["subtype"] == "success"
        await client.result("sync")
        assert ("hello.txt", "created") in client.changes()
        assert {"system", "stream_event", "assistant", "user", "result", "command_lifecycle"} <= line_types(
            client
        )
        assert not {"control_request", "control_response", "transcript_mirror"} & line_types(client)
        assert {"user", "assistant"} <= {entry["type"] for entry in transcript_of(client)["main"]}
        asked = model.requests[0]
        assert asked.headers["x-api-key"] == "session-token"
        assert "Answer in rhymes." in str(asked.body["system"])


async def test_a_conversation_goes_on_in_an_empty_sandbox_with_what_was_mirrored() -> None:
    first, transcript = await a_conversation_about_a_heron()

    async with agent_world() as (runner, model):
        client = await runner.attach()
        for key, entries in transcript.items():
            await client.result("transcript", key=key, entries=entries)
        await start(client, resume=first["session_id"])
        again = await ask(client, "and now? [[script:text]]")
        assert again["session_id"] == first["session_id"]
        assert "heron" in str(model.requests[-1].body["messages"])
        assert again["total_cost_usd"] > first["total_cost_usd"]


async def test_after_a_clear_only_the_new_conversation_is_resumed() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        await ask(client, "remember the heron [[script:subagent]]")
        await ask(client, "/clear")
        second = await ask(client, "remember the stork [[script:subagent]]")
        await client.result("close")
        transcript = transcript_of(client)

    async with agent_world() as (runner, model):
        client = await runner.attach()
        for key, entries in transcript.items():
            await client.result("transcript", key=key, entries=entries)
        await start(client, resume=second["session_id"])
        again = await ask(client, "and now? [[script:text]]")
        asked = str(model.requests[-1].body["messages"])

    assert again["session_id"] == second["session_id"]
    assert "stork" in asked
    assert "heron" not in asked
    assert {entry["sessionId"] for entry in transcript["main"]} > {second["session_id"]}


async def test_a_conversation_that_was_cleared_and_in_which_nothing_was_said_begins_once_more() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        await ask(client, "remember the heron [[script:text]]")
        await client.result("close")
        transcript = transcript_of(client)

    async with agent_world() as (runner, model):
        client = await runner.attach()
        for key, entries in transcript.items():
            await client.result("transcript", key=key, entries=entries)
        await start(client, resume=new_uuid())
        assert (await ask(client, "and now? [[script:text]]"))["subtype"] == "success"
        assert "heron" not in str(model.requests[-1].body["messages"])


async def test_the_connection_may_be_lost_in_mid_turn_and_the_turn_goes_on() -> None:
    async with agent_world() as (runner, _):
        first = await runner.attach()
        await start(first)
        message = new_uuid()
        await first.result("message", uuid=message, content="[[script:slow n=60 delay=0.05]]")
        await first.until(lambda frame: frame["k"] == "agent" and frame["line"]["type"] == "stream_event")
        first.close()
        second = await runner.attach(after=first.kept[-1]["o"])
        assert (await second.result("message", uuid=message, content="once more"))["duplicate"]
        assert (await answer_to(second, message))["subtype"] == "success"
        offsets = [frame["o"] for frame in first.kept + second.kept]
        assert offsets == list(range(1, len(offsets) + 1))


async def test_an_interrupt_stops_the_turn_and_keeps_the_agent() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        message = new_uuid()
        await client.result("message", uuid=message, content="[[script:slow n=1000 delay=0.5]]")
        await client.until(lambda frame: frame["k"] == "agent" and frame["line"]["type"] == "stream_event")
        await client.result("interrupt")
        ended = await client.until(lambda frame: frame["k"] == "agent" and frame["line"]["type"] == "result")
        assert ended["line"]["subtype"] == "error_during_execution"
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


async def test_a_subagents_words_and_transcript_come_along() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        await ask(client, "[[script:subagent]]")
        texts = [
            block["text"]
            for frame in client.of_kind("agent")
            if frame["line"]["type"] == "assistant" and frame["line"]["parent_tool_use_id"]
            for block in frame["line"]["message"]["content"]
            if block["type"] == "text"
        ]
        assert any("I am the child" in text for text in texts)
        await client.result("close")
        assert any(key.startswith("subagents/agent-") for key in transcript_of(client))


async def test_the_model_is_changed_while_it_runs_and_nonsense_is_refused() -> None:
    async with agent_world() as (runner, model):
        client = await runner.attach()
        await start(client)
        await client.result("options", options={"model": "claude-haiku-5-5"})
        await ask(client, "[[script:text]]")
        assert model.requests[-1].body["model"] == "claude-haiku-5-5"
        assert await client.refusal("options", options={"tools": []}) == "invalid_options"


async def test_settings_in_the_workspace_configure_nothing() -> None:
    async with agent_world() as (runner, _):
        folder = runner.workspace / ".claude"
        folder.mkdir()
        hook = '{"type": "command", "command": "touch hooked"}'
        hooks = f'{{"hooks": {{"UserPromptSubmit": [{{"hooks": [{hook}]}}]}}}}'
        (folder / "settings.json").write_text(hooks)
        client = await runner.attach()
        await start(client)
        await ask(client, "[[script:text]]")
        assert not (runner.workspace / "hooked").exists()


async def test_a_resume_of_nothing_is_refused_with_the_agents_own_words() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        reply = await client.command(
            "start", driver="claude", options={"resume": new_uuid(), "gatewayToken": "x"}
        )
        assert reply["error"]["code"] == "agent_failed"
        assert "No conversation found" in reply["error"]["message"]
        assert client.of_kind("exit")[0]["reason"] == "start_failed"
        assert await client.refusal("start", driver="claude", options={"modle": "x"}) == "invalid_options"
        await start(client)
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


async def test_an_agent_that_is_killed_is_told_and_leaves_no_process_behind() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        pid = client.of_kind("started")[0]["info"]["pid"]
        await client.result("message", uuid=new_uuid(), content="[[script:slow_bash s=60]]")
        await eventually(lambda: descendants(runner.process.pid) > {pid}, within=10)
        kill(pid)
        end = await client.until_kind("exit")
        assert (end["code"], end["reason"]) == (-9, "died")
        assert descendants(runner.process.pid) == set()
        await start(client)
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


async def test_a_signal_to_the_runner_ends_the_agent_and_all_that_it_started() -> None:
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        agent = client.of_kind("started")[0]["info"]["pid"]
        await client.result("message", uuid=new_uuid(), content="[[script:slow_bash s=60]]")
        started = await eventually(lambda: descendants(runner.process.pid) - {agent}, within=10)
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.process.wait() == 0
        assert not alive(started | {agent})
