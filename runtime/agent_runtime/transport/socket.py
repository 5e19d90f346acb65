"""socket: the commands of Socket.IO and what joins mean (`docs/wire.md` section 5).

Every command goes one way: bounded, parsed, performed, answered by an ack that is an object with
`ok`. Live events come from `relay`; the connections themselves are `engine`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from socketio.exceptions import ConnectionRefusedError as Refused

from agent_runtime.errors import InvalidRequest, RateLimited, RuntimeFault
from agent_runtime.events import Position, Replay
from agent_runtime.ports import Principal
from agent_runtime.transport import answers, payloads, wire
from agent_runtime.transport.auth import handshake_credentials, identify
from agent_runtime.transport.call import Transport
from agent_runtime.transport.compact import compact
from agent_runtime.transport.engine import SocketServer
from agent_runtime.transport.relay import Relays
from agent_runtime.transport.terminals import Terminals
from agent_runtime.transport.watch import Watch

_COMMANDS_AT_ONCE: Final = 64
_DRAIN_WITHIN_S: Final = 30.0
_PAGE: Final = 50

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Viewer:
    """An authenticated connection: whose it is, what it is having done, how to end its watch."""

    principal: Principal
    busy: int = 0
    unwatch: Callable[[], None] | None = field(default=None)


class SocketCommands:
    """Answers the commands of all connections."""

    def __init__(self, transport: Transport, server: SocketServer) -> None:
        self._manager = transport.manager
        self._config = transport.config
        self._authenticator = transport.authenticator
        self._server = server
        self._tasks = transport.tasks
        self._metrics = transport.metrics
        self._relays = Relays(transport.manager, transport.tasks, server.deliver, server.cut)
        self._terminals = Terminals(transport.manager, server, transport.tasks, transport.metrics)
        self._viewers: dict[str, Viewer] = {}
        self._commands: dict[str, Callable[[str, Viewer, Any], Awaitable[dict[str, Any]]]] = {
            wire.JOIN: self._join,
            wire.LEAVE: self._leave,
            wire.SEND: self._send,
            wire.INTERRUPT: self._interrupt,
            wire.WATCH: self._watch,
            wire.UNWATCH: self._unwatch,
            wire.TERMINAL: lambda sid, viewer, asked: self._terminals.open(sid, viewer.principal, asked),
            wire.TERMINAL_INPUT: lambda sid, _, asked: self._terminals.input(sid, asked),
            wire.TERMINAL_RESIZE: lambda sid, _, asked: self._terminals.resize(sid, asked),
            wire.TERMINAL_CLOSE: lambda sid, _, asked: self._terminals.close(sid, asked),
        }
        server.on("connect", self._connect)
        server.on("disconnect", self._disconnect)
        server.on("*", self._command)

    async def _connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        try:
            credentials = handshake_credentials(environ["aiohttp.request"], auth)
            principal = await identify(self._authenticator, credentials)
        except RuntimeFault as fault:
            raise Refused(fault.detail, wire.problem(fault)) from fault
        self._viewers[sid] = Viewer(principal)
        self._terminals.admit(sid)
        self._metrics.connections.set(len(self._viewers))

    async def _disconnect(self, sid: str, reason: str) -> None:
        self._relays.forget(sid)
        self._terminals.forget(sid)
        viewer = self._viewers.pop(sid, None)
        if viewer is not None and viewer.unwatch is not None:
            viewer.unwatch()
        self._metrics.connections.set(len(self._viewers))
        _log.info("viewer_gone", connection=sid, reason=reason)

    async def _command(self, name: str, sid: str, *arguments: Any) -> dict[str, Any]:
        """Perform any command; whatever happens, the answer is an object with `ok`."""
        known = name if name in self._commands else "unknown"
        try:
            viewer = self._viewers[sid]
            await self._admit(sid, viewer)
            viewer.busy += 1
            try:
                answer = await self._perform(name, sid, viewer, arguments)
            finally:
                viewer.busy -= 1
        except RuntimeFault as fault:
            self._metrics.commands.labels(known, fault.code).inc()
            return {"ok": False, "error": wire.problem(fault)}
        except Exception:
            _log.exception("command_failed", command=known)
            self._metrics.commands.labels(known, "internal").inc()
            return {"ok": False, "error": wire.problem(RuntimeFault("Something went wrong here."))}
        self._metrics.commands.labels(known, "ok").inc()
        return {"ok": True} | answer

    async def _perform(
        self, name: str, sid: str, viewer: Viewer, arguments: tuple[Any, ...]
    ) -> dict[str, Any]:
        command = self._commands.get(name)
        if command is None:
            raise InvalidRequest(f"There is no command {payloads.clipped(name)}.", code="unknown_command")
        if len(arguments) > 1:
            raise InvalidRequest("A command takes one argument and an ack function.")
        return await command(sid, viewer, arguments[0] if arguments else None)

    async def _admit(self, sid: str, viewer: Viewer) -> None:
        """Make a client wait that does not take its answers; refuse what it piles up meanwhile."""
        if viewer.busy >= _COMMANDS_AT_ONCE:
            raise RateLimited("Too many commands at once on this connection.")
        viewer.busy += 1
        try:
            async with asyncio.timeout(_DRAIN_WITHIN_S):
                await self._server.drained(sid)
        except TimeoutError as error:
            self._server.cut(sid, wire.SLOW_CONSUMER)
            raise RateLimited("This connection does not take its answers.") from error
        finally:
            viewer.busy -= 1

    async def _join(self, sid: str, viewer: Viewer, payload: Any) -> dict[str, Any]:
        asked = payloads.read(
            payloads.JoinCommand, {"sessionId": payload} if isinstance(payload, str) else payload
        )
        session_id, principal = asked.session_id, viewer.principal
        if self._relays.joined(sid) >= self._config.max_joined_sessions:
            raise RateLimited("Too many sessions are joined on this connection.", session_id=session_id)
        ticket = self._relays.begin(sid, session_id)
        try:
            position, answer = await self._state(principal, session_id, asked.position)
        except BaseException:
            self._relays.leave(sid, session_id)
            raise
        if self._viewers.get(sid) is not viewer:
            self._relays.leave(sid, session_id)  # the connection went while we looked
            return answer
        self._metrics.joins.labels(answer["resume"]).inc()
        # The ack leaves, or is queued, in the same step in which we return; live events do not pass it.
        asyncio.get_running_loop().call_soon(
            self._relays.admit,
            sid,
            session_id,
            ticket,
            position,
            lambda: self._manager.session(principal, session_id),
        )
        return answer

    async def _state(
        self, principal: Principal, session_id: str, position: str | None
    ) -> tuple[Position, dict[str, Any]]:
        """What a joining viewer is told, and the position up to which it then knows everything."""
        after = Position.parse(position) if position is not None else None
        if after is not None:
            await self._manager.session(principal, session_id)
            found = await self._manager.log.since(session_id, after)
            if isinstance(found, Replay):
                events = [wire.envelope(session_id, entry) for entry in compact(found.entries)]
                return found.head, {"resume": "replay", "position": str(found.head), "events": events}
        snapshot = await self._manager.snapshot(principal, session_id)
        return snapshot.position, {"resume": "snapshot"} | answers.SessionSnapshot.of(snapshot).to_json()

    async def _leave(self, sid: str, _viewer: Viewer, payload: Any) -> dict[str, Any]:
        asked = payloads.read(
            payloads.SessionCommand, {"sessionId": payload} if isinstance(payload, str) else payload
        )
        self._relays.leave(sid, asked.session_id)
        return {}

    async def _send(self, _sid: str, viewer: Viewer, payload: Any) -> dict[str, Any]:
        asked = payloads.read(payloads.SendCommand, payload)
        payloads.check_size(asked.content, self._config.max_message_bytes)
        receipt = await self._manager.send(
            viewer.principal,
            asked.session_id,
            asked.content,
            message_id=asked.message_id,
            when_busy=asked.when_busy,
        )
        return answers.Accepted.of(receipt).to_json()

    async def _interrupt(self, _sid: str, viewer: Viewer, payload: Any) -> dict[str, Any]:
        asked = payloads.read(payloads.InterruptCommand, payload)
        interrupted = await self._manager.interrupt(viewer.principal, asked.session_id, asked.turn_id)
        return answers.Interrupted(interrupted=interrupted).to_json()

    async def _watch(self, sid: str, viewer: Viewer, payload: Any) -> dict[str, Any]:
        asked = payloads.read(payloads.WatchCommand, {} if payload is None else payload)
        await self._unwatch(sid, viewer, None)
        # Watching begins before the page is read: a change may be told twice, but never not at all.
        watch = Watch(lambda event, told: self._server.deliver((sid,), [(event, told)]))
        cancel = self._manager.watch(viewer.principal, watch.note)
        try:
            sessions, cursor = await self._manager.list_sessions(
                viewer.principal, limit=asked.limit or _PAGE, cursor=None
            )
        except BaseException:
            cancel()
            raise
        self._begin_watch(sid, viewer, watch, cancel)
        return answers.SessionList(sessions=sessions, next_cursor=cursor).to_json()

    def _begin_watch(self, sid: str, viewer: Viewer, watch: Watch, cancel: Callable[[], None]) -> None:
        if self._viewers.get(sid) is not viewer:
            cancel()  # the connection went while the page was read
            return
        if viewer.unwatch is not None:
            viewer.unwatch()  # another watch of this connection was quicker
        task = self._tasks.spawn(watch.run())

        def unwatch() -> None:
            cancel()
            task.cancel()

        viewer.unwatch = unwatch

    async def _unwatch(self, _sid: str, viewer: Viewer, _payload: Any) -> dict[str, Any]:
        if viewer.unwatch is not None:
            viewer.unwatch()
            viewer.unwatch = None
        return {}
