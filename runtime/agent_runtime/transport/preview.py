"""preview: what listens at a port inside a sandbox, shown to a browser.

A grant (`grants`) is an address; whoever has it sees what is there, over HTTP and WebSocket, streamed
both ways. It is shown at `/preview/{label}/` of our own origin, without any of our origin's rights, or
at a host of its own, `{label}.` before the host that the configuration names. Which headers pass is
said in `preview_policy`; how what is inside is asked, in `exchange`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from agent_runtime.errors import Conflict, InvalidRequest, NotFound, RuntimeFault, SandboxFault
from agent_runtime.manager import SessionManager
from agent_runtime.passages import Passage
from agent_runtime.ports import Principal
from agent_runtime.tasks import Tasks
from agent_runtime.transport import grants
from agent_runtime.transport.exchange import SWITCHED, Exchange, Head, bad_answer
from agent_runtime.transport.grants import Grant, Grants
from agent_runtime.transport.preview_policy import Headers, Place, inward, outward
from agent_runtime.transport.tunnel import accepts, tunnel

FOLDER: Final = "/preview"
_PATH: Final = re.compile(rf"{FOLDER}/({grants.LABEL})(?=[/?]|$)(.*)", re.DOTALL)
_ANSWER_S: Final = 120.0
"""For an answer to begin, from the last that was sent: a development server compiles first."""
_TAKE_S: Final = 300.0
"""For a client to take a piece of an answer."""
_LOOK_S: Final = 1.0
"""How often a client is looked for while an answer is awaited."""
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
_BODY_MOST: Final = 4 * 1024**3
_PREFLIGHT_S: Final = "600"


class Previews:
    """The addresses of one server, and what is shown there.

    Args:
        prefix: where the runtime is mounted.
        origin: `https://*.preview.example.com`, where each address is to be an origin; None: at our own.
    """

    def __init__(self, manager: SessionManager, tasks: Tasks, *, prefix: str, origin: str | None) -> None:
        self._manager = manager
        self._tasks = tasks
        self._prefix = prefix
        self._origin = origin
        self._host = (urlsplit(origin).hostname or "").removeprefix("*") if origin else None
        self._grants = Grants()

    async def open(self, principal: Principal, session_id: str, port: int) -> tuple[str, Grant]:
        """An address for a port, and what it stands for. Raises `NotFound`, `Conflict`."""
        sandbox_id = await self._manager.sandbox_of_port(principal, session_id, port)
        grant = self._grants.give(principal, session_id, sandbox_id, port)
        if self._origin is not None:
            return f"{self._origin.replace('*', grant.label, 1)}/", grant
        return f"{self._prefix}{FOLDER}/{grant.label}/", grant

    def is_origin(self, origin: str) -> bool:
        """Whether a page of this origin may be one of those that are shown."""
        if origin == "null":
            return True
        return self._host is not None and _host_of(origin).endswith(self._host)

    def label_of(self, request: web.Request) -> str | None:
        """The label in the host that a request is for; None where that is ours. Told by name only."""
        host = _host_of(f"//{request.headers.get('Host', '')}")
        if self._host is None or not host.endswith(self._host):
            return None
        return host.removesuffix(self._host)

    def is_shown(self, request: web.Request) -> bool:
        """Whether a request is for something that is shown."""
        return request.path.startswith(f"{self._prefix}{FOLDER}/") or self.label_of(request) is not None

    async def at_own_host(self, request: web.Request) -> web.StreamResponse:
        """Show what a host's own label stands for. Raises `RuntimeFault`."""
        return await self._show(request, self.label_of(request) or "", request.raw_path, own_origin=True)

    async def at_our_host(self, request: web.Request) -> web.StreamResponse:
        """Show `/preview/{label}/...`. Raises `RuntimeFault`."""
        found = _PATH.fullmatch(request.raw_path.removeprefix(self._prefix))
        if found is None or self._origin is not None:
            raise grants.not_found()
        label, target = found[1], found[2]
        if not target.startswith("/"):
            self._grants.find(label)
            location = f"{self._prefix}{FOLDER}/{label}/{target}"
            return web.Response(status=308, headers={"Location": location})
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            self._grants.find(label)
            return web.Response(status=204, headers=_preflight(request))
        return await self._show(request, label, target, own_origin=False)

    async def _show(
        self, request: web.Request, label: str, target: str, *, own_origin: bool
    ) -> web.StreamResponse:
        grant = self._grants.find(label)
        _check(request, target)
        base = "" if own_origin else f"{self._prefix}{FOLDER}/{label}"
        place = Place(grant.port, base, own_origin, label)
        passage = await self._passage(grant)
        try:
            return await _Visit(request, place, passage, self._tasks).show(target)
        finally:
            await passage.close()

    async def _passage(self, grant: Grant) -> Passage:
        try:
            return await self._manager.open_port(
                grant.principal, grant.session_id, grant.port, grant.sandbox_id
            )
        except (NotFound, Conflict) as fault:
            self._grants.forget(grant)
            raise grants.not_found() from fault


