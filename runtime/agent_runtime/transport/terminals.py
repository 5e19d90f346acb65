"""terminals: shells in sandboxes for the connections that opened them (`docs/wire.md` section 5).

A terminal belongs to one connection: nobody else hears it, it is in no log, and it ends with the
connection. What is shown waits inside until the connection has taken what was shown before; what is
typed waits here, within a bound, until something inside takes it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.errors import NotFound, RateLimited, RuntimeFault
from agent_runtime.manager import SessionManager
from agent_runtime.passages import Terminal
from agent_runtime.ports import Principal
from agent_runtime.tasks import Tasks
from agent_runtime.transport import payloads, wire
from agent_runtime.transport.engine import SocketServer
from agent_runtime.transport.metrics import Metrics

MOST: Final = 8
"""Terminals of one connection, with those that are being opened."""
TYPED_BYTES: Final = 256 * 1024
"""What may be typed before something inside takes it."""
SHOWN_BYTES: Final = 256 * 1024
"""What waits for a connection before no more is asked for."""
SHOWN_A_SECOND: Final = 4 * 1024 * 1024
"""More than anybody reads: a flood is not to take the server's time, nor the browser's."""
_RESIZE_COST: Final = 64
_TRY_AGAIN_MS: Final = 200


@dataclass(slots=True)
class _Open:
    """One terminal: its shell, what is still to be typed, the tasks that serve it."""

    terminal: Terminal
    typed: asyncio.Queue[bytes | tuple[int, int]] = field(default_factory=asyncio.Queue)
    waiting: int = 0
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)


class Terminals:
    """All terminals of all connections."""

    def __init__(self, manager: SessionManager, server: SocketServer, tasks: Tasks, metrics: Metrics) -> None:
        self._manager = manager
        self._server = server
        self._tasks = tasks
        self._metrics = metrics
        self._held: dict[str, dict[str, _Open | None]] = {}

    def admit(self, sid: str) -> None:
        """A connection is there."""
        self._held[sid] = {}

    def forget(self, sid: str) -> None:
        """A connection is gone, and its terminals with it."""
        for held in self._held.pop(sid, {}).values():
            if held is not None:
                self._end(held)

    async def open(self, sid: str, principal: Principal, payload: Any) -> dict[str, Any]:
        """`session:terminal`. Raises `NotFound`, `RateLimited`, `SandboxFault`."""
        asked = payloads.read(payloads.TerminalCommand, payload)
        mine = self._held.get(sid, {})
        if len(mine) >= MOST:
            raise RateLimited("Too many terminals are open on this connection.", code="too_many_terminals")
        terminal_id = secrets.token_urlsafe(12)
        mine[terminal_id] = None
        try:
            terminal = await self._manager.open_terminal(principal, asked.session_id, asked.rows, asked.cols)
        except BaseException:
            mine.pop(terminal_id, None)
            raise
        if self._held.get(sid) is not mine:
            await terminal.close()  # the connection went while the shell was started
            return {}
        mine[terminal_id] = held = _Open(terminal)
        self._metrics.terminals.inc()
        # The ack leaves, or is queued, in the same step in which we return; what is shown comes after it.
        asyncio.get_running_loop().call_soon(self._serve, sid, terminal_id, held)
        return {"terminalId": terminal_id}

    async def input(self, sid: str, payload: Any) -> dict[str, Any]:
        """`terminal:input`. Raises `NotFound`, `RateLimited` while too much waits."""
        asked = payloads.read(payloads.TerminalInput, payload)
        data = asked.raw()
        self._enter(self._of(sid, asked.terminal_id), data, len(data))
        return {}

    async def resize(self, sid: str, payload: Any) -> dict[str, Any]:
        """`terminal:resize`. Raises as `input`."""
        asked = payloads.read(payloads.TerminalResize, payload)
        self._enter(self._of(sid, asked.terminal_id), (asked.rows, asked.cols), _RESIZE_COST)
        return {}

    async def close(self, sid: str, payload: Any) -> dict[str, Any]:
        """`terminal:close`; returns when the shell is being ended. Raises `NotFound`."""
        asked = payloads.read(payloads.OneTerminal, payload)
        held = self._of(sid, asked.terminal_id)
        del self._held[sid][asked.terminal_id]
        self._end(held)
        return {}

    def _of(self, sid: str, terminal_id: str) -> _Open:
        held = self._held.get(sid, {}).get(terminal_id)
        if held is None:
            raise NotFound("This connection has no such terminal.", code="terminal_not_found")
        return held

    @staticmethod
    def _enter(held: _Open, item: bytes | tuple[int, int], cost: int) -> None:
        if held.waiting + cost > TYPED_BYTES:
            detail = "Nothing takes what was typed before; try again."
            raise RateLimited(detail, code="terminal_busy", retry_after_ms=_TRY_AGAIN_MS)
        held.waiting += cost
        held.typed.put_nowait(item)

    def _serve(self, sid: str, terminal_id: str, held: _Open) -> None:
        if self._held.get(sid, {}).get(terminal_id) is held:
            held.tasks.append(self._tasks.spawn(self._show(sid, terminal_id, held)))
            held.tasks.append(self._tasks.spawn(self._type(held)))

    def _end(self, held: _Open) -> None:
        for task in held.tasks:
            task.cancel()
        self._metrics.terminals.dec()
        self._tasks.spawn(held.terminal.close())

    async def _show(self, sid: str, terminal_id: str, held: _Open) -> None:
        """Pass on what is shown, then tell of the end."""
        try:
            while data := await held.terminal.receive():
                shown = {"terminalId": terminal_id, "data": base64.b64encode(data).decode("ascii")}
                self._server.deliver((sid,), [(wire.TERMINAL_OUTPUT, wire.dump(shown))])
                await self._server.drained(sid, SHOWN_BYTES)
                await asyncio.sleep(len(data) / SHOWN_A_SECOND)
        except RuntimeFault:
            pass  # the sandbox is gone: so is the shell, and nobody knows its code
        code = held.terminal.code
        told = {"terminalId": terminal_id} | ({} if code is None else {"code": code})
        self._server.deliver((sid,), [(wire.TERMINAL_EXIT, wire.dump(told))])
        mine = self._held.get(sid, {})
        if mine.get(terminal_id) is held:
            del mine[terminal_id]
            held.tasks = [task for task in held.tasks if task is not asyncio.current_task()]
            self._end(held)

    @staticmethod
    async def _type(held: _Open) -> None:
        """Hand over what is typed, as fast as it is taken; what is shown tells when that is over."""
        try:
            while True:
                item = await held.typed.get()
                if isinstance(item, bytes):
                    await held.terminal.write(item)
                    held.waiting -= len(item)
                else:
                    await held.terminal.resize(*item)
                    held.waiting -= _RESIZE_COST
        except RuntimeFault:
            return
