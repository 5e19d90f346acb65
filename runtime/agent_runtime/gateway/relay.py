"""Passes one admitted request to the model's API and its answer back, piece by piece as it comes.

Headers pass by allow-list in both directions; the client's credentials end here and the real one
is added. Redirects are not followed. Nothing is held: the body is bounded while it streams out, a
meter looks at the answer while it streams in. Failures before the answer begins are answers in
the API's own form; a failure after that cuts the connection, as the API's own failure would.
Who may pass at all is decided in `anthropic`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from agent_runtime.gateway.usage import Meter

_CREDENTIAL_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Our own credential is wrong: agents ask again for minutes otherwise, and it will not get better."""
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_REDIRECTS: Final = range(300, 400)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_REQUEST_HEADERS: Final = frozenset(
    {
        "accept",
        "content-type",
        "content-encoding",
        "content-length",
        "user-agent",
        "x-app",
        "x-client-request-id",
    }
)
_REQUEST_PREFIXES: Final = ("anthropic-", "x-stainless-", "x-claude-")
_RESPONSE_HEADERS: Final = frozenset(
    {"cache-control", "content-type", "request-id", "retry-after", "retry-after-ms", "x-should-retry"}
)
_RESPONSE_PREFIXES: Final = ("anthropic-ratelimit-",)

log = structlog.get_logger("agent_runtime.gateway")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a peer that does nothing, in seconds.

    `idle_s` is long because an answer that is not streamed comes whole after minutes of silence;
    `total_s` is for one request with its answer, whatever happens.
    """

    connect_s: float = 30.0
    idle_s: float = 900.0
    upload_idle_s: float = 60.0
    total_s: float = 3600.0


def refusal(status: int, kind: str, message: str) -> web.Response:
    """An error as the Messages API words it; the connection is closed after it."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    response = web.json_response(body, status=status)
    response.force_close()
    return response


TOO_LARGE: Final = (413, "request_too_large", f"The request is larger than {MAX_BODY_BYTES} bytes.")


class Relay:
    """The way to one upstream. Its connections are shared by all sessions, its cookies by none."""

    def __init__(self, upstream: URL, credentials: Mapping[str, str], patience: Patience) -> None:
        self._upstream = upstream
        self._credentials = credentials
        self._patience = patience
        self._client: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close all connections to the upstream. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def forward(self, request: web.BaseRequest, target: str, meter: Meter) -> web.StreamResponse:
        """Send the request to `target` (path and query, already checked) and pass the answer on.

        `meter` sees the bytes of a successful answer, also where this is cancelled half way.
        """
        upload = _Upload(request, self._patience.upload_idle_s)
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return refusal(*TOO_LARGE)
        url = URL(f"{str(self._upstream).rstrip('/')}{target}", encoded=True)
        headers = self._outgoing(request)
        try:
            async with self._connected().post(
                url, data=upload, headers=headers, allow_redirects=False
            ) as answer:
                return await self._answer(request, answer, meter)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            return self._failure(upload, error)

    async def _answer(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, meter: Meter
    ) -> web.StreamResponse:
        if answer.status in _REDIRECTS:
            log.warning("upstream_redirects", status=answer.status)
            return refusal(502, "api_error", "The model's API redirects, which is not followed.")
        if answer.status == HTTPStatus.OK:
            meter.begin(answer.content_type)
        headers = _passing(answer.headers, _RESPONSE_HEADERS, _RESPONSE_PREFIXES)
        if answer.status in _CREDENTIAL_REFUSED:
            headers["x-should-retry"] = "false"
        response = web.StreamResponse(status=answer.status, headers=headers)
        try:
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                meter.feed(piece)
                async with asyncio.timeout(self._patience.idle_s):
                    await response.write(piece)
            await response.write_eof()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            log.info("answer_cut", cause=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        return response

    def _failure(self, upload: _Upload, error: Exception) -> web.Response:
        if upload.over:
            return refusal(*TOO_LARGE)
        if upload.stalled:
            return refusal(408, "timeout_error", "The request's body did not arrive in time.")
        log.warning("upstream_failed", cause=type(error).__name__)
        if isinstance(error, TimeoutError):
            return refusal(504, "timeout_error", "The model's API did not answer in time.")
        return refusal(502, "api_error", "The model's API cannot be reached or broke off.")

    def _outgoing(self, request: web.BaseRequest) -> CIMultiDict[str]:
        headers = _passing(request.headers, _REQUEST_HEADERS, _REQUEST_PREFIXES)
        headers["accept-encoding"] = "identity"  # usage is read from the bytes that pass
        headers.update(self._credentials)
        return headers

    def _connected(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # each session's own connections are bounded
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=self._patience.total_s,
                    connect=self._patience.connect_s,
                    sock_read=self._patience.idle_s,
                ),
                skip_auto_headers=("user-agent",),
                trust_env=self._upstream.host not in _LOOPBACK,
            )
        return self._client


class _Upload:
    """A request's body as it arrives, bounded in size and in silence. Iterated once."""

    def __init__(self, request: web.BaseRequest, idle_s: float) -> None:
        self._request = request
        self._idle_s = idle_s
        self.over = False
        self.stalled = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        while piece := await self._next():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                self.over = True
                raise web.RequestPayloadError("body over its bound")
            yield piece

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle_s):
                return await self._request.content.readany()
        except TimeoutError:
            self.stalled = True
            raise


def _passing(
    headers: Mapping[str, str], names: frozenset[str], prefixes: tuple[str, ...]
) -> CIMultiDict[str]:
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() in names or name.lower().startswith(prefixes)
    )
