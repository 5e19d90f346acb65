"""The real agent binary on the scripted model, on this host: what the model is made for."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    Message,
    ResultMessage,
    TextBlock,
    ToolResultBlock,
    UserMessage,
)

from agent_runtime.testing.scripted_model import ScriptedModel
from tests.runtime.gateway.upstream import gateway


@contextlib.asynccontextmanager
async def agent(folder: Path, **way: str) -> AsyncIterator[ClaudeSDKClient]:
    """An agent in `folder/ws` that goes the given way to its model."""
    (folder / "ws").mkdir()
    environment = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CONFIG_DIR": str(folder / "config"),
        "CLAUDE_CODE_TMPDIR": str(folder / "tmp"),
        "HOME": str(folder),
        "IS_SANDBOX": "1",
        **way,
    }
    options = ClaudeAgentOptions(
        env=environment, cwd=folder / "ws", setting_sources=[], permission_mode="bypassPermissions"
    )
    async with ClaudeSDKClient(options) as client:
        yield client


async def turn(client: ClaudeSDKClient, prompt: str) -> list[Message]:
    await client.query(prompt)
    return [message async for message in client.receive_response()]


def said(messages: list[Message]) -> str:
    texts = [
        part.text
        for message in messages
        if isinstance(message, AssistantMessage)
        for part in message.content
        if isinstance(part, TextBlock)
    ]
    return "\n".join(texts)


def outcomes(messages: list[Message]) -> list[ToolResultBlock]:
    return [
        part
        for message in messages
        if isinstance(message, UserMessage) and isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ToolResultBlock)
    ]


async def test_the_demonstration_writes_runs_tests_and_has_its_project_reviewed(tmp_path: Path):
    async with (
        ScriptedModel(default="demo", pace=0) as model,
        agent(tmp_path, ANTHROPIC_BASE_URL=model.url, ANTHROPIC_API_KEY="any") as client,
    ):
        messages = await turn(client, "Show me something.")
        assert isinstance(messages[-1], ResultMessage)
        assert not messages[-1].is_error
        assert [part for part in outcomes(messages) if part.is_error] == []
        assert "All 8 tool calls worked." in said(messages)
        results = " ".join(str(part.content) for part in outcomes(messages))
        assert "generation 4" in results
        assert "Ran 4 tests" in results
        assert "58 total" in results, "the child agent counted the lines"
        assert "inspect" in [asked.script for asked in model.requests]

        assert "scripted model" in said(await turn(client, "And now?"))
        assert {path.name for path in (tmp_path / "ws" / "life").iterdir()} == {
            "life.py",
            "show.py",
            "test_life.py",
        }


async def test_an_agent_reaches_its_model_through_the_gateways_socket_alone(tmp_path: Path):
    async with ScriptedModel() as model, gateway(model.url) as gate:
        endpoint = await gate.open("s")
        way = {
            "ANTHROPIC_UNIX_SOCKET": str(endpoint.socket),
            "ANTHROPIC_BASE_URL": "http://localhost",
            "ANTHROPIC_API_KEY": endpoint.token,
        }
        async with agent(tmp_path, **way) as client:
            assert "It printed hello." in said(await turn(client, "[[script:bash]]"))
            assert "Recovered." in said(await turn(client, "[[script:error status=529 times=1]]"))
            assert "told up to here" in said(await turn(client, "[[script:cut]]"))
            await gate.aclose()
            async with gateway(model.url, run_dir=endpoint.socket.parent.parent) as restarted:
                await restarted.open("s")
                assert "plain text" in said(await turn(client, "[[script:text]]"))
                assert (restarted.usage("s").output_tokens or 0) > 0
        assert (tmp_path / "ws" / "hello.txt").read_text() == "hello\n"
        assert {asked.headers["x-api-key"] for asked in model.requests} == {"sk-ant-the-real-key"}
