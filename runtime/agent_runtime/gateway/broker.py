"""The broker: one unix socket and one dummy token for each session, and behind it all ways out.

What a sandbox can reach is what passes here, request by request: the model APIs of the vendors that
it was made with (`anthropic`, `openai`, `gemini`), where the real credential is added on this side,
and tunnels to the hosts of the session's profile (`tunnels`). Tokens are counted per session and in
the metric `agent_runtime_model_tokens_total{direction}`. Sockets are `serving`, names and tokens
`endpoints`, the passage itself `relay`, the figures `usage`, what is told of refusals `decisions`.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from aiohttp import web
from prometheus_client import Counter

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.decisions import Decisions
from agent_runtime.gateway.endpoints import Endpoints
from agent_runtime.gateway.gemini import Gemini
from agent_runtime.gateway.model_guard import ModelGuard, check_model
from agent_runtime.gateway.network import Network, PublicInternet
from agent_runtime.gateway.openai import OpenAI
from agent_runtime.gateway.relay import Patience, Relay
from agent_runtime.gateway.serving import SocketServer
from agent_runtime.gateway.tunnels import Bounds, Tunnels
from agent_runtime.gateway.usage import Meter, add
from agent_runtime.gateway.vendor import Call, Refused, Vendor
from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint
from agent_runtime.records import Usage

_TOKENS: Final = Counter("agent_runtime_model_tokens", "Tokens that models reported.", ["direction"])
_REQUESTS: Final = Counter(
    "agent_runtime_model_requests", "Answers given to agents, refusals too.", ["vendor", "status"]
)
_NO_OTHER_WAY: Final = "Other hosts are reached by CONNECT alone, as the first thing on a connection.\n"

_FINAL: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Asking again changes nothing, and agents do it for minutes where nobody tells them."""

OnUsage = Callable[[str, Usage], None]
"""Told the session and the usage of one answer, after it has passed. Must neither block nor raise."""


@dataclass(slots=True)
class _Lane:
    """One endpoint that is served, and whose it is."""

    name: str
    session_id: str
    endpoint: GatewayEndpoint
    egress: Egress
    decisions: Decisions
    tunnels: Tunnels
    server: SocketServer | None = None
    usage: Usage = field(default_factory=Usage)

    def belongs_to(self, session_id: str, egress: Egress) -> None:
        """From now on to this session, with these ways out."""
        if session_id != self.session_id:
            self.session_id = self.decisions.session_id = session_id
            self.usage = Usage()
        self.egress = egress
        self.tunnels.allow(egress)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop()
        await self.tunnels.close()


