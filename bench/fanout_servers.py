"""The servers that `fanout` compares: ours and its peers in Python, each a program: fanout_servers.py NAME.

On its first line each says where it listens: `port` for viewers, `control` for whoever makes the events,
and the `rooms` that there are, by their names. A line `ROOM DELTA` over control is one event for all who
joined that room; it is of the same size everywhere. What viewers of Socket.IO do is in `fanout_load`; the
plain WebSocket servers take the room from the path and send the text that Socket.IO would.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import picows
import socketio
import uvloop
from aiohttp import WSMsgType, web

from agent_runtime.cli.collecting import sparing_the_loop
from agent_runtime.clock import now
from agent_runtime.config import RuntimeConfig
from agent_runtime.creation import NewSession
from agent_runtime.events import LogEntry, Position, TextDelta
from agent_runtime.manager import SessionManager
from agent_runtime.ports import Principal
from agent_runtime.testing.no_gateway import NoGateway
from agent_runtime.testing.scripted_agent import ScriptedAgent
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime.transport import wire
from agent_runtime.transport.app import build_app
from agent_runtime.transport.auth import LOCAL_OWNER, OpenAccess
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence

ROOMS: Final = ("of 1", "of 10", "of 100", "of 500", "one stalled", "filling")
NAMES: Final = {room: room.replace(" ", "-") for room in ROOMS}
SESSION: Final = "84b51bc7-55a1-4d9f-b3f0-3f7b85eae439"
LINE_BYTES: Final = 1 << 20
BACKLOG: Final = 4096
"""Connections that may wait to be accepted."""

Emit = Callable[[str, str], Awaitable[None]]


def envelope(seq: int, delta: str) -> dict[str, Any]:
    """What our own server sends of such an event."""
    entry = LogEntry(Position("0123456789abcdef", seq), now(), TextDelta(block_id="b-1", delta=delta))
    return wire.envelope(SESSION, entry)


async def ours(stack: AsyncExitStack) -> tuple[int, Emit, Mapping[str, str]]:
    """The runtime's own application; events are appended to its log, as sessions do."""
    log = MemoryEventLog()
    sandboxes = await stack.enter_async_context(ScriptedSandboxes())
    config = RuntimeConfig(
        persistence=MemoryPersistence(),
        sandboxes=sandboxes,
        agents=(ScriptedAgent(),),
        gateway=NoGateway(),
        log=log,
        authenticator=OpenAccess(),
    )
    manager = SessionManager(config)
    port = await _serve(stack, build_app(manager, config))
    rooms = {}
    for room in ROOMS:
        new = NewSession(agent_profile_ref="default", architecture="scripted")
        session, _ = await manager.create_session(Principal(LOCAL_OWNER), new)
        rooms[room] = session.session_id

    async def emit(room: str, delta: str) -> None:
        await log.append(room, [TextDelta(block_id="b-1", delta=delta)])

    return port, emit, rooms


async def stock(stack: AsyncExitStack) -> tuple[int, Emit, Mapping[str, str]]:
    """python-socketio as it comes."""
    server = socketio.AsyncServer(async_mode="aiohttp")
    seq = 0

    @server.on("session:join")  # type: ignore[untyped-decorator]
    async def join(sid: str, room: str) -> dict[str, bool]:
        await server.enter_room(sid, room)
        return {"ok": True}

    async def emit(room: str, delta: str) -> None:
        nonlocal seq
        seq += 1
        await server.emit("text_delta", envelope(seq, delta), room=room)

    app = web.Application()
    server.attach(app)
    return await _serve(stack, app), emit, NAMES


def _packet(seq: int, delta: str) -> bytes:
    return b'42["text_delta",' + wire.dump(envelope(seq, delta)) + b"]"


async def raw_aiohttp(stack: AsyncExitStack) -> tuple[int, Emit, Mapping[str, str]]:
    """`send_str` to every `WebSocketResponse` of the room, one after the other."""
    rooms: dict[str, set[web.WebSocketResponse]] = {name: set() for name in NAMES.values()}
    seq = 0

    async def view(request: web.Request) -> web.WebSocketResponse:
        viewer = web.WebSocketResponse(compress=False)
        await viewer.prepare(request)
        members = rooms[request.match_info["room"]]
        members.add(viewer)
        await viewer.send_str("430[]")
        async for message in viewer:
            assert message.type is WSMsgType.TEXT
        members.discard(viewer)
        return viewer

    async def emit(room: str, delta: str) -> None:
        nonlocal seq
        seq += 1
        packet = _packet(seq, delta).decode()
        for viewer in rooms[room]:
            await viewer.send_str(packet)

    app = web.Application()
    app.router.add_get("/{room}", view)
    return await _serve(stack, app), emit, NAMES


async def raw_picows(stack: AsyncExitStack) -> tuple[int, Emit, Mapping[str, str]]:
    """The same with picows, which is written in Cython."""
    rooms: dict[str, set[picows.WSTransport]] = {name: set() for name in NAMES.values()}
    seq = 0

    class View(picows.WSListener):
        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            rooms[transport.request.path.decode().strip("/")].add(transport)
            transport.send(picows.WSMsgType.TEXT, b"430[]")

        def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
            rooms[transport.request.path.decode().strip("/")].discard(transport)

    async def emit(room: str, delta: str) -> None:
        nonlocal seq
        seq += 1
        packet = _packet(seq, delta)
        for viewer in rooms[room]:
            viewer.send(picows.WSMsgType.TEXT, packet)

    server = await picows.ws_create_server(lambda _: View(), "127.0.0.1", 0, backlog=BACKLOG)
    stack.callback(server.close)
    return server.sockets[0].getsockname()[1], emit, NAMES


async def _serve(stack: AsyncExitStack, app: web.Application) -> int:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG).start()
    return int(runner.addresses[0][1])


async def serve(name: str) -> None:
    """Serve until told to stop; all of them with the collector's manners of a served runtime."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with AsyncExitStack() as stack, sparing_the_loop():
        port, emit, rooms = await SERVERS[name](stack)

        async def obey(lines: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            async for line in lines:
                room, _, delta = line.decode().strip().partition(" ")
                await emit(room, delta)

        control = await asyncio.start_server(obey, "127.0.0.1", 0, limit=LINE_BYTES)
        stack.callback(control.close)
        listening = {"port": port, "control": control.sockets[0].getsockname()[1], "rooms": dict(rooms)}
        print(json.dumps(listening), flush=True)
        await over.wait()


SERVERS = {"ours": ours, "stock": stock, "aiohttp": raw_aiohttp, "picows": raw_picows}

if __name__ == "__main__":
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
