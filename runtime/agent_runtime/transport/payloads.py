"""payloads: what clients send, as models; and the reading of it, which refuses everything else.

The same models serve REST bodies, Socket.IO commands and the OpenAPI document. Whatever is wrong
becomes an `InvalidRequest` that names the fields; nothing a client sends gets past here half
checked. What the server answers is in `wire`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from agent_runtime.blocks import Content, ImagePart
from agent_runtime.errors import InvalidRequest
from agent_runtime.frozen import Frozen
from agent_runtime.session import WhenBusy

_MAX_DEPTH: Final = 64
_MAX_NAMED_FIELDS: Final = 5
_MAX_FIELD_NAME: Final = 80

Model = TypeVar("Model", bound="Payload")


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse nesting that encoders and stores further in could not follow."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _said(content: Content) -> Content:
    """Refuse what says nothing, and pictures that are not base64."""
    if not content or (isinstance(content, str) and not content.strip()):
        raise ValueError("is empty")
    for part in content if not isinstance(content, str) else ():
        if isinstance(part, ImagePart):
            _bytes_of(part.source.data)
    return content


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base64") from error


Opaque = Annotated[dict[str, Any], AfterValidator(_shallow)]
Said = Annotated[Content, AfterValidator(_said)]
SessionId = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,200}$")]
ClientId = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(max_length=200)]


class Payload(Frozen):
    """Something a client sends. Unknown fields are refused by name."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=False, extra="forbid")


class NewFile(Payload):
    """A file for a new session's workspace: text, or base64."""

    path: str = Field(min_length=1, max_length=1000)
    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"

    def raw(self) -> bytes:
        """The file's bytes. Raises `InvalidRequest` where the content is not what `encoding` says."""
        if self.encoding == "utf-8":
            return self.content.encode()
        try:
            return _bytes_of(self.content)
        except ValueError as error:
            raise InvalidRequest(f"workspaceFiles: {clipped(self.path)} is not base64.") from error


class CreateSession(Payload):
    """`POST /api/sessions`."""

    agent_profile_ref: str = Field(min_length=1, max_length=200)
    architecture: str | None = Field(default=None, max_length=100)
    session_options: Opaque = Field(default_factory=dict)
    name: Name | None = None
    metadata: Opaque = Field(default_factory=dict)
    workspace_files: tuple[NewFile, ...] = Field(default=(), max_length=1000)
    message: Said | None = None


class PatchSession(Payload):
    """`PATCH /api/sessions/{id}`; only what is given changes."""

    name: Name = ""
    metadata: Opaque = Field(default_factory=dict)


class PatchOptions(Payload):
    """`PATCH /api/sessions/{id}/options`: the options that are to change; their agent checks them."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _check(self) -> PatchOptions:
        _shallow(self.options())
        return self

    def options(self) -> dict[str, Any]:
        """The options as they were sent."""
        return dict(self.model_extra or {})


class Nothing(Payload):
    """A body that says nothing: absent, or an empty object."""


class PortPath(Payload):
    """A port in a path."""

    port: int = Field(ge=1, le=65535)


class SendMessage(Payload):
    """`POST /api/sessions/{id}/messages`."""

    content: Said
    message_id: ClientId | None = None
    when_busy: WhenBusy = "queue"


class InterruptTurn(Payload):
    """`POST /api/sessions/{id}/interrupt`; without a turn the present one is meant."""

    turn_id: str | None = Field(default=None, max_length=200)


class PageQuery(Payload):
    """Paging in a query string. Unknown parameters are ignored, as everywhere on the web."""

    model_config = ConfigDict(extra="ignore")

    limit: int | None = Field(default=None, ge=1, le=200)


class SessionsQuery(PageQuery):
    """`GET /api/sessions`."""

    cursor: str | None = Field(default=None, max_length=1000)


class BlocksQuery(PageQuery):
    """`GET /api/sessions/{id}/blocks`; `before` is a block's id."""

    before: str | None = Field(default=None, max_length=500)
    conversation_id: str | None = Field(default=None, max_length=500)


class TurnsQuery(PageQuery):
    """`GET /api/sessions/{id}/turns`; `before` is a turn's index."""

    before: int | None = Field(default=None, ge=0, le=2**53)


class EventsQuery(Payload):
    """`GET /api/sessions/{id}/events`; `after` is a position, as in `Last-Event-ID`."""

    model_config = ConfigDict(extra="ignore")

    after: str = Field(default="", max_length=200)


class JoinCommand(Payload):
    """`session:join`. A position that cannot be used, for whatever reason, gives a snapshot."""

    session_id: SessionId
    position: str | None = None


class SessionCommand(Payload):
    """`session:leave`."""

    session_id: SessionId


class SendCommand(SendMessage):
    """`session:send`. Here the client's own id is a must: sockets break between send and ack."""

    session_id: SessionId
    message_id: ClientId


class InterruptCommand(InterruptTurn):
    """`session:interrupt`."""

    session_id: SessionId


class TerminalSize(Payload):
    """How large a terminal is, in characters."""

    rows: int = Field(ge=1, le=1000)
    cols: int = Field(ge=1, le=1000)


class TerminalCommand(TerminalSize):
    """`session:terminal`."""

    session_id: SessionId


class OneTerminal(Payload):
    """`terminal:close`."""

    terminal_id: ClientId


class TerminalInput(OneTerminal):
    """`terminal:input`: bytes in base64."""

    data: str = Field(min_length=1, max_length=128 * 1024)

    def raw(self) -> bytes:
        """The bytes. Raises `InvalidRequest` where they are no base64."""
        try:
            return _bytes_of(self.data)
        except ValueError as error:
            raise InvalidRequest("data: is not base64.") from error


class TerminalResize(TerminalSize, OneTerminal):
    """`terminal:resize`."""


class WatchCommand(PageQuery):
    """`sessions:watch`."""

    model_config = ConfigDict(extra="forbid")


def read(model: type[Model], value: Any) -> Model:
    """Make the payload of what a client sent. Raises `InvalidRequest` that names what is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(_explained(error)) from error


def content_bytes(content: Content) -> int:
    """How large a message is: its text in UTF-8 and its pictures as they are sent."""
    if isinstance(content, str):
        return len(content.encode())
    return sum(
        len(part.source.data) if isinstance(part, ImagePart) else len(part.text.encode()) for part in content
    )


def check_size(content: Content, limit: int) -> None:
    """Raise `InvalidRequest` (`message_too_large`) where a message is over the bound in bytes."""
    if content_bytes(content) > limit:
        raise InvalidRequest(f"A message holds at most {limit} bytes.", code="message_too_large")


def clipped(name: str) -> str:
    """A name that a client gave, short enough to be said back."""
    return name if len(name) <= _MAX_FIELD_NAME else name[:_MAX_FIELD_NAME] + "…"


def _explained(error: ValidationError) -> str:
    told: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = clipped(".".join(str(place) for place in item["loc"][:3])) or "the payload"
        message = "unknown field" if item["type"] == "extra_forbidden" else item["msg"]
        told.setdefault(field, message.removeprefix("Value error, "))
    lines = [f"{field}: {message}" for field, message in list(told.items())[:_MAX_NAMED_FIELDS]]
    more = len(told) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "") + "."
