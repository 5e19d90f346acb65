"""Places in lists: the order of sessions, the cursor that names a place in it, and sane bounds.

A cursor names the last session of a page by its own key, not by a count, so sessions that come or go
between two pages neither hide nor double another. It is opaque to clients and checked when it comes
back. Memory and SQLite share it, and so would any store in this folder.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from agent_runtime.errors import InvalidRequest
from agent_runtime.records import SessionRecord

SessionKey = tuple[int, str]
"""Microseconds since 1970 and the session's id: sessions are listed by this, downward."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_CURSOR: Final = 2048
_PLACE: Final = re.compile(r"s1:(0|-?[1-9][0-9]{0,17}):(.+)", re.DOTALL)
LARGEST: Final = 1 << 62
"""Above every index, count and time; every store can take it."""


def session_key(record: SessionRecord) -> SessionKey:
    """Where a session stands in its owner's list. A time without zone is taken as UTC."""
    at = record.created_at if record.created_at.tzinfo else record.created_at.replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(microseconds=1), record.session_id


def to_cursor(key: SessionKey) -> str:
    """The opaque name of a place."""
    place = f"s1:{key[0]}:{key[1]}".encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def from_cursor(cursor: str) -> SessionKey:
    """Read a cursor. Raises `InvalidRequest` (`invalid_cursor`) on anything `to_cursor` did not make."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = base64.b64decode(padded, altchars=b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError) as error:
        raise _invalid_cursor() from error
    match = _PLACE.fullmatch(place)
    if match is None or len(cursor) > _MAX_CURSOR:
        raise _invalid_cursor()
    key = (int(match[1]), match[2])
    if to_cursor(key) != cursor:
        raise _invalid_cursor()
    return key


def bounded(number: int) -> int:
    """A client's count or index, cut to what every store can take; order is kept."""
    return max(0, min(number, LARGEST))


def _invalid_cursor() -> InvalidRequest:
    return InvalidRequest("The cursor is not one of this list.", code="invalid_cursor")
