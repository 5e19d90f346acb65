"""guard: what stands around every route: who may call, errors as problems, one log line a request.

Whatever happens inside, a client gets either the answer or a problem object, also for paths and
methods that do not exist. Logs hold paths without their query, and never a header or a body.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from agent_runtime.errors import InvalidRequest, NotFound, RuntimeFault, Unauthenticated
from agent_runtime.transport import wire
from agent_runtime.transport.auth import identify, request_credentials
from agent_runtime.transport.call import Call, Transport
from agent_runtime.transport.preview import FOLDER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Perform = Callable[[Call], Awaitable[web.StreamResponse]]

_REQUEST_ID: Final = "X-Request-Id"
_CORS_METHODS: Final = "GET, POST, PATCH, PUT, DELETE"
_CORS_HEADERS: Final = "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Match, Last-Event-ID"

_log = structlog.get_logger(__name__)


def authenticated(transport: Transport, perform: Perform) -> Handler:
    """A handler whose caller is known before anything else is looked at."""

    async def handler(request: web.Request) -> web.StreamResponse:
        transport.refuse_previews(request)
        caller = await identify(transport.authenticator, request_credentials(request))
        return await perform(Call(request, transport, caller))

    return handler


def public(transport: Transport, perform: Perform) -> Handler:
    """A handler for anybody."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await perform(Call(request, transport, None))

    return handler


def guard(transport: Transport) -> Middleware:
    """The middleware around all routes of one application."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        request_id = secrets.token_hex(8)
        origin = transport.allowed_origin(request)
        is_shown = transport.previews.is_shown(request)
        if origin is not None and _is_preflight(request) and not is_shown:
            return web.Response(status=204, headers=_preflight_headers(origin))
        response = await _answer(transport, request, handler, request_id)
        _note(transport, request, response, request_id, time.monotonic() - began)
        return response

    return middleware


def previews_first(transport: Transport) -> Middleware:
    """The middleware of whoever listens: what is asked of a preview's own host is for nobody else."""
    show = guarded(transport, transport.previews.at_own_host)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_preview = transport.previews.label_of(request) is not None
        return await (show if is_preview else handler)(request)

    return middleware


def guarded(transport: Transport, handler: Handler) -> Handler:
    """One handler with all that `guard` does, for an application whose other routes are not ours."""
    middleware = guard(transport)

    async def performed(request: web.Request) -> web.StreamResponse:
        return await middleware(request, handler)

    return performed


def problem_response(fault: RuntimeFault, *, headers: dict[str, str] | None = None) -> web.Response:
    """An error as the answer to a request."""
    shown = {"Cache-Control": "no-store"} | (headers or {})
    if isinstance(fault, Unauthenticated):
        shown["WWW-Authenticate"] = "Bearer"
    if fault.retry_after_ms is not None:
        shown["Retry-After"] = str(-(-fault.retry_after_ms // 1000))
    return web.Response(
        body=wire.dump(wire.problem(fault)),
        status=wire.status_of(fault),
        content_type=wire.PROBLEM_TYPE,
        headers=shown,
    )


async def _answer(
    transport: Transport, request: web.Request, handler: Handler, request_id: str
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except RuntimeFault as fault:
        response = problem_response(fault)
    except web.HTTPException as raised:
        response = await _translated(transport, request, raised)
    except ConnectionResetError:
        response = web.Response(status=wire.CLIENT_GONE)
    except Exception:
        _log.exception("request_failed", request_id=request_id, method=request.method)
        response = problem_response(RuntimeFault("Something went wrong here."))
    if not response.prepared:  # a stream's headers are gone; it has put on its own
        response.headers[_REQUEST_ID] = request_id
        for name, value in transport.headers(request).items():
            response.headers.setdefault(name, value)
    return response


async def _translated(
    transport: Transport, request: web.Request, raised: web.HTTPException
) -> web.StreamResponse:
    """The framework's own errors in our words."""
    if raised.status in (404, 405) and request.path.startswith(f"{transport.prefix}/api/"):
        try:
            await identify(transport.authenticator, request_credentials(request))
        except RuntimeFault as fault:
            return problem_response(fault)
    match raised:
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(raised.allowed_methods))
            refused = InvalidRequest(f"This path takes {allow}.", code="method_not_allowed")
            return problem_response(refused, headers={"Allow": allow})
        case web.HTTPNotFound():
            return problem_response(NotFound("There is nothing here.", code="route_not_found"))
        case web.HTTPRequestEntityTooLarge():
            return problem_response(InvalidRequest("The body is too large.", code="body_too_large"))
        case web.HTTPClientError():
            return problem_response(InvalidRequest("The request is malformed.", code="malformed_request"))
    return raised


def _note(
    transport: Transport, request: web.Request, response: web.StreamResponse, request_id: str, took_s: float
) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical.removeprefix(transport.prefix) if resource is not None else "none"
    path = request.path
    if transport.previews.is_shown(request):  # its address is a key, and all else is somebody else's words
        transport.metrics.previews.labels(response.status // 100).inc()
        path = FOLDER
    elif response.content_type not in (wire.SSE_TYPE, wire.NDJSON_TYPE) and "/socket.io" not in route:
        transport.metrics.http.labels(request.method, route, response.status).observe(took_s)
    _log.info(
        "request",
        request_id=request_id,
        method=request.method,
        path=path,
        status=response.status,
        took_ms=round(took_s * 1000, 1),
    )


def _is_preflight(request: web.Request) -> bool:
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def _preflight_headers(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": _CORS_METHODS,
        "Access-Control-Allow-Headers": _CORS_HEADERS,
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
