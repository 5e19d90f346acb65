"""A whole runtime on a free port: real manager, store, log and transport; only the agent is scripted.

Its sandbox is an object in this process that speaks the runner's frames. It answers a message with
whatever the test `says`: events, and the end of the turn.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import socketio
from aiohttp import web

from agent_runtime.blocks import AssistantText, BlockState
from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest, SandboxFault
from agent_runtime.events import EVENT, BlockComplete, BlockStart, Event, Position, TextDelta
from agent_runtime.manager import SessionManager
from agent_runtime.ports import (
    AgentStart,
    ByteTaker,
    Capabilities,
    Credentials,
    GatewayEndpoint,
    Principal,
    SandboxSpec,
    Taker,
)
from agent_runtime.profile import AgentProfile
from agent_runtime.records import SandboxRef, TurnStatus
from agent_runtime.reports import AgentTurnEnded, Translated
from agent_runtime.transport.app import attach, build_app
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import LineSplitter, encode

ANNA, BERT = "anna-anna-anna-anna", "bert-bert-bert-bert"
OPTIONS = {"model", "mode"}


class TwoPeople:
    """Anna and Bert, each with a token."""

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        owner = {ANNA: "anna", BERT: "bert"}.get(credentials.token or "")
        return Principal(owner) if owner else None


class ScriptedAgent:
    """Its native lines are events themselves, or `{"rest": true}` at the end of a turn."""

    architecture = "claude-agent-sdk"
    steers = True
    at_work = 0

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := options.keys() - OPTIONS:
            raise InvalidRequest(f"sessionOptions: unknown option {min(unknown)[:50]}.")
        return dict(options)

    def start(self, profile: AgentProfile, options: Mapping[str, Any], **_: Any) -> AgentStart:
        return AgentStart("scripted", dict(options))

    def translator(self, memory: Mapping[str, Any] | None = None) -> "ScriptedAgent":
        return self

    def memory(self) -> dict[str, Any]:
        return {}

    def translate(
        self, line: Mapping[str, Any], *, turn_id: str | None, at: datetime
    ) -> Sequence[Translated]:
        if line.get("rest"):
            return [AgentTurnEnded(TurnStatus.COMPLETED, stop_reason="end_turn")]
        return [EVENT.validate_python({**line, "turnId": turn_id})]

    def read_transcript(self, transcript: Mapping[str, Any]) -> tuple[()]:
        return ()

    def remembers(self, transcript: Mapping[str, Any]) -> bool:
        return False


class ScriptedRunner:
    """A sandbox and the channel to it in one. `tell` is what the agent prints."""

    def __init__(self, sandbox_id: str, on_message: Callable[["ScriptedRunner", str], None]) -> None:
        self.ref = SandboxRef(
            sandbox_id=sandbox_id, provider="scripted", isolation="none", started_at=datetime.now(UTC)
        )
        self.expires_at = None
        self._on_message = on_message
        self._splitter = LineSplitter()
        self._outward: asyncio.Queue[bytes] = asyncio.Queue()
        self._offset = 0
        self._alive = True

    def tell(self, *lines: dict[str, Any]) -> None:
        frames = []
        for line in lines:
            self._offset += 1
            frames.append(encode({"k": "agent", "o": self._offset, "t": 1_700_000_000, "line": line}))
        self._outward.put_nowait(b"".join(frames))

    def events(self, *events: Event) -> None:
        self.tell(*(event.to_json() for event in events))

    def rest(self) -> None:
        self.tell({"rest": True})

    async def connect(self) -> "ScriptedRunner":
        return self

    async def alive(self) -> bool:
        return self._alive

    async def stop(self) -> None:
        self._alive = False
        self._outward.put_nowait(b"")

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        return await self._outward.get()

    async def send(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            await self._command(json.loads(line))

    async def close(self) -> None:
        return None

    async def _command(self, command: dict[str, Any]) -> None:
        if command["k"] == "attach":
            hello = {"k": "hello", "v": 1, "head": self._offset, "oldest": 1, "agent": "none"}
            self._outward.put_nowait(encode(hello))
        if "id" not in command:
            return
        result = {"files": []} if command["k"] == "list" else {}
        self._outward.put_nowait(encode({"k": "reply", "id": command["id"], "ok": True, "result": result}))
        if command["k"] == "message":
            self._on_message(self, command["uuid"])
        if command["k"] == "interrupt":
            self.rest()


@dataclass
class ScriptedSandboxes:
    """Makes scripted runners; by default the agent answers every message with `Hello!` and rests."""

    runners: list[ScriptedRunner] = field(default_factory=list)
    on_message: Callable[[ScriptedRunner, str], None] = field(default_factory=lambda: greet)
    name: str = "scripted"

    async def probe(self) -> Capabilities:
        return Capabilities("scripted", True, "none", ("it is a script",))

    async def create(self, spec: SandboxSpec) -> ScriptedRunner:
        runner = ScriptedRunner(f"sandbox-{len(self.runners)}", self._answer)
        self.runners.append(runner)
        return runner

    def _answer(self, runner: ScriptedRunner, turn_id: str) -> None:
        self.on_message(runner, turn_id)

    async def attach(self, ref: SandboxRef, **_: object) -> ScriptedRunner:
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        return ()

    async def close(self) -> None:
        return None


class NoGateway:
    """No model is ever asked."""

    async def open(self, session_id: str, **_: object) -> GatewayEndpoint:
        return GatewayEndpoint(Path("/nowhere"), "dummy")

    async def close(self, session_id: str) -> None:
        return None

    async def aclose(self) -> None:
        return None


def text_block(block_id: str, content: str = "", state: BlockState = BlockState.COMPLETE) -> AssistantText:
    return AssistantText(
        id=block_id, timestamp=datetime(2026, 1, 2, tzinfo=UTC), content=content, state=state
    )


def start(block_id: str) -> BlockStart:
    return BlockStart(block=text_block(block_id, state=BlockState.STREAMING))


def delta(block_id: str, text: str) -> TextDelta:
    return TextDelta(block_id=block_id, delta=text)


def complete(block_id: str, content: str) -> BlockComplete:
    return BlockComplete(block_id=block_id, block=text_block(block_id, content))


def greet(runner: ScriptedRunner, turn_id: str) -> None:
    block = f"b-{turn_id}"
    runner.events(start(block), delta(block, "Hel"), delta(block, "lo!"), complete(block, "Hello!"))
    runner.rest()


@dataclass
class World:
    """A running server and how to speak to it."""

    url: str
    manager: SessionManager
    sandboxes: ScriptedSandboxes
    http: aiohttp.ClientSession
    close: Callable[[], Awaitable[None]]

    @property
    def log(self) -> MemoryEventLog:
        log = self.manager.log
        assert isinstance(log, MemoryEventLog)
        return log

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = ANNA, **more: Any
    ) -> tuple[int, Any, Mapping[str, str]]:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        if body is not None:
            more["json"] = body
        async with self.http.request(method, self.url + path, headers=headers, **more) as answer:
            data = await answer.read()
            is_json = "json" in answer.content_type and "ndjson" not in answer.content_type
            return answer.status, (await answer.json() if is_json and data else data), answer.headers

    async def session(self, token: str = ANNA, **fields: Any) -> str:
        status, session, _ = await self.call(
            "POST", "/api/sessions", {"agentProfileRef": "default"} | fields, token=token
        )
        assert status == 201, session
        return str(session["sessionId"])

    @asynccontextmanager
    async def viewer(self, token: str | None = ANNA, **options: Any) -> AsyncIterator["Viewer"]:
        client = socketio.AsyncClient(reconnection=False)
        viewer = Viewer(client)
        client.on("*", viewer.hear)
        transports = options.pop("transports", ["websocket"])
        path = options.pop("socketio_path", "socket.io")
        url = options.pop("url", self.url)
        auth = options.pop("auth", {"token": token} if token else None)
        await client.connect(url, auth=auth, transports=transports, socketio_path=path)
        try:
            yield viewer
        finally:
            await client.disconnect()


class Viewer:
    """A Socket.IO client and, in order, everything it heard: acks of joins and events."""

    def __init__(self, client: socketio.AsyncClient) -> None:
        self.client = client
        self.heard: list[tuple[str, Any]] = []

    async def hear(self, event: str, *arguments: Any) -> None:
        self.heard.append((event, *arguments))

    @property
    def seqs(self) -> list[int]:
        return [data["seq"] for _, data in self.heard if isinstance(data, dict) and "seq" in data]

    @property
    def names(self) -> list[str]:
        return [event for event, _ in self.heard]

    async def ask(self, event: str, *arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its ack."""
        payload = arguments if len(arguments) != 1 else arguments[0]
        answer = await self.client.call(event, payload if arguments else None, timeout=20)
        assert isinstance(answer, dict)
        return answer


