"""A client that follows the contract of docs/wire.md section 5 over connections that break.

`Connection` is one websocket that speaks just enough Engine.IO and Socket.IO; `Viewer` keeps a session
in view over as many connections as it takes, and sends through whichever it has.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from tests.chaos.fold import Folded, Hole

Told = dict[str, Any]


class Gone(Exception):
    """The connection is over, or there was none."""


class Connection:
    """One websocket. `hear` is called with each event."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, hear: Callable[[Told], None]) -> None:
        self._ws = ws
        self._hear = hear
        self._ids = itertools.count(1)
        self._acks: dict[str, asyncio.Future[Told]] = {}

    async def call(self, command: str, payload: Told, within_s: float) -> Told:
        """Raises `Gone` where there is no answer in time."""
        ack_id = str(next(self._ids))
        self._acks[ack_id] = ack = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._ws.send_str(f"42{ack_id}{json.dumps([command, payload])}")
                return await ack
        except (TimeoutError, ConnectionError) as error:
            raise Gone from error
        finally:
            self._acks.pop(ack_id, None)

    async def listen(self) -> None:
        """Until it is over."""
        try:
            async for message in self._ws:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                await self._take(message.data)
        finally:
            for ack in self._acks.values():
                if not ack.done():
                    ack.set_exception(Gone())
                    ack.exception()

    async def _take(self, text: str) -> None:
        if text == "2":
            with suppress(ConnectionError):
                await self._ws.send_str("3")
        elif text.startswith("43"):
            ack_id, _, rest = text[2:].partition("[")
            ack = self._acks.get(ack_id)
            if ack is not None and not ack.done():
                ack.set_result(json.loads(f"[{rest}")[0])
        elif text.startswith("42"):
            self._hear(json.loads(text[2:])[1])


@asynccontextmanager
async def connected(
    http: aiohttp.ClientSession, url: str, token: str, hear: Callable[[Told], None]
) -> AsyncIterator[Connection]:
    """Raises `Gone` where it does not come about within 5 s. The block is cancelled when it is over."""
    try:
        async with asyncio.timeout(5):
            ws = await http.ws_connect(f"{url}/socket.io/?EIO=4&transport=websocket", max_msg_size=0)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Gone from error
    try:
        try:
            async with asyncio.timeout(5):
                await ws.receive_str()
                await ws.send_str("40" + json.dumps({"token": token}))
                if not (await ws.receive_str()).startswith("40"):
                    raise Gone
        except (TypeError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone from error
        connection, is_over = Connection(ws, hear), False
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(_until_over(connection))
                yield connection
                listening.cancel()
        except* Gone:
            is_over = True
        if is_over:
            raise Gone
    finally:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await ws.close()


async def _until_over(connection: Connection) -> None:
    await connection.listen()
    raise Gone


class Viewer:
    """Keeps one session in view. `state` is what it knows; `joins` counts how it came to know it."""

    def __init__(self, name: str, url: str, token: str, session_id: str) -> None:
        self.name = name
        self.state = Folded()
        self.joins = {"snapshot": 0, "replay": 0}
        self.moved = asyncio.Event()
        self._url = url
        self._token = token
        self._session_id = session_id
        self._connection: Connection | None = None
        self._joined = False
        self._left = False
        self._here = asyncio.Event()
        self._here.set()
        self._early: list[Told] = []
        self._hole = asyncio.Event()

    async def watch(self) -> None:
        """Until `leave`: connect, join with the position, follow; again when it breaks."""
        async with aiohttp.ClientSession() as http:
            while not self._left:
                await self._here.wait()
                with suppress(Gone):
                    await self._follow(http)
                self._connection, self._joined = None, False
                await asyncio.sleep(0.02)

    def leave(self) -> None:
        """End `watch`, together with a cancellation: one that meets a lost connection may go unheard."""
        self._left = True

    async def look_away(self, for_s: float) -> None:
        """Leave the session alone for a while; then come back with the last position."""
        self._here.clear()
        self._hole.set()
        await asyncio.sleep(for_s)
        self._here.set()

    async def call(self, command: str, payload: Told, within_s: float = 3.0) -> Told:
        """Through the connection of the moment. Raises `Gone`."""
        if self._connection is None:
            await asyncio.sleep(0.02)
            raise Gone
        return await self._connection.call(command, payload, within_s)

    async def _follow(self, http: aiohttp.ClientSession) -> None:
        async with connected(http, self._url, self._token, self._hear) as connection:
            while True:
                self._hole.clear()
                await self._join(connection)
                self._connection = connection
                await self._hole.wait()
                if not self._here.is_set():
                    raise Gone

    async def _join(self, connection: Connection) -> None:
        self._joined, self._early = False, []
        asked: Told = {"sessionId": self._session_id}
        if self.state.position is not None:
            asked["position"] = self.state.position
        ack = await connection.call("session:join", asked, within_s=10)
        if not ack["ok"]:
            await asyncio.sleep(0.05)
            raise Gone
        self.state.take_join(ack)
        self.joins[ack["resume"]] += 1
        self._joined = True
        for event in self._early:
            self._live(event)
        self.moved.set()

    def _hear(self, event: Told) -> None:
        if event.get("sessionId") == self._session_id:
            if self._joined:
                self._live(event)
            else:
                self._early.append(event)

    def _live(self, event: Told) -> None:
        try:
            self.state.take_live(event)
        except Hole:
            self._joined = False
            self._hole.set()
        self.moved.set()
