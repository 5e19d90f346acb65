"""Reads token usage out of a model's answer while it passes by. Pure; holds no more than a line.

A streamed answer tells its usage in `message_start` and, as running totals, in `message_delta`; a
whole answer tells it in one JSON object. Later figures replace earlier ones, so a stream that is
cut counts with what it had told so far. What cannot be read counts as nothing: metering never
disturbs the answer. Who adds the figures up is `anthropic`.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import orjson

from agent_runtime.records import Usage

MAX_LINE_BYTES: Final = 1024 * 1024
"""Longer lines of a stream are skipped; those that tell usage have a few hundred bytes."""
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Longer whole answers are not counted; a model's longest answer stays far below."""
_MAX_TOKENS: Final = 10**9

_FIELDS: Final = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
}


class UsageReader(Protocol):
    """Takes the bytes of one answer in order, in pieces of any size."""

    def feed(self, data: bytes) -> None:
        """Look at more bytes."""

    def usage(self) -> Usage | None:
        """What the answer has told so far; None where it told nothing."""
        ...


class StreamUsage:
    """Usage of an answer that comes as Server-Sent Events."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> None:
        """Look at more bytes; keeps only a line that has begun and not ended."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._hold(piece)
            self._end_line()
        self._hold(rest)

    def usage(self) -> Usage | None:
        """The newest figures of `message_start` and `message_delta`."""
        return Usage(**self._seen) if self._seen else None

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held > MAX_LINE_BYTES:
            self._parts = []
        elif piece:
            self._parts.append(piece)

    def _end_line(self) -> None:
        line = b"".join(self._parts)
        self._parts, self._held = [], 0
        if not line.startswith(b"data:") or b'"usage"' not in line:
            return
        event = _object(line[len(b"data:") :])
        if event.get("type") == "message_start":
            message = event.get("message")
            _note(self._seen, message.get("usage") if isinstance(message, dict) else None)
        elif event.get("type") == "message_delta":
            _note(self._seen, event.get("usage"))


class BodyUsage:
    """Usage of an answer that comes as one JSON object."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._over = False

    def feed(self, data: bytes) -> None:
        """Keep the body as long as it stays within bounds."""
        self._over = self._over or len(self._body) + len(data) > MAX_BODY_BYTES
        if self._over:
            self._body.clear()
        else:
            self._body += data

    def usage(self) -> Usage | None:
        """The figures of the whole body; None before it is whole."""
        seen: dict[str, int] = {}
        _note(seen, _object(bytes(self._body)).get("usage"))
        return Usage(**seen) if seen else None


class Meter:
    """Reads one answer's usage in whatever form it comes. Until `begin`, and in other forms, nothing."""

    def __init__(self) -> None:
        self._reader: UsageReader | None = None

    def begin(self, content_type: str) -> None:
        """The answer succeeded and its bytes follow."""
        if content_type == "text/event-stream":
            self._reader = StreamUsage()
        elif content_type == "application/json":
            self._reader = BodyUsage()

    def feed(self, data: bytes) -> None:
        """Look at more bytes."""
        if self._reader is not None:
            self._reader.feed(data)

    def usage(self) -> Usage | None:
        """What the answer has told so far; None where it told nothing."""
        return self._reader.usage() if self._reader is not None else None


def add(total: Usage, more: Usage) -> Usage:
    """Sum field by field; what both leave out stays out."""
    sums = {}
    for name in _FIELDS.values():
        figures = [figure for figure in (getattr(total, name), getattr(more, name)) if figure is not None]
        sums[name] = sum(figures) if figures else None
    return Usage(**sums)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _note(seen: dict[str, int], raw: object) -> None:
    if not isinstance(raw, dict):
        return
    for theirs, ours in _FIELDS.items():
        figure = raw.get(theirs)
        if isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure <= _MAX_TOKENS:
            seen[ours] = figure