def quiet_config() -> RuntimeConfig:
    """Parts that touch nothing outside of this process."""
    return RuntimeConfig(
        persistence=MemoryPersistence(),
        sandboxes=ScriptedSandboxes(),
        agents=(ScriptedAgent(),),
        gateway=NoGateway(),
        log=MemoryEventLog(),
        authenticator=TwoPeople(),
    )


class FarLog(MemoryEventLog):
    """A log that offers nobody what is appended: whoever follows it comes and reads, or comes too late."""

    async def wait(self, session_id: str, after: Position, take: Taker | None = None) -> None:
        await super().wait(session_id, after)


@asynccontextmanager
async def world(
    prefix: str | None = None,
    log: MemoryEventLog | None = None,
    port: int = 0,
    ends_within_s: float = 2,
    **options: Any,
) -> AsyncIterator[World]:
    """A server for as long as the block lasts. `prefix`: mounted in a host's application instead.

    `ends_within_s`: how long its end waits for requests that are still being answered.
    """
    log = log or MemoryEventLog()
    sandboxes = ScriptedSandboxes()
    config = replace(quiet_config(), **{"sandboxes": sandboxes, "log": log} | options)
    manager = SessionManager(config)
    if prefix is None:
        app = build_app(manager, config)
    else:
        app = web.Application()
        app.router.add_get("/host", _hosts_own)
        attach(app, manager, config, prefix=prefix)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=ends_within_s)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as http:
            yield World(url, manager, sandboxes, http, runner.cleanup)
    finally:
        await runner.cleanup()


async def _hosts_own(_request: web.Request) -> web.Response:
    return web.Response(text="the host's own page")
