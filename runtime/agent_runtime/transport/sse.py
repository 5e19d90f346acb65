"""sse: the log as a stream over plain HTTP: a session's events, or those of one turn.

Server-Sent Events and lines of JSON are two spellings of the same envelopes. A stream follows the
log by itself, so a reader that is slow waits alone; when it falls out of the log it is given a
snapshot, as anybody who comes without a usable position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from aiohttp import web

from agent_runtime.errors import RuntimeFault
from agent_runtime.events import Gap, LogEntry, Position, TurnEnd, TurnStart
from agent_runtime.records import TurnStatus
from agent_runtime.session import SendReceipt
from agent_runtime.transport import answers, payloads, wire
from agent_runtime.transport.call import Call, json_response

_COMMENT: Final = b":\n\n"
_STREAM_TYPES: Final = (wire.SSE_TYPE, wire.NDJSON_TYPE)
_UNFINISHED: Final = frozenset({TurnStatus.QUEUED, TurnStatus.RUNNING})
_RECENT_TURNS: Final = 200


async def stream_events(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}/events`: all that happens, from a position or a snapshot on."""
    await call.manager.session(call.principal, call.session_id)
    asked = call.request.headers.get("Last-Event-ID") or call.query(payloads.EventsQuery).after
    stream = await _Stream.open(call, wire.SSE_TYPE)
    return await stream.attend(_tell_everything(stream, Position.parse(asked)))


async def stream_turn(call: Call, receipt: SendReceipt, before: Position) -> web.StreamResponse:
    """The events of the turn that a message began, up to its end.

    `before` is the log's head from before the message was sent. A repeated message is answered with
    its turn's events as far as the log has them, and with the plain receipt where the turn is over
    and forgotten.
    """
    start: Position | None = before
    if receipt.duplicate:
        start = await _begin_of(call, receipt.turn_id, before)
    if start is None:
        return json_response(accepted(receipt), status=202)
    stream = await _Stream.open(call, _wanted(call) or wire.SSE_TYPE)
    return await stream.attend(_tell_turn(stream, start, receipt.turn_id))


def accepted(receipt: SendReceipt) -> dict[str, Any]:
    """What a message is acknowledged with."""
    return answers.Accepted.of(receipt).to_json()


def wants_stream(call: Call) -> bool:
    """Whether the caller asked for the turn's events instead of a receipt."""
    return _wanted(call) is not None


class _Stream:
    """One open answer: how things are spelt in it, and how it ends."""

    def __init__(self, call: Call, response: web.StreamResponse) -> None:
        self.call = call
        self._response = response
        self._is_sse = response.content_type == wire.SSE_TYPE

    @classmethod
    async def open(cls, call: Call, content_type: str) -> _Stream:
        response = web.StreamResponse(
            headers=call.transport.headers(call.request)
            | {"Content-Type": content_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(call.request)
        return cls(call, response)

    async def attend(self, telling: Coroutine[None, None, None]) -> web.StreamResponse:
        """Tell until it is over, the reader is gone, or the server closes."""
        task = asyncio.current_task()
        assert task is not None
        transport = self.call.transport
        transport.streams.add(task)
        transport.metrics.streams.set(len(transport.streams))
        try:
            with self.call.manager.viewing(self.call.session_id):
                await telling
        except ConnectionResetError:
            pass  # the reader went away; stopping a turn is a command
        except RuntimeFault as fault:
            await self._write("error", wire.dump({"type": "error"} | wire.problem(fault)))
        except asyncio.CancelledError:
            if not transport.is_closing:
                raise
        finally:
            transport.streams.discard(task)
            transport.metrics.streams.set(len(transport.streams))
        return self._response

    async def entries(self, entries: Iterable[LogEntry]) -> None:
        """Write events, each with its position as the id to resume from."""
        for entry in entries:
            data = wire.encoded(self.call.session_id, entry)
            await self._write(entry.event.type, data, entry.position)

    async def snapshot(self) -> Position:
        """Write how everything stands; what follows, follows from the position returned."""
        found = await self.call.manager.snapshot(self.call.principal, self.call.session_id)
        data = wire.dump({"type": wire.SNAPSHOT_EVENT} | answers.SessionSnapshot.of(found).to_json())
        await self._write(wire.SNAPSHOT_EVENT, data, found.position)
        return found.position

    async def news(self, after: Position) -> None:
        """Wait until the log goes on, with a sign of life now and then for those in between."""
        log, session_id = self.call.manager.log, self.call.session_id
        while True:
            try:
                async with asyncio.timeout(self.call.config.heartbeat_s):
                    return await log.wait(session_id, after)
            except TimeoutError:
                if self._is_sse:
                    await self._response.write(_COMMENT)

    async def _write(self, name: str, data: bytes, position: Position | None = None) -> None:
        if not self._is_sse:
            await self._response.write(data + b"\n")
            return
        place = f"id: {position}\n" if position is not None else ""
        await self._response.write(f"{place}event: {name}\ndata: ".encode() + data + b"\n\n")


async def _tell_everything(stream: _Stream, after: Position | None) -> None:
    log, session_id = stream.call.manager.log, stream.call.session_id
    position = after or await stream.snapshot()
    while True:
        found = await log.since(session_id, position)
        if isinstance(found, Gap):
            position = await stream.snapshot()
            continue
        await stream.entries(found.entries)
        position = found.head
        await stream.news(position)


async def _tell_turn(stream: _Stream, start: Position, turn_id: str) -> None:
    log, session_id = stream.call.manager.log, stream.call.session_id
    position = start
    while True:
        found = await log.since(session_id, position)
        if isinstance(found, Gap):
            position = await stream.snapshot()
            if not await _is_going_on(stream.call, turn_id):
                return
            continue
        mine = [entry for entry in found.entries if _turn_of(entry) == turn_id]
        await stream.entries(mine)
        if any(isinstance(entry.event, TurnEnd) for entry in mine):
            return
        position = found.head
        await stream.news(position)


async def _begin_of(call: Call, turn_id: str, head: Position) -> Position | None:
    """Where an earlier turn begins in the log; None where it is over and no longer there."""
    found = await call.manager.log.since(call.session_id, Position(head.epoch, 0))
    for entry in () if isinstance(found, Gap) else found.entries:
        if isinstance(entry.event, TurnStart) and entry.event.turn.turn_id == turn_id:
            return Position(head.epoch, entry.position.seq - 1)
    return head if await _is_going_on(call, turn_id) else None


async def _is_going_on(call: Call, turn_id: str) -> bool:
    turns = await call.manager.turns(call.principal, call.session_id, before=None, limit=_RECENT_TURNS)
    return any(turn.turn_id == turn_id and turn.status in _UNFINISHED for turn in turns)


def _turn_of(entry: LogEntry) -> str | None:
    event = entry.event
    return event.turn.turn_id if isinstance(event, TurnStart | TurnEnd) else event.turn_id


def _wanted(call: Call) -> str | None:
    accepted = [part.split(";")[0].strip() for part in call.request.headers.get("Accept", "").split(",")]
    return next((kind for kind in accepted if kind in _STREAM_TYPES), None)
