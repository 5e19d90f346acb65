"""Careful readers for native lines: what comes out of a sandbox may be anything that JSON can hold.

Each takes a value of any type and gives back something of the type that is asked for: bounded, free
of lone surrogates, and empty where the value makes no sense. None of them raises. What the values
mean is in `translate` and its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agent_runtime.frozen import text_of

MAX_ID: Final = 200
"""Characters. The agent's own ids have some 40."""
MAX_TEXT: Final = 1 << 20
"""Characters of one text, thought or tool output; what goes over it is cut."""
_MAX_ITEMS: Final = 500
"""Objects that are looked at in one list: some are looked up in others, once for each."""
_MAX_DEPTH: Final = 40
_MAX_COUNT: Final = 1 << 53

Json = Mapping[str, Any]
_NOTHING: Final[Json] = {}


def ident(value: object) -> str | None:
    """An id: a short printable text, or None."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable() else None


def text(value: object) -> str:
    """A text that every encoder takes, cut at `MAX_TEXT`; empty where the value is none."""
    if not isinstance(value, str):
        return ""
    return text_of(value[:MAX_TEXT])


def mapping(value: object) -> Json:
    """An object, or an empty one."""
    return value if isinstance(value, Mapping) else _NOTHING


def objects(value: object) -> list[Json]:
    """The objects among the first items of a list."""
    items = value[:_MAX_ITEMS] if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, Mapping)]


def count(value: object) -> int | None:
    """A number of things, or None."""
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT else None
    )


def amount(value: object) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_COUNT:
        return None
    return float(value)


def moment(value: object, otherwise: datetime) -> datetime:
    """An ISO 8601 time in UTC, or the other one."""
    if not isinstance(value, str) or len(value) > MAX_ID:
        return otherwise
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return otherwise


def plain(value: object, depth: int = 0) -> Any:
    """The same JSON value, fit to be stored and sent: no lone surrogate, no NaN, no endless nesting."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < _MAX_COUNT else float(min(max(value, -_MAX_COUNT), _MAX_COUNT))
    if depth >= _MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {text(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item, depth + 1) for item in value]
    return None
