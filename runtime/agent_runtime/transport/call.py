"""call: one REST call: who calls, and the reading of what was sent, bounded in bytes and time.

What is done with it is in `rest`, `rest_files`, `sse` and `pages`; how errors become answers is in
`guard`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest, NotFound, Unauthenticated
from agent_runtime.manager import SessionManager
from agent_runtime.ports import Authenticator, Principal
from agent_runtime.tasks import Tasks
from agent_runtime.transport import payloads, wire
from agent_runtime.transport.metrics import Metrics
from agent_runtime.transport.preview import Previews

_CORS_EXPOSED: Final = "ETag, Location, Idempotency-Replayed, Retry-After, X-Request-Id"

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
    previews: Previews = field(init=False)

    def __post_init__(self) -> None:
        self.previews = Previews(
            self.manager, self.tasks, prefix=self.prefix, origin=self.config.preview_origin
        )

    def refuse_previews(self, request: web.Request) -> None:
        """Raise `Unauthenticated` for a call by a page that we show for somebody inside."""
        origin = request.headers.get("Origin")
        if origin is not None and self.previews.is_origin(origin):
            raise Unauthenticated("Pages of this origin may not call.", code="foreign_origin")

    def allowed_origin(self, request: web.Request) -> str | None:
        """The foreign origin that a page calls from, where it may."""
        origin = request.headers.get("Origin")
        return origin if origin in self.config.cors_origins else None

    def headers(self, request: web.Request) -> dict[str, str]:
        """What every answer to this request says, beside what it says itself."""
        said = {"X-Content-Type-Options": "nosniff"}
        origin = self.allowed_origin(request)
        if origin is not None:
            said |= {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Expose-Headers": _CORS_EXPOSED,
                "Vary": "Origin",
            }
        return said


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
        config = self.config
        data = await read_bytes(
            self.request, limit or _message_body_limit(config), within_s=config.body_timeout_s
        )
        if not data:
            return payloads.read(model, {})
        if self.request.content_type != wire.JSON_TYPE:
            raise InvalidRequest("The body must be application/json.", code="unsupported_media_type")
        return payloads.read(model, wire.load(data))


async def read_bytes(request: web.Request, limit: int, *, within_s: float) -> bytes:
    """A request's whole body, bounded in bytes (after decompression) and seconds.

    Raises `InvalidRequest`: `body_too_large`, `request_timeout`, `malformed_request`.
    """
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    data = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.content.iter_any():
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


def _message_body_limit(config: RuntimeConfig) -> int:
    # JSON writes a character of one byte with up to six; the message itself is measured after.
    return 6 * config.max_message_bytes + 4096


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {limit} bytes.", code="body_too_large")
