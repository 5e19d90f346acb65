"""Incoming: single values out of a runner's frames, which may be anything. Pure readers, no state.

What frames mean is the business of `runner_feed`; what is said of files is read by `workspace`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from agent_runtime.clock import now
from agent_runtime.frozen import text_of
from agent_runtime.records import TurnError
from agent_runtime_sandbox.frames import Frame, Loads, LongFrame, encode

_MAX_NESTING: Final = 200
_DIGITS: Final = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER: Final = b"0" * 19
"""What a number beyond 64 bits has in it, once all digits are 0. A regular expression takes five times as
long to find one, longer than reading the line."""
_NUMBER: Final = (int, float)
_YEAR_3000: Final = 32_503_680_000


def loads(line: bytes) -> Any:
    """What `json.loads` makes of a line, in a third of its time. Raises ValueError, RecursionError.

    The fast reader makes integers beyond 64 bits inexact, and refuses a few things that the other takes
    (lone surrogates, NaN). A line that may hold the former is the other's from the beginning.
    """
    return json.loads(line) if _has_long_number(line) else _fast_loads(line)


def loads_for(data: bytes) -> Loads:
    """What reads each line of these bytes as `loads` does.

    To look for long numbers in every line by itself took 0.8 us a line.
    """
    return loads if _has_long_number(data) else _fast_loads


def _has_long_number(data: bytes) -> bool:
    return data.translate(_DIGITS).find(_LONG_NUMBER) >= 0


def _fast_loads(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        return json.loads(line)


def moment(seconds: object) -> datetime:
    """The runner's own clock where it is believable, ours otherwise."""
    if isinstance(seconds, _NUMBER) and 0 <= seconds < _YEAR_3000:
        return datetime.fromtimestamp(seconds, UTC)
    return now()


def text(frame: Frame, name: str) -> str:
    """A field's text, bounded; empty where there is none."""
    said = frame.get(name)
    return text_of(said[:500]) if isinstance(said, str) else ""


def storable(entries: list[Any], frame: Frame) -> tuple[list[dict[str, Any]], int]:
    """Those entries of a frame that a store takes, and about how many bytes they are."""
    if isinstance(frame, LongFrame):  # bounded when it was read; to write it down once more takes 40 ms
        return [entry for entry in entries if isinstance(entry, dict)], frame.size
    kept = [(entry, size) for entry in entries if (size := _storable_size(entry)) is not None]
    return [entry for entry, _ in kept], sum(size for _, size in kept)


def _storable_size(entry: object) -> int | None:
    """About how many bytes a store takes; None for what is no object or nested without end."""
    if not isinstance(entry, dict):
        return None
    try:
        return len(orjson.dumps(entry))  # it has a bound of its own, and is fast
    except TypeError:  # numbers and strings that only Python knows, or too deep for it
        return len(encode(entry)) if _nesting(entry) <= _MAX_NESTING else None


def _nesting(value: object) -> int:
    """How deep a JSON value is, without recursion."""
    depth, level = 0, [value]
    while level and depth <= _MAX_NESTING:
        depth += 1
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        level = inner
    return depth


def exit_error(frame: Frame) -> TurnError:
    """Why an agent's process ended, as a turn's error."""
    reason = text(frame, "message") or text(frame, "reason") or "no reason given"
    return TurnError(code="agent_failed", message=f"The agent's process ended: {reason}", retryable=True)