class Gateway:
    """Implements `ports.ModelGateway`. All methods belong to one event loop.

    Args:
        vendors: the model APIs that can be reached; of those that spell a path the same, the first.
        run_dir: a directory of this runtime alone that survives restarts.
        on_usage: told what each answer used.
        patience: how long silent peers are waited for.
        bounds: what each session may have of tunnels.
        network: how names are looked up and which addresses may be reached: the public internet's.
    """

    def __init__(
        self,
        vendors: Sequence[Vendor],
        run_dir: Path,
        on_usage: OnUsage | None = None,
        *,
        patience: Patience | None = None,
        bounds: Bounds | None = None,
        network: Network | None = None,
    ) -> None:
        if not vendors:
            raise ValueError("A gateway needs a vendor: refusals are worded as the first one's.")
        self._ways = [(vendor, Relay(vendor, patience or Patience())) for vendor in vendors]
        self._endpoints = Endpoints(run_dir)
        self._on_usage = on_usage
        self._bounds = bounds or Bounds()
        self._network = network or PublicInternet()
        self._lanes: dict[str, _Lane] = {}
        self._opening = asyncio.Lock()

    @classmethod
    def from_environment(
        cls, run_dir: Path, on_usage: OnUsage | None = None, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """All vendors that are known, with addresses and credentials as their own clients read them.

        `ANTHROPIC_API_KEY`, `_AUTH_TOKEN`, `_BASE_URL`; `OPENAI_API_KEY`, `_BASE_URL`;
        `GEMINI_API_KEY` or `GOOGLE_API_KEY`, `GOOGLE_GEMINI_BASE_URL`. A vendor without a key is refused.
        Raises ValueError for one that cannot be used; never quotes it.
        """
        vendors = [kind.from_environment(environ) for kind in (Anthropic, OpenAI, Gemini)]
        return cls(vendors, run_dir, on_usage)

    async def open(
        self, session_id: str, *, egress: Egress | None = None, lane: str | None = None
    ) -> GatewayEndpoint:
        """Serve the session. The endpoint is the same every time, also after a restart.

        An endpoint that was another session's is this one's from now on, and one that this session had
        under another name is closed. Raises `SandboxFault` where the socket cannot be made.
        """
        name, allowed = lane or session_id, egress or Egress()
        async with self._opening:
            if (open_lane := self._lanes.get(name)) is None:
                open_lane = await self._open(name, session_id, allowed)
            open_lane.belongs_to(session_id, allowed)
            others = self._take([other for other in self._of(session_id) if other is not open_lane])
        await _stop(others)
        return open_lane.endpoint

    async def close(self, session_id: str) -> None:
        """Stop serving the session and cut its requests. Its token stays what it was. Idempotent."""
        async with self._opening:
            lanes = self._take(self._of(session_id))
        await _stop(lanes)

    async def aclose(self) -> None:
        """Stop serving all sessions and let go of the vendors. Idempotent."""
        async with self._opening:
            lanes = self._take(list(self._lanes.values()))
        await _stop(lanes)
        for _, relay in self._ways:
            await relay.aclose()
        self._network.close()

    def usage(self, session_id: str) -> Usage:
        """What the session's answers used since it was opened here; fields never told are None."""
        for lane in self._of(session_id):
            return lane.usage
        return Usage()

    def _of(self, session_id: str) -> list[_Lane]:
        return [lane for lane in self._lanes.values() if lane.session_id == session_id]

    async def _open(self, name: str, session_id: str, egress: Egress) -> _Lane:
        endpoint, decisions = self._endpoints.endpoint(name), Decisions(session_id)
        tunnels = Tunnels(self._network, self._bounds, decisions, egress)
        lane = _Lane(name, session_id, endpoint, egress, decisions, tunnels)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await self._handle(request, lane)

        lane.server = SocketServer(endpoint.socket, handle, tunnels.accept)
        await tunnels.open()
        try:
            await lane.server.start()
        except BaseException:
            await tunnels.close()
            raise
        self._lanes[name] = lane
        return lane

    def _take(self, lanes: list[_Lane]) -> list[_Lane]:
        for lane in lanes:
            del self._lanes[lane.name]
        return lanes

    async def _handle(self, request: web.BaseRequest, lane: _Lane) -> web.StreamResponse:
        if not request.raw_path.startswith("/"):
            lane.decisions.tunnel("not_a_tunnel", request.raw_path)
            return _last(web.Response(status=403, text=_NO_OTHER_WAY))
        vendor, relay = self._way(request.raw_path)
        try:
            response = await self._admitted(request, lane, vendor, relay)
        except Refused as refused:
            lane.decisions.refusal(vendor.name, refused.status, refused.message)
            body = vendor.error(refused.status, refused.message)
            advice = {"x-should-retry": "false"} if refused.status in _FINAL else {}
            response = _last(web.json_response(body, status=refused.status, headers=advice))
        _REQUESTS.labels(vendor.name, str(response.status)).inc()
        return response

    def _way(self, target: str) -> tuple[Vendor, Relay]:
        for vendor, relay in self._ways:
            if vendor.owns(target):
                return vendor, relay
        return self._ways[0]

    async def _admitted(
        self, request: web.BaseRequest, lane: _Lane, vendor: Vendor, relay: Relay
    ) -> web.StreamResponse:
        """Check one request and pass it on. Raises `Refused`."""
        if not _same(vendor.shown(request.headers, request.raw_path), lane.endpoint.token):
            raise Refused(401, "The token is not the one of this session.")
        call = vendor.call(request.method, request.raw_path)
        if call is None:
            raise Refused(403, "This is none of the requests that may pass to a model.")
        if not vendor.account.credentials:
            raise Refused(401, "The runtime has no key for this model's API.")
        meter, guard = Meter(vendor), _guard(lane.egress, call)
        try:
            return await relay.forward(request, call, meter, guard)
        finally:
            self._count(lane, meter.usage())

    def _count(self, lane: _Lane, used: Usage | None) -> None:
        if used is None:
            return
        for direction, figure in (
            ("input", used.input_tokens),
            ("output", used.output_tokens),
            ("cache_read", used.cache_read_tokens),
            ("cache_write", used.cache_write_tokens),
        ):
            _TOKENS.labels(direction).inc(figure or 0)
        lane.usage = add(lane.usage, used)
        if self._on_usage is not None:
            self._on_usage(lane.session_id, used)


async def _stop(lanes: Sequence[_Lane]) -> None:
    async with asyncio.TaskGroup() as stopping:
        for lane in lanes:
            stopping.create_task(lane.stop())


def _guard(egress: Egress, call: Call) -> ModelGuard | None:
    """Who looks for the model in the body, where that is needed. Raises `Refused`."""
    if egress.models is None:
        return None
    if call.model is not None:
        check_model(egress.models, call.model)
        return None
    return ModelGuard(egress.models)


def _last(response: web.Response) -> web.StreamResponse:
    """The connection is closed after it."""
    response.force_close()
    return response


def _same(shown: str, token: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode())
