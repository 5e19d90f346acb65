"""Gemini's API, as the gateway lets it pass. Next door are `anthropic` and `openai`.

    POST /v1beta/models/{model}:generateContent
    POST /v1beta/models/{model}:streamGenerateContent    as Server-Sent Events with `?alt=sse`
    POST /v1beta/models/{model}:countTokens

Clients show the dummy as `x-goog-api-key` or in the address (`?key=`), so of the query nothing but
`alt` passes. The model is named in the address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import parse_qs

from agent_runtime.gateway.vendor import (
    PLAIN_REQUEST_HEADERS,
    PLAIN_RESPONSE_HEADERS,
    Account,
    Call,
    Figures,
    Passing,
    secret,
    tokens,
    upstream,
    with_cached,
)

DEFAULT_UPSTREAM: Final = "https://generativelanguage.googleapis.com"

_TARGET: Final = re.compile(
    r"(?P<path>/v1beta/models/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]{0,127})"
    r":(?:generateContent|streamGenerateContent|countTokens))(?:\?(?P<query>[A-Za-z0-9_.=&%$-]{0,512}))?"
)
_FORMS: Final = frozenset({"sse", "json"})
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    502: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Gemini:
    """Implements `vendor.Vendor`.

    Args:
        upstream_url: the API's base address, without `/v1beta`.
        api_key: sent as `x-goog-api-key`.

    Raises:
        ValueError: for an address or a credential that cannot be used; never quotes it.
    """

    name = "gemini"
    usage_mark = b'"usageMetadata"'
    request_headers = Passing(PLAIN_REQUEST_HEADERS | {"x-goog-api-client"})
    response_headers = Passing(PLAIN_RESPONSE_HEADERS)

    def __init__(self, upstream_url: str = DEFAULT_UPSTREAM, *, api_key: str | None = None) -> None:
        key = secret(api_key)
        self.account = Account(upstream(upstream_url), {"x-goog-api-key": key} if key else {})

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Address from `GOOGLE_GEMINI_BASE_URL`; credential from `GEMINI_API_KEY` or `GOOGLE_API_KEY`."""
        return cls(
            environ.get("GOOGLE_GEMINI_BASE_URL") or DEFAULT_UPSTREAM,
            api_key=environ.get("GEMINI_API_KEY") or environ.get("GOOGLE_API_KEY"),
        )

    def owns(self, target: str) -> bool:
        """See `Vendor`."""
        return target.startswith("/v1beta/")

    def call(self, method: str, target: str) -> Call | None:
        """See `Vendor`."""
        found = _TARGET.fullmatch(target)
        if found is None or method != "POST":
            return None
        form = _query(found["query"] or "").get("alt")
        return Call(found["path"] + (f"?alt={form}" if form in _FORMS else ""), found["model"])

    def shown(self, headers: Mapping[str, str], target: str) -> str:
        """See `Vendor`."""
        return headers.get("x-goog-api-key") or _query(target.partition("?")[2]).get("key", "")

    def figures(self, told: Mapping[str, Any]) -> Figures:
        """Each piece of a stream tells running totals. Thoughts are output, what tools brought is input."""
        usage = told.get("usageMetadata")
        total, output = tokens(usage, "promptTokenCount"), tokens(usage, "candidatesTokenCount")
        if (brought := tokens(usage, "toolUsePromptTokenCount")) is not None:
            total = (total or 0) + brought
        if (thought := tokens(usage, "thoughtsTokenCount")) is not None:
            output = (output or 0) + thought
        return with_cached(total, tokens(usage, "cachedContentTokenCount"), output)

    def error(self, status: int, message: str) -> dict[str, Any]:
        """See `Vendor`."""
        return {"error": {"code": status, "message": message, "status": _STATUSES.get(status, "INTERNAL")}}


def _query(query: str) -> dict[str, str]:
    """Its parameters, names and values decoded; of one that is repeated the first."""
    return {name: values[0] for name, values in parse_qs(query, errors="replace").items()}
