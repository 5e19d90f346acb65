"""Reads token usage out of a model's answer while it passes by. Pure; holds no more than a line.

Which events tell usage, and under which names, is the vendor's business. Later figures replace
earlier ones, so a stream that is cut counts with what it had told so far. What cannot be read
counts as nothing: metering never disturbs the answer. Who adds the figures up is `broker`.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import orjson

from agent_runtime.gateway.vendor import Figures, Vendor
from agent_runtime.records import Usage

MAX_LINE_BYTES: Final = 1024 * 1024
"""Longer lines of a stream are skipped; those that tell usage have a few hundred bytes."""
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Longer whole answers are not counted; a model's longest answer stays far below."""

_FIELDS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class UsageReader(Protocol):
    """Takes the bytes of one answer in order, in pieces of any size."""

    def feed(self, data: bytes) -> None:
        """Look at more bytes."""

    def figures(self) -> Figures:
        """What the answer has told so far."""
        ...


class StreamUsage:
    """Usage of an answer that comes as Server-Sent Events."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor
        self._seen: Figures = {}
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> None:
        """Look at more bytes; keeps only a line that has begun and not ended."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._hold(piece)
            self._end_line()
        self._hold(rest)

    def figures(self) -> Figures:
        """The newest of each."""
        return self._seen

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held > MAX_LINE_BYTES:
            self._parts = []
        elif piece:
            self._parts.append(piece)

    def _end_line(self) -> None:
        line = b"".join(self._parts)
        self._parts, self._held = [], 0
        if not line.startswith(b"data:") or self._vendor.usage_mark not in line:
            return
        for event in _objects(line[len(b"data:") :]):
            self._seen.update(self._vendor.figures(event))


class BodyUsage:
    """Usage of an answer that comes as one piece of JSON: an object, or a list of what a stream has."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor
        self._body = bytearray()
        self._over = False

    def feed(self, data: bytes) -> None:
        """Keep the body as long as it stays within bounds."""
        self._over = self._over or len(self._body) + len(data) > MAX_BODY_BYTES
        if self._over:
            self._body.clear()
        else:
            self._body += data

    def figures(self) -> Figures:
        """Those of the whole body; none before it is whole."""
        seen: Figures = {}
        for told in _objects(bytes(self._body)):
            seen.update(self._vendor.figures(told))
        return seen


class Meter:
    """Reads one answer's usage in whatever form it comes. Until `begin`, and in other forms, nothing."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor
        self._reader: UsageReader | None = None

    def begin(self, content_type: str) -> None:
        """The answer succeeded and its bytes follow."""
        if content_type == "text/event-stream":
            self._reader = StreamUsage(self._vendor)
        elif content_type == "application/json":
            self._reader = BodyUsage(self._vendor)

    def feed(self, data: bytes) -> None:
        """Look at more bytes."""
        if self._reader is not None:
            self._reader.feed(data)

    def usage(self) -> Usage | None:
        """What the answer has told so far; None where it told nothing."""
        figures = self._reader.figures() if self._reader is not None else {}
        return Usage(**figures) if figures else None


def add(total: Usage, more: Usage) -> Usage:
    """Sum field by field; what both leave out stays out."""
    sums = {}
    for name in _FIELDS:
        figures = [figure for figure in (getattr(total, name), getattr(more, name)) if figure is not None]
        sums[name] = sum(figures) if figures else None
    return Usage(**sums)


def _objects(data: bytes) -> list[dict[str, Any]]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return []
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]
