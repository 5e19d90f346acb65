"""Records as JSON text and back: how every store of this folder keeps a value.

One value, one text: what does not survive JSON survives in no store, and nothing that a caller does
to a value later changes what was saved. Strings out of a sandbox may hold lone surrogates (names
that are not Unicode, half an emoji in a tool's output) and integers of any size; both survive. The
fast codecs refuse them, so the standard one stands behind as the slow path. Not here: SQL, paging.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

import orjson
import pydantic_core
from pydantic import TypeAdapter, ValidationError

from agent_runtime.errors import InvalidRequest, PersistenceFault
from agent_runtime.frozen import Frozen
from agent_runtime.profile import AgentProfile
from agent_runtime.records import SessionRecord, Turn, TurnStatus, WorkspaceFile

T = TypeVar("T")

SESSION: Final = TypeAdapter(SessionRecord)
TURN: Final = TypeAdapter(Turn)
FILE: Final = TypeAdapter(WorkspaceFile)
PROFILE: Final = TypeAdapter(AgentProfile)
UNFINISHED: Final = frozenset({TurnStatus.QUEUED, TurnStatus.RUNNING})
"""Turns that a starting runtime has to take up again."""


def encode(value: Frozen) -> str:
    """The text of a value: what `to_json` gives. Raises `InvalidRequest` (`unstorable_value`)."""
    try:
        return value.model_dump_json(by_alias=True, exclude_none=True)
    except ValueError:
        return _encode_slowly(value)


def decode(kind: TypeAdapter[T], text: str) -> T:
    """Read a text that `encode` made. Raises `PersistenceFault` where it is damaged."""
    try:
        return kind.validate_json(text)
    except ValidationError:
        try:
            return kind.validate_python(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise _damaged() from error


def encode_object(value: Mapping[str, Any]) -> str:
    """The text of an opaque JSON object. Raises `InvalidRequest` (`unstorable_value`)."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return _dump_slowly(value)


def decode_object(text: str) -> dict[str, Any]:
    """Read a text that `encode_object` made. Raises `PersistenceFault` where it is damaged."""
    try:
        value = pydantic_core.from_json(text)
    except ValueError:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged() from error
    if not isinstance(value, dict):
        raise _damaged()
    return value


def without_content(file: WorkspaceFile) -> WorkspaceFile:
    """The file as a manifest shows it."""
    return file.model_copy(update={"content": None})


def _encode_slowly(value: Frozen) -> str:
    try:
        # Not `to_json`: it cannot take a lone surrogate in the key of a nested object either.
        return _dump_slowly(value.model_dump(by_alias=True, exclude_none=True))
    except (ValueError, RecursionError) as error:
        raise _unstorable() from error


def _dump_slowly(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unstorable() from error


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _unstorable() -> InvalidRequest:
    return InvalidRequest("The value cannot be written as JSON.", code="unstorable_value")


def _damaged() -> PersistenceFault:
    return PersistenceFault("A stored record cannot be read.", retryable=False)
