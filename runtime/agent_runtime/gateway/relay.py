"""Passes one admitted request to its vendor and the answer back, piece by piece as it comes.

Headers pass by allow-list in both directions; the client's credentials end here and the real one
is added. Redirects are not followed. Nothing is held: the body is bounded while it streams out, a
meter looks at the answer while it streams in. Failures before the answer begins are `Refused`, for
the broker to word as the vendor would; a failure after that cuts the connection, as the vendor's
own failure would. Who may pass at all is decided in `broker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from agent_runtime.gateway.model_guard import ModelGuard
from agent_runtime.gateway.usage import Meter
from agent_runtime.gateway.vendor import Call, Refused, Vendor

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_HELD_BYTES: Final = 256 * 1024
"""So much of a body is looked at for its model before the vendor hears of it."""
_REDIRECTS: Final = range(300, 400)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

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


class Relay:
    """The way to one vendor. Its connections are shared by all sessions, its cookies by none."""

    def __init__(self, vendor: Vendor, patience: Patience) -> None:
        self._vendor = vendor
        self._patience = patience
        self._client: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close all connections to the vendor. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def forward(
        self, request: web.BaseRequest, call: Call, meter: Meter, guard: ModelGuard | None
    ) -> web.StreamResponse:
        """Send the request as `call` says and pass the answer on.

        `guard` looks at the body on its way. `meter` sees the bytes of a successful answer, also where
        this is cancelled half way. Raises `Refused`, as long as no answer has begun.
        """
        upload = _Upload(request, self._patience.upload_idle_s, guard)
        await upload.begin()
        url = URL(f"{str(self._vendor.account.upstream).rstrip('/')}{call.target}", encoded=True)
        headers = self._outgoing(request)
        try:
            async with self._connected().post(
                url, data=upload, headers=headers, allow_redirects=False
            ) as answer:
                return await self._answer(request, answer, meter)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise upload.refused or _failure(error) from error

    async def _answer(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, meter: Meter
    ) -> web.StreamResponse:
        if answer.status in _REDIRECTS:
            log.warning("upstream_redirects", vendor=self._vendor.name, status=answer.status)
            raise Refused(502, "The model's API redirects, which is not followed.")
        if answer.status == HTTPStatus.UNAUTHORIZED:  # some quote the key, or the ends of it
            log.warning("upstream_refuses_key", vendor=self._vendor.name)
            raise Refused(401, "The model's API refuses the runtime's key.")
        if answer.status == HTTPStatus.OK:
            meter.begin(answer.content_type)
        headers = self._vendor.response_headers.of(answer.headers)
        if answer.status == HTTPStatus.FORBIDDEN:  # it is about our credential, and will not get better
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
            log.info("answer_cut", vendor=self._vendor.name, cause=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        return response

    def _outgoing(self, request: web.BaseRequest) -> CIMultiDict[str]:
        headers = self._vendor.request_headers.of(request.headers)
        headers["accept-encoding"] = "identity"  # usage is read from the bytes that pass
        headers.update(self._vendor.account.credentials)
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
                trust_env=self._vendor.account.upstream.host not in _LOOPBACK,
            )
        return self._client


class _Upload:
    """A request's body as it arrives, bounded in size and in silence, and guarded. Iterated once.

    The vendor never has the whole of a body that the guard has not seen to its end: the last piece
    waits for that, and a body that is refused half way is cut off.
    """

    def __init__(self, request: web.BaseRequest, idle_s: float, guard: ModelGuard | None) -> None:
        self._request = request
        self._idle_s = idle_s
        self._guard = guard
        self._held = b""
        self._size = 0
        self.refused: Refused | None = None

    async def begin(self) -> None:
        """Look as far ahead as it takes to know most models. Raises `Refused`."""
        if (self._request.content_length or 0) > MAX_BODY_BYTES:
            raise _too_large()
        if self._guard is None:
            return
        if not _is_plain_json(self._request):
            raise Refused(400, "The request's body is not plain JSON, so that its model cannot be told.")
        while not self._guard.known and len(self._held) < _HELD_BYTES:
            if not (piece := await self._next()):
                self._guard.finish()
                return
            self._held += piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while piece := await self._next():
                if self._guard is None:
                    yield piece
                    continue
                if self._held:
                    yield self._held
                self._held = piece
            if self._guard is not None:
                self._guard.finish()
                yield self._held
        except Refused as refused:
            self.refused = refused
            raise web.RequestPayloadError("refused on its way") from refused

    async def _next(self) -> bytes:
        """The next piece, which has passed the guard; empty at the end. Raises `Refused`."""
        try:
            async with asyncio.timeout(self._idle_s):
                piece = await self._request.content.readany()
        except TimeoutError as error:
            raise Refused(408, "The request's body did not arrive in time.") from error
        self._size += len(piece)
        if self._size > MAX_BODY_BYTES:
            raise _too_large()
        if self._guard is not None:
            self._guard.feed(piece)
        return piece


def _is_plain_json(request: web.BaseRequest) -> bool:
    """Whether its headers let a vendor read the body in no other way than the guard does."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    charset = (request.charset or "utf-8").lower()
    return (request.content_type, encoding, charset) == ("application/json", "identity", "utf-8")


def _failure(error: Exception) -> Refused:
    log.warning("upstream_failed", cause=type(error).__name__)
    if isinstance(error, TimeoutError):
        return Refused(504, "The model's API did not answer in time.")
    return Refused(502, "The model's API cannot be reached or broke off.")


def _too_large() -> Refused:
    return Refused(413, f"The request is larger than {MAX_BODY_BYTES} bytes.")
