"""call: one REST call: who calls, and the reading of what was sent, bounded in bytes and time.

What is done with it is in `rest`, `rest_files`, `sse` and `pages`; how errors become answers is in
`guard`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest, NotFound
from agent_runtime.manager import SessionManager
from agent_runtime.ports import Authenticator, Principal
from agent_runtime.tasks import Tasks
from agent_runtime.transport import payloads, wire
from agent_runtime.transport.metrics import Metrics

Model = TypeVar("Model", bound=payloads.Payload)


@dataclass(slots=True)
class Transport:
    """What all calls of one mounted application share."""

    manager: SessionManager
    config: RuntimeConfig
    authenticator: Authenticator
    tasks: Tasks = field(default_factory=Tasks)
    metrics: Metrics = field(default_factory=Metrics)
    prefix: str = ""
    is_closing: bool = False
    streams: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Call:
    """A request of an authenticated caller."""

    request: web.Request
    transport: Transport
    caller: Principal | None

    @property
    def manager(self) -> SessionManager:
        """Who does the work."""
        return self.transport.manager

    @property
    def config(self) -> RuntimeConfig:
        """The bounds."""
        return self.transport.config

    @property
    def principal(self) -> Principal:
        """Who calls."""
        assert self.caller is not None, "a public route has no caller"
        return self.caller

    @property
    def session_id(self) -> str:
        """The session of the path. Raises `NotFound` for what cannot be a session's id."""
        asked = self.request.match_info["sessionId"]
        if not (asked.isascii() and asked.isprintable() and len(asked) <= 200):  # noqa: PLR2004 as in payloads
            raise NotFound("There is no such session.", code="session_not_found")
        return asked

    def query(self, model: type[Model]) -> Model:
        """The query string as a payload. Raises `InvalidRequest`."""
        return payloads.read(model, dict(self.request.query))

    async def body(self, model: type[Model], *, limit: int | None = None) -> Model:
        """The JSON body as a payload; an absent one counts as an empty object.

        Raises `InvalidRequest`: `unsupported_media_type`, `body_too_large`, `malformed_json`,
        `request_timeout`, or one that names the wrong fields.
        """
        data = await self._bytes(limit or self._message_body_limit())
        if not data:
            return payloads.read(model, {})
        if self.request.content_type != wire.JSON_TYPE:
            raise InvalidRequest("The body must be application/json.", code="unsupported_media_type")
        return payloads.read(model, wire.load(data))

    def _message_body_limit(self) -> int:
        # JSON writes a character of one byte with up to six; the message itself is measured after.
        return 6 * self.config.max_message_bytes + 4096

    async def _bytes(self, limit: int) -> bytes:
        declared = self.request.content_length
        if declared is not None and declared > limit:
            raise _too_large(limit)
        data = bytearray()
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                async for piece in self.request.content.iter_any():
                    data += piece
                    if len(data) > limit:
                        raise _too_large(limit)
        except TimeoutError as error:
            raise InvalidRequest("The body did not arrive in time.", code="request_timeout") from error
        except (HttpProcessingError, web.RequestPayloadError) as error:
            raise InvalidRequest("The body cannot be read.", code="malformed_request") from error
        return bytes(data)


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer in JSON. It is the caller's own data, so nobody in between keeps it."""
    return web.Response(
        body=wire.dump(value),
        status=status,
        content_type=wire.JSON_TYPE,
        headers={"Cache-Control": "no-store"} | (headers or {}),
    )


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {limit} bytes.", code="body_too_large")
