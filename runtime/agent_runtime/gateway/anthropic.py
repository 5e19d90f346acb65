"""The Anthropic Messages API, as the gateway lets it pass. Next door are `openai` and `gemini`.

    POST /v1/messages                  whole or as Server-Sent Events
    POST /v1/messages/count_tokens

Clients show the dummy as `x-api-key` or as a bearer. The model is named in the body.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
)

DEFAULT_UPSTREAM: Final = "https://api.anthropic.com"

_TARGET: Final = re.compile(r"/v1/messages(?:/count_tokens)?(\?[A-Za-z0-9_.=&%-]{0,256})?")
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    413: "request_too_large",
    504: "timeout_error",
}
_FIGURES: Final = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
}


class Anthropic:
    """Implements `vendor.Vendor`.

    Args:
        upstream_url: the API's base address, without `/v1`.
        api_key: sent as `x-api-key`.
        auth_token: sent as `Authorization: Bearer`; where both are given, this one alone.

    Raises:
        ValueError: for an address or a credential that cannot be used; never quotes it.
    """

    name = "anthropic"
    usage_mark = b'"usage"'
    request_headers = Passing(
        PLAIN_REQUEST_HEADERS | {"x-app", "x-client-request-id"}, ("anthropic-", "x-stainless-", "x-claude-")
    )
    response_headers = Passing(
        PLAIN_RESPONSE_HEADERS | {"request-id", "retry-after-ms", "x-should-retry"}, ("anthropic-ratelimit-",)
    )

    def __init__(
        self,
        upstream_url: str = DEFAULT_UPSTREAM,
        *,
        api_key: str | None = None,
        auth_token: str | None = None,
    ) -> None:
        key, token = secret(api_key), secret(auth_token)
        credentials = {"x-api-key": key} if key else {}
        if token:
            credentials = {"authorization": f"Bearer {token}"}
        self.account = Account(upstream(upstream_url), credentials)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Take address and credential from `ANTHROPIC_BASE_URL`, `_API_KEY` and `_AUTH_TOKEN`."""
        return cls(
            environ.get("ANTHROPIC_BASE_URL") or DEFAULT_UPSTREAM,
            api_key=environ.get("ANTHROPIC_API_KEY"),
            auth_token=environ.get("ANTHROPIC_AUTH_TOKEN"),
        )

    def owns(self, target: str) -> bool:
        """See `Vendor`."""
        return target.startswith("/v1/messages")

    def call(self, method: str, target: str) -> Call | None:
        """See `Vendor`."""
        return Call(target) if method == "POST" and _TARGET.fullmatch(target) else None

    def shown(self, headers: Mapping[str, str], target: str) -> str:  # noqa: ARG002 - never in the address
        """See `Vendor`."""
        return headers.get("x-api-key") or bearer(headers)

    def figures(self, told: Mapping[str, Any]) -> Figures:
        """A stream tells in `message_start` and, as running totals, in `message_delta`."""
        message = told.get("message") if told.get("type") == "message_start" else told
        usage = message.get("usage") if isinstance(message, dict) else None
        seen = {ours: tokens(usage, theirs) for theirs, ours in _FIGURES.items()}
        return {name: figure for name, figure in seen.items() if figure is not None}

    def error(self, status: int, message: str) -> dict[str, Any]:
        """See `Vendor`."""
        return {"type": "error", "error": {"type": _KINDS.get(status, "api_error"), "message": message}}
