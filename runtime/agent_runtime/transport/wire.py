"""The wire's names: envelopes, event names, HTTP statuses, problem objects. The only file with them.

Everything here is a pure function from our values to what a client sees (`docs/wire.md`); nothing
knows aiohttp or Socket.IO. What clients send is read in `payloads`; how a replay is made smaller is
in `compact`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson

from agent_runtime.errors import Category, InvalidRequest, RuntimeFault
from agent_runtime.events import LogEntry

VERSION: Final = 1
"""Rises when something is removed or changes its meaning."""

# What a client may say over Socket.IO.
JOIN: Final = "session:join"
LEAVE: Final = "session:leave"
SEND: Final = "session:send"
INTERRUPT: Final = "session:interrupt"
WATCH: Final = "sessions:watch"
UNWATCH: Final = "sessions:unwatch"
TERMINAL: Final = "session:terminal"
TERMINAL_INPUT: Final = "terminal:input"
TERMINAL_RESIZE: Final = "terminal:resize"
TERMINAL_CLOSE: Final = "terminal:close"

# What the server says beside the events of a session, whose names are their types.
SNAPSHOT_EVENT: Final = "snapshot"
SESSION_EVENT: Final = {
    "created": "session_created",
    "changed": "session_changed",
    "deleted": "session_deleted",
}

TERMINAL_OUTPUT: Final = "terminal_output"
TERMINAL_EXIT: Final = "terminal_exit"

SLOW_CONSUMER: Final = "slow_consumer"
"""Why a connection was closed that did not take what it was sent."""
CLIENT_GONE: Final = 499
"""A status for the log alone: whoever asked is not there any more. That is their choice, and no failure."""
CUT_CODE: Final = 4008
"""The code of the WebSocket close frame that says why; its client joins again from its position."""

PROBLEM_TYPE: Final = "application/problem+json"
SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"
JSON_TYPE: Final = "application/json"

_STATUS_OF_CATEGORY: Final = {
    Category.AUTH: 401,
    Category.VALIDATION: 422,
    Category.NOT_FOUND: 404,
    Category.CONFLICT: 409,
    Category.RATE_LIMIT: 429,
    Category.BUDGET: 402,
    Category.TIMEOUT: 504,
    Category.SANDBOX: 503,
    Category.AGENT: 502,
    Category.MODEL: 502,
    Category.PERSISTENCE: 503,
    Category.INTERNAL: 500,
}
_STATUS_OF_CODE: Final = {
    "malformed_json": 400,
    "malformed_request": 400,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "stale_file": 412,
    "message_too_large": 413,
    "body_too_large": 413,
    "file_too_large": 413,
    "unsupported_media_type": 415,
    "unsupported_architecture": 422,
    "port_not_allowed": 403,
    "service_worker_refused": 403,
    "unsupported": 501,
    "port_closed": 502,
    "preview_bad_answer": 502,
    "preview_timeout": 504,
    "runtime_stopped": 503,
}


def status_of(fault: RuntimeFault) -> int:
    """The HTTP status of an error: by its code where that has one of its own, else by category."""
    return _STATUS_OF_CODE.get(fault.code, _STATUS_OF_CATEGORY[fault.category])


def problem(fault: RuntimeFault) -> dict[str, Any]:
    """The error object of REST (RFC 9457) and of a Socket.IO ack."""
    shown: dict[str, Any] = {
        "type": f"urn:agent-runtime:problem:{fault.code}",
        "title": fault.code.replace("_", " ").capitalize(),
        "status": status_of(fault),
        "code": fault.code,
        "category": fault.category.value,
        "detail": fault.detail,
        "retryable": fault.retryable,
    }
    if fault.session_id is not None:
        shown["sessionId"] = fault.session_id
    if fault.retry_after_ms is not None:
        shown["retryAfterMs"] = fault.retry_after_ms
    return shown


class _Second(NamedTuple):
    """What the times within one second have in common. To write all of it anew takes an event 2 us more."""

    begin: datetime
    last: datetime
    shown: str

    @classmethod
    def of(cls, moment: datetime) -> _Second:
        begin = moment.replace(microsecond=0)
        return cls(begin, moment.replace(microsecond=999_999), begin.isoformat()[: -len("+00:00")])


_second = _Second.of(datetime(2026, 1, 1, tzinfo=UTC))


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds."""
    global _second  # noqa: PLW0603 - the newest one that was written; any other would do as well
    in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    second = _second
    if not second.begin <= in_utc <= second.last:
        second = _second = _Second.of(in_utc)
    return f"{second.shown}.{in_utc.microsecond // 1000:03d}Z"


def envelope(session_id: str, entry: LogEntry) -> dict[str, Any]:
    """What every transport shows of one event in its place."""
    event, position = entry.event, entry.position
    return {
        "v": VERSION,
        "sessionId": session_id,
        "epoch": position.epoch,
        "seq": position.seq,
        "ts": timestamp(entry.at),
        **event.to_json(),
    }


def encoded(session_id: str, entry: LogEntry) -> bytes:
    """The envelope as JSON in UTF-8, on one line."""
    return dump(envelope(session_id, entry))


def dump(value: Any) -> bytes:
    """JSON in UTF-8, on one line, whatever strings and numbers are in it.

    Text out of a sandbox may hold lone surrogates and integers of any size; the strict encoder
    refuses both, the lenient one writes the former as escapes.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), default=_lenient).encode("ascii")


def load(data: bytes | str) -> Any:
    """Read JSON that a client sent. Raises `InvalidRequest` (`malformed_json`)."""
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise InvalidRequest("The body is not JSON.", code="malformed_json") from error


def _lenient(value: Any) -> Any:
    if isinstance(value, orjson.Fragment):
        return json.loads(value.contents)
    raise TypeError(f"{type(value).__name__} is not JSON")
