"""A viewer as a story needs one: the official Python client, remembering all that it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import socketio

from tests.stories.serving import Server


class Viewer:
    """One connection. `events` are the envelopes in the order of their arrival."""

    def __init__(self, client: socketio.AsyncClient) -> None:
        self.client = client
        self.events: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        client.on("*", self._take)

    async def call(self, command: str, payload: Any) -> dict[str, Any]:
        """Send a command; return its ack."""
        return await self.client.call(command, payload, timeout=30)

    async def send(self, session_id: str, content: Any, message_id: str) -> dict[str, Any]:
        """Send a user message; return its ack."""
        return await self.call(
            "session:send", {"sessionId": session_id, "content": content, "messageId": message_id}
        )

    async def until(self, found: Callable[[dict[str, Any]], bool], within: float = 45) -> dict[str, Any]:
        """The first event that fits, arrived or still to come."""
        seen = 0
        async with asyncio.timeout(within), self._more:
            while True:
                for event in self.events[seen:]:
                    if found(event):
                        return event
                seen = len(self.events)
                await self._more.wait()

    async def turns_ended(self, count: int, within: float = 45) -> list[dict[str, Any]]:
        """The turns of the first so many `turn_end` events."""
        ends: list[dict[str, Any]] = []

        def enough(event: dict[str, Any]) -> bool:
            if event["type"] == "turn_end":
                ends.append(event["turn"])
            return len(ends) == count

        await self.until(enough, within)
        return ends

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All events of one type so far."""
        return [event for event in self.events if event["type"] == kind]

    def blocks(self, kind: str) -> list[dict[str, Any]]:
        """All complete blocks of one type so far."""
        return [event["block"] for event in self.of("block_complete") if event["block"]["type"] == kind]

    async def _take(self, _: str, envelope: dict[str, Any]) -> None:
        async with self._more:
            self.events.append(envelope)
            self._more.notify_all()


@asynccontextmanager
async def viewing(server: Server, session_id: str | None = None) -> AsyncIterator[Viewer]:
    """A connected viewer; with a session id it has joined already."""
    client = socketio.AsyncClient(reconnection=False)
    viewer = Viewer(client)
    await client.connect(server.url, auth={"token": server.token}, transports=["websocket"])
    try:
        if session_id is not None:
            ack = await viewer.call("session:join", {"sessionId": session_id})
            assert ack["ok"], ack
        yield viewer
    finally:
        await client.disconnect()


async def new_session(server: Server, **wanted: Any) -> str:
    """Create a session over REST; return its id."""
    async with server.http.post("/api/sessions", json={"agentProfileRef": "default", **wanted}) as response:
        assert response.status == 201, await response.text()
        return (await response.json())["sessionId"]


async def get(server: Server, path: str) -> Any:
    """Read something over REST that must be there."""
    async with server.http.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()