class _Visit:
    """One request of a browser, passed on."""

    def __init__(self, request: web.Request, place: Place, passage: Passage, tasks: Tasks) -> None:
        self._request = request
        self._place = place
        self._passage = passage
        self._exchange = Exchange(passage)
        self._tasks = tasks
        self._patience: asyncio.Timeout | None = None

    async def show(self, target: str) -> web.StreamResponse:
        """Ask, and answer. Raises `RuntimeFault` while nothing was answered yet."""
        websocket = _is_websocket(self._request)
        watching = self._tasks.spawn(self._watch())
        sending = None
        try:
            try:
                async with asyncio.timeout(_ANSWER_S) as self._patience:
                    await self._exchange.ask(self._request.method, target, self._headers(websocket=websocket))
                    if self._request.body_exists:
                        sending = self._tasks.spawn(self._send())
                    else:
                        await self._exchange.end()
                    head = await self._exchange.head()
            except TimeoutError as error:
                raise SandboxFault("No answer came in time.", code="preview_timeout") from error
            finally:
                self._patience = None
            if head.status == SWITCHED:
                return await self._switch(head, asked=websocket)
            return await self._answer(head)
        finally:
            watching.cancel()
            if sending is not None:
                sending.cancel()

    def _headers(self, *, websocket: bool) -> Headers:
        headers = inward(self._request.headers.items(), self._place)
        if websocket:
            return [*headers, ("connection", "Upgrade"), ("upgrade", "websocket")]
        headers.append(("connection", "close"))
        if not self._request.body_exists:
            return headers
        # The server takes a body's compression away while it reads.
        headers = [(name, value) for name, value in headers if name != "content-encoding"]
        length = self._request.content_length
        if length is not None and "Content-Encoding" not in self._request.headers:
            return [*headers, ("content-length", str(length))]
        return [*headers, ("transfer-encoding", "chunked")]

    async def _send(self) -> None:
        """Send the body. Where that fails, the answer tells; where the client breaks off, there is none."""
        sent = 0
        try:
            async for piece in self._request.content.iter_any():
                sent += len(piece)
                if sent > _BODY_MOST:
                    break
                await self._exchange.send(piece)
                self._be_patient()
            else:
                await self._exchange.end()
                return
        except RuntimeFault:
            return
        except (HttpProcessingError, web.RequestPayloadError, ConnectionError):
            pass
        await self._passage.close()

    def _be_patient(self) -> None:
        """Something moved: the answer has all its time again, unless it is there or that is over."""
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + _ANSWER_S)

    async def _watch(self) -> None:
        """Let go of what is inside when the client has gone."""
        while True:  # nothing tells a handler
            await asyncio.sleep(_LOOK_S)
            if self._request.transport is None or self._request.transport.is_closing():
                return await self._passage.close()

    async def _answer(self, head: Head) -> web.StreamResponse:
        response = self._response(head)
        await response.prepare(self._request)
        try:
            while data := await self._exchange.body():
                async with asyncio.timeout(_TAKE_S):
                    await response.write(data)
            await response.write_eof()
        except (RuntimeFault, ConnectionError, TimeoutError):
            # An answer that was cut short must not look whole.
            if self._request.transport is not None:
                self._request.transport.abort()
        return response

    async def _switch(self, head: Head, *, asked: bool) -> web.StreamResponse:
        key = self._request.headers.get("Sec-WebSocket-Key", "")
        answer = next((value for name, value in head.headers if name == "sec-websocket-accept"), None)
        if not asked or not accepts(key, answer):
            raise bad_answer()
        response = self._response(head)
        response.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
        await response.prepare(self._request)
        await tunnel(self._request, response, self._passage, self._exchange.rest(), self._tasks)
        return response

    def _response(self, head: Head) -> web.StreamResponse:
        headers = CIMultiDict(outward(head.headers, self._place))
        return web.StreamResponse(status=head.status, headers=headers)


def _check(request: web.Request, target: str) -> None:
    """Raise `InvalidRequest` for what is not passed on."""
    if request.headers.get("Service-Worker", "").lower() == "script":
        raise InvalidRequest("No service worker is served here.", code="service_worker_refused")
    if not target.startswith("/") or not _METHOD.fullmatch(request.method) or request.method == "CONNECT":
        raise InvalidRequest("The request cannot be passed on.", code="malformed_request")
    length = request.content_length
    if length is not None and length > _BODY_MOST:
        raise InvalidRequest(f"The body is larger than {_BODY_MOST} bytes.", code="body_too_large")


def _is_websocket(request: web.Request) -> bool:
    upgrade, connection = request.headers.get("Upgrade", ""), request.headers.get("Connection", "")
    return request.method == "GET" and upgrade.lower() == "websocket" and "upgrade" in connection.lower()


def _preflight(request: web.Request) -> dict[str, str]:
    asked = request.headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": _PREFLIGHT_S,
    }


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
