"""A runner with the real Claude agent in it, and a scripted model behind its gateway's socket."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from agent_runtime.testing.script import Script
from agent_runtime.testing.scripted_model import ScriptedModel
from tests.sandbox_image.runner_client import Frame, RunnerClient, RunnerProcess, running


class Gateway:
    """A socket that leads to the model, and that can go away and come back."""

    def __init__(self, path: Path, model: ScriptedModel) -> None:
        self._path = path
        address = urlsplit(model.url)
        self._host, self._port = address.hostname, address.port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._relay, self._path)

    def vanish(self) -> None:
        """Cut all connections and remove the socket, as when the runtime dies."""
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.transport.abort()
        self._path.unlink()

    async def _relay(self, inward: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        outward, ask = await asyncio.open_connection(self._host, self._port)
        self._connections.add(answer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(inward, ask))
                both.create_task(_copy(outward, answer))
        finally:
            self._connections.discard(answer)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


@asynccontextmanager
async def agent_world(
    scripts: Mapping[str, Script] | None = None, *, first: tuple[Frame, ...] = ()
) -> AsyncIterator[tuple[RunnerProcess, ScriptedModel]]:
    """A runner whose gateway is a socket that leads to a scripted model; `first` as `running` says."""
    async with agent_world_with_gateway(scripts, first=first) as (runner, model, _):
        yield runner, model


@asynccontextmanager
async def agent_world_with_gateway(
    scripts: Mapping[str, Script] | None = None, *, first: tuple[Frame, ...] = ()
) -> AsyncIterator[tuple[RunnerProcess, ScriptedModel, Gateway]]:
    """The same, with the gateway in the hand of the test."""
    async with (
        ScriptedModel(scripts, pace=0.2) as model,
        running(preload="claude", gateway=Path("gateway.sock"), first=first) as runner,
    ):
        gateway = Gateway(runner.directory / "gateway.sock", model)
        await gateway.open()
        yield runner, model, gateway
        for client in runner.clients:
            await client.closed()
        gateway.vanish()


async def start(client: RunnerClient, **options: object) -> None:
    await client.result("start", driver="claude", options={"gatewayToken": "session-token", **options})


def new_uuid() -> str:
    return str(uuid.uuid4())


async def say(client: RunnerClient, text: str) -> str:
    """Send a message; return its uuid."""
    message = new_uuid()
    await client.result("message", uuid=message, content=text)
    return message


async def ask(client: RunnerClient, text: str) -> Frame:
    """Send a message; return the result line that names it."""
    return await answer_to(client, await say(client, text))


async def answer_to(client: RunnerClient, message: str) -> Frame:
    return await line(
        client,
        lambda line: line["type"] == "result" and message in line.get("user_message_uuids", ()),
    )


async def line(client: RunnerClient, wanted: Callable[[Frame], object]) -> Frame:
    """The first native line that is wanted, heard or still to come."""
    frame = await client.until(lambda frame: frame["k"] == "agent" and wanted(frame["line"]))
    found: Frame = frame["line"]
    return found


def lines(client: RunnerClient) -> list[Frame]:
    """All native lines so far."""
    return [frame["line"] for frame in client.of_kind("agent")]


def results(client: RunnerClient) -> list[list[str]]:
    """The messages that each result so far names."""
    return [line.get("user_message_uuids", []) for line in lines(client) if line["type"] == "result"]


def transcript_of(client: RunnerClient) -> dict[str, list[Frame]]:
    """What was mirrored so far, as the next start is given it."""
    transcript: dict[str, list[Frame]] = {}
    for frame in client.of_kind("transcript"):
        transcript.setdefault(frame["key"], []).extend(frame["entries"])
    return transcript


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def a_conversation_about_a_heron() -> tuple[Frame, dict[str, list[Frame]]]:
    """The result line of an agent that was told of one and has ended, and the transcript that it left."""
    async with agent_world() as (runner, _):
        client = await runner.attach()
        await start(client)
        first = await ask(client, "remember the heron [[script:text]]")
        await client.result("close")
        transcript = transcript_of(client)
    return first, transcript


def descendants(pid: int) -> set[int]:
    """Pids of all children and theirs."""
    found: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ended while we looked
            for child in listing.read_text().split():
                found |= {int(child)} | descendants(int(child))
    return found
