"""The gateway for the Anthropic Messages API: one unix socket and one dummy token for each session.

The agent inside a sandbox is given the socket and the token and nothing else; what passes is two
methods of the API, checked request by request, with the real credential added on this side. Tokens
are counted per session and in the metric `agent_runtime_model_tokens_total{direction}`. Sockets
are `serving`, names and tokens `endpoints`, the passage itself `relay`, the figures `usage`.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from aiohttp import hdrs, web
from prometheus_client import Counter
from yarl import URL

from agent_runtime.gateway.endpoints import Endpoints
from agent_runtime.gateway.relay import Patience, Relay, refusal
from agent_runtime.gateway.serving import SocketServer
from agent_runtime.gateway.usage import Meter, add
from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint
from agent_runtime.records import Usage

DEFAULT_UPSTREAM: Final = "https://api.anthropic.com"

_TARGET: Final = re.compile(r"/v1/messages(?:/count_tokens)?(\?[A-Za-z0-9_.=&%-]{0,256})?")
_ONLY: Final = "Only POST /v1/messages and POST /v1/messages/count_tokens may pass."
_SECRET: Final = re.compile(r"[\x21-\x7e]+")
_TOKENS: Final = Counter("agent_runtime_model_tokens", "Tokens that models reported.", ["direction"])
_REQUESTS: Final = Counter("agent_runtime_model_requests", "Answers given to agents.", ["status"])

OnUsage = Callable[[str, Usage], None]
"""Told the session and the usage of one answer, after it has passed. Must neither block nor raise."""


@dataclass(slots=True)
class _Lane:
    """One session's open way."""

    endpoint: GatewayEndpoint
    server: SocketServer
    usage: Usage = field(default_factory=Usage)
    egress: Egress = field(default_factory=Egress)


class AnthropicGateway:
    """Implements `ports.ModelGateway`. All methods belong to one event loop.

    Args:
        upstream_url: the API's base address, without `/v1`.
        api_key: sent as `x-api-key`.
        auth_token: sent as `Authorization: Bearer`; where both are given, this one alone.
        run_dir: a directory of this runtime alone that survives restarts.
        on_usage: told what each answer used.
        patience: how long silent peers are waited for.

    Raises:
        ValueError: for an address or a credential that cannot be used; never quotes a credential.
    """

    def __init__(
        self,
        upstream_url: str,
        api_key: str | None,
        auth_token: str | None,
        run_dir: Path,
        on_usage: OnUsage | None = None,
        *,
        patience: Patience | None = None,
    ) -> None:
        self._credentials = _credentials(api_key, auth_token)
        self._relay = Relay(_upstream(upstream_url), self._credentials, patience or Patience())
        self._endpoints = Endpoints(run_dir)
        self._on_usage = on_usage
        self._lanes: dict[str, _Lane] = {}
        self._opening = asyncio.Lock()

    @classmethod
    def from_environment(
        cls, run_dir: Path, on_usage: OnUsage | None = None, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Take address and credential from `ANTHROPIC_BASE_URL`, `_API_KEY` and `_AUTH_TOKEN`."""
        return cls(
            environ.get("ANTHROPIC_BASE_URL") or DEFAULT_UPSTREAM,
            environ.get("ANTHROPIC_API_KEY"),
            environ.get("ANTHROPIC_AUTH_TOKEN"),
            run_dir,
            on_usage,
        )

    async def open(
        self, session_id: str, *, egress: Egress | None = None, lane: str | None = None
    ) -> GatewayEndpoint:
        """Serve the session. The endpoint is the same every time, also after a restart.

        Raises `SandboxFault` where the socket cannot be made.
        """
        async with self._opening:
            if (open_lane := self._lanes.get(session_id)) is None:
                open_lane = await self._open(session_id, lane or session_id)
            open_lane.egress = egress or Egress()
            return open_lane.endpoint

    async def close(self, session_id: str) -> None:
        """Stop serving the session and cut its requests. Its token stays what it was. Idempotent."""
        async with self._opening:
            lane = self._lanes.pop(session_id, None)
        if lane is not None:
            await lane.server.stop()

    async def aclose(self) -> None:
        """Stop serving all sessions and let go of the upstream. Idempotent."""
        async with asyncio.TaskGroup() as closing:
            for session_id in self._lanes:
                closing.create_task(self.close(session_id))
        await self._relay.aclose()

    def usage(self, session_id: str) -> Usage:
        """What the session's answers used since it was opened here; fields never told are None."""
        lane = self._lanes.get(session_id)
        return lane.usage if lane else Usage()

    async def _open(self, session_id: str, name: str) -> _Lane:
        endpoint = self._endpoints.endpoint(name)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            response = await self._handle(request, session_id, endpoint.token)
            _REQUESTS.labels(str(response.status)).inc()
            return response

        lane = _Lane(endpoint, SocketServer(endpoint.socket, handle))
        await lane.server.start()
        self._lanes[session_id] = lane
        return lane

    async def _handle(self, request: web.BaseRequest, session_id: str, token: str) -> web.StreamResponse:
        if not _shows(request, token):
            return refusal(401, "authentication_error", "The token is not the one of this session.")
        # The raw target is compared, so that no encoding, dot or doubled slash can mean another path.
        if _TARGET.fullmatch(request.raw_path) is None or request.method != hdrs.METH_POST:
            return refusal(403, "permission_error", _ONLY)
        if not self._credentials:
            return refusal(401, "authentication_error", "The runtime has no key for the model's API.")
        meter = Meter()
        try:
            return await self._relay.forward(request, request.raw_path, meter)
        finally:
            self._count(session_id, meter.usage())

    def _count(self, session_id: str, used: Usage | None) -> None:
        if used is None:
            return
        for direction, figure in (
            ("input", used.input_tokens),
            ("output", used.output_tokens),
            ("cache_read", used.cache_read_tokens),
            ("cache_write", used.cache_write_tokens),
        ):
            _TOKENS.labels(direction).inc(figure or 0)
        if (lane := self._lanes.get(session_id)) is not None:
            lane.usage = add(lane.usage, used)
        if self._on_usage is not None:
            self._on_usage(session_id, used)


def _shows(request: web.BaseRequest, token: str) -> bool:
    """Whether the request carries the token, as `x-api-key` or as a bearer."""
    bearer = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
    shown = request.headers.get("x-api-key") or bearer
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode())


def _upstream(address: str) -> URL:
    problem = "The model's base URL must be http(s)://host[:port][/path], without query or credentials."
    try:
        url = URL(address.strip())
    except ValueError as error:
        raise ValueError(problem) from error
    if url.scheme not in {"http", "https"} or not url.host or url.user or url.password or url.query_string:
        raise ValueError(problem)
    return url.with_fragment(None)


def _credentials(api_key: str | None, auth_token: str | None) -> dict[str, str]:
    key, token = (api_key or "").strip(), (auth_token or "").strip()
    for secret in (key, token):
        if secret and not _SECRET.fullmatch(secret):
            raise ValueError("The model's key holds characters that no header can carry.")
    if token:
        return {"authorization": f"Bearer {token}"}
    return {"x-api-key": key} if key else {}
