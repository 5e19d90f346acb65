"""OpenAI's APIs, as the gateway lets them pass. Next door are `anthropic` and `gemini`.

    POST /v1/chat/completions    whole or as Server-Sent Events
    POST /v1/responses           whole or as Server-Sent Events; nothing that was stored is read back

Clients show the dummy as a bearer, and name the model in the body. A stream of chat completions
tells its usage only where the client asked for it (`stream_options.include_usage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Self

from agent_runtime.gateway.vendor import (
    PLAIN_REQUEST_HEADERS,
    PLAIN_RESPONSE_HEADERS,
    Account,
    Call,
    Figures,
    Passing,
    bearer,
    secret,
    tokens,
    upstream,
    with_cached,
)

DEFAULT_UPSTREAM: Final = "https://api.openai.com/v1"

_TARGETS: Final = frozenset({"/v1/chat/completions", "/v1/responses"})
_PREFIXES: Final = ("/v1/chat/", "/v1/responses", "/v1/models")
_CODES: Final = {401: "invalid_api_key", 403: "permission_denied", 413: "request_too_large"}


class OpenAI:
    """Implements `vendor.Vendor`.

    Args:
        upstream_url: the API's base address, with its version, as OpenAI's own clients take it.
        api_key: sent as `Authorization: Bearer`.

    Raises:
        ValueError: for an address or a credential that cannot be used; never quotes it.
    """

    name = "openai"
    usage_mark = b'"usage"'
    request_headers = Passing(
        # Which organisation or project pays is the account's business: those headers do not pass.
        PLAIN_REQUEST_HEADERS
        | {"openai-beta", "originator", "session_id", "session-id", "conversation_id", "x-client-request-id"},
        ("x-stainless-", "x-codex-"),
    )
    response_headers = Passing(
        PLAIN_RESPONSE_HEADERS | {"x-request-id", "retry-after-ms", "x-should-retry", "openai-processing-ms"},
        ("x-ratelimit-",),
    )

    def __init__(self, upstream_url: str = DEFAULT_UPSTREAM, *, api_key: str | None = None) -> None:
        key = secret(api_key)
        self.account = Account(upstream(upstream_url), {"authorization": f"Bearer {key}"} if key else {})

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Take address and credential from `OPENAI_BASE_URL` and `OPENAI_API_KEY`."""
        return cls(environ.get("OPENAI_BASE_URL") or DEFAULT_UPSTREAM, api_key=environ.get("OPENAI_API_KEY"))

    def owns(self, target: str) -> bool:
        """See `Vendor`."""
        return target.startswith(_PREFIXES)

    def call(self, method: str, target: str) -> Call | None:
        """The version is part of the upstream's address."""
        return Call(target.removeprefix("/v1")) if method == "POST" and target in _TARGETS else None

    def shown(self, headers: Mapping[str, str], target: str) -> str:  # noqa: ARG002 - never in the address
        """See `Vendor`."""
        return bearer(headers)

    def figures(self, told: Mapping[str, Any]) -> Figures:
        """Chat completions tell at the top level; events of a response tell within `response`."""
        response = told.get("response")
        usage = (response if isinstance(response, dict) else told).get("usage")
        if not isinstance(usage, dict):
            return {}
        total = _either(usage, "prompt_tokens", "input_tokens")
        output = _either(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        return with_cached(total, tokens(details, "cached_tokens"), output)

    def error(self, status: int, message: str) -> dict[str, Any]:
        """Clients ask again on a `server_error`, whatever its status."""
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}


def _either(usage: Mapping[str, Any], chat: str, responses: str) -> int | None:
    return tokens(usage, chat if chat in usage else responses)
