"""Served: the system as an operator runs it, in processes of its own, and a viewer beside it.

    async with scripted_model() as model, served(model) as system:
        async with viewing(system, session_id) as viewer:
            times = await viewer.turn("[[script:text]]")

Nothing is faked but the model: server, sandbox and agent are the real ones. All times are taken by
the viewer's own clock, at the moment an event has come through its websocket.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import socketio

from processes import WITHIN_S, process

PROMPT = "[[script:text]]"


@dataclass(frozen=True)
class System:
    """A runtime that accepts requests. `pid` is its process, `data` its folder."""

    url: str
    token: str
    pid: int
    data: Path
    http: aiohttp.ClientSession


@asynccontextmanager
async def scripted_model() -> AsyncIterator[str]:
    """Yield the address of a model that answers at once."""
    argv = ("-m", "agent_runtime.testing.scripted_model", "--pace", "0", "--default", "text")
    async with process(sys.executable, *argv) as (_, ready):
        yield ready["url"]


@asynccontextmanager
async def served(model_url: str, *, core: int | None = None, **settings: Any) -> AsyncIterator[System]:
    """Run `agent-runtime serve` on a fresh folder; `settings` by the names that a file has for them.

    With `core` the server, and with it the sandboxes that it starts, is pinned.
    """
    with TemporaryDirectory(prefix="agent-runtime-bench-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        program = str(Path(sys.executable).with_name("agent-runtime"))
        config = data / "settings.yaml"
        config.write_text(json.dumps({"port": 0, "data": str(data / "data"), **settings}))
        env = {**os.environ, "ANTHROPIC_BASE_URL": model_url, "ANTHROPIC_API_KEY": "sk-ant-bench"}
        argv = (program, "serve", "--config", str(config))
        async with (
            # by SIGTERM it would leave its sandboxes to the next one, which there will not be
            process(*argv, env=env, core=core, ends_by=signal.SIGINT) as (server, ready),
            client(ready["url"], ready["token"]) as http,
        ):
            yield System(ready["url"], ready["token"], server.pid, data / "data", http)


def client(url: str, token: str) -> aiohttp.ClientSession:
    """Who may call."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(url, connector=connector, headers={"Authorization": f"Bearer {token}"})


@dataclass(frozen=True)
class Turn:
    """One turn: when it was sent, when that was acknowledged, and each event with its arrival."""

    sent: float
    accepted: float
    events: list[tuple[float, dict[str, Any]]]

    @property
    def first_block(self) -> float:
        """Seconds until the agent's first block; the user's own message does not count."""
        return self.at("block_start", lambda event: event["block"]["type"] != "user_message")

    @property
    def end(self) -> float:
        """Seconds until `turn_end`."""
        return self.at("turn_end")

    def at(self, kind: str, fits: Any = lambda _: True) -> float:
        """Seconds from sending to the first such event."""
        for arrived, event in self.events:
            if event["type"] == kind and fits(event):
                return arrived - self.sent
        raise LookupError(kind)

    def said(self, message: str) -> float:
        """Seconds until the session's status said this."""
        return self.at("session_status", lambda event: event["runtime"].get("statusMessage") == message)


class Viewer:
    """A client that joined one session."""

    def __init__(self, connection: socketio.AsyncClient, session_id: str) -> None:
        self.session_id = session_id
        self._client = connection
        self._events: list[tuple[float, dict[str, Any]]] = []
        self._more = asyncio.Event()
        connection.on("*", self._take)

    async def turn(self, content: str = PROMPT) -> Turn:
        """Send a message and wait for the turn's end."""
        begin = len(self._events)
        payload = {"sessionId": self.session_id, "content": content, "messageId": str(uuid.uuid4())}
        sent = time.perf_counter()
        ack = await self._client.call("session:send", payload, timeout=WITHIN_S)
        accepted = time.perf_counter()
        if not ack["ok"]:
            raise SystemExit(f"the message was refused: {ack['error']}")
        await self.until("turn_end", begin)
        turn = Turn(sent, accepted, self._events[begin:])
        status = turn.events[-1][1].get("turn", {}).get("status", "completed")
        if status != "completed":
            raise SystemExit(f"the turn did not complete: {turn.events[-1][1]}")
        return turn

    def forget(self) -> None:
        """Let go of what was heard."""
        self._events.clear()

    async def until(self, kind: str, begin: int = 0, phase: str | None = None) -> None:
        """Wait for an event from number `begin` on; with `phase`, one that tells of this phase."""
        async with asyncio.timeout(WITHIN_S):
            while not any(
                event["type"] == kind and phase in {None, event.get("runtime", {}).get("phase")}
                for _, event in self._events[begin:]
            ):
                self._more.clear()
                await self._more.wait()

    async def _take(self, _: str, event: dict[str, Any]) -> None:
        self._events.append((time.perf_counter(), event))
        self._more.set()


@asynccontextmanager
async def viewing(system: System, session_id: str) -> AsyncIterator[Viewer]:
    """Connect over a websocket and join."""
    async with connected(system) as connection:
        yield await joined(connection, session_id)


@asynccontextmanager
async def connected(system: System) -> AsyncIterator[socketio.AsyncClient]:
    """A client over a websocket, as an open page has it; it has joined nothing."""
    connection = socketio.AsyncClient(reconnection=False)
    await connection.connect(system.url, auth={"token": system.token}, transports=["websocket"])
    try:
        yield connection
    finally:
        await connection.disconnect()


async def joined(connection: socketio.AsyncClient, session_id: str) -> Viewer:
    """Join a session; a client can be a viewer of one."""
    viewer = Viewer(connection, session_id)
    ack = await connection.call("session:join", {"sessionId": session_id}, timeout=WITHIN_S)
    if not ack["ok"]:
        raise SystemExit(f"cannot join: {ack['error']}")
    return viewer


async def new_session(system: System) -> str:
    """Create a session of the default profile; return its id."""
    async with system.http.post("/api/sessions", json={"agentProfileRef": "default"}) as response:
        response.raise_for_status()
        return str((await response.json())["sessionId"])


async def post(system: System, path: str) -> None:
    """A command over REST that must succeed."""
    async with system.http.post(path) as response:
        response.raise_for_status()
