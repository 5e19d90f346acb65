"""What a vendor's protocol says of itself: which requests it has, who asks, who answers, what it cost.

One file per vendor implements `Vendor`; the broker admits by it, the relay passes by it, the meter
counts by it. Nothing here knows a session, a socket or another vendor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from multidict import CIMultiDict
from yarl import URL

_SECRET: Final = re.compile(r"[\x21-\x7e]+")
_MAX_TOKENS: Final = 10**9

Figures = dict[str, int]
"""Fields of `records.Usage` and their tokens."""


class Refused(Exception):
    """A request does not pass. The message is for the agent: no secret, no path, no address."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Call:
    """A request that the protocol has.

    `target` is appended to the upstream's address: a path and a query that hold no credential.
    `model` is what the address names; None: the body does, at its top level.
    """

    target: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Passing:
    """An allow-list of headers: names, and beginnings of names, in small letters."""

    names: frozenset[str]
    prefixes: tuple[str, ...] = ()

    def of(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        """Those that pass."""
        return CIMultiDict(
            (name, value)
            for name, value in headers.items()
            if name.lower() in self.names or name.lower().startswith(self.prefixes)
        )


PLAIN_REQUEST_HEADERS: Final = frozenset(
    {"accept", "content-type", "content-encoding", "content-length", "user-agent"}
)
PLAIN_RESPONSE_HEADERS: Final = frozenset({"cache-control", "content-type", "retry-after"})


@dataclass(frozen=True, slots=True)
class Account:
    """Where a vendor is reached and as whom; `credentials` are headers, empty where there is no key."""

    upstream: URL
    credentials: Mapping[str, str] = field(repr=False)


class Vendor(Protocol):
    """One vendor's protocol. Pure: it looks at text and says what it means."""

    @property
    def name(self) -> str:
        """For the log and the metrics: `anthropic`, `openai`, `gemini`."""
        ...

    @property
    def account(self) -> Account:
        """The real one, on this side."""
        ...

    @property
    def request_headers(self) -> Passing:
        """What of the agent's headers goes to the vendor; never a credential."""
        ...

    @property
    def response_headers(self) -> Passing:
        """What of the vendor's headers comes back; nothing that names the account."""
        ...

    @property
    def usage_mark(self) -> bytes:
        """Bytes that every event of a stream has that tells of usage; others are not even parsed."""
        ...

    def owns(self, target: str) -> bool:
        """Whether a target is spelled as this vendor's are: then refusals have its form too."""
        ...

    def call(self, method: str, target: str) -> Call | None:
        """The request of that method and raw target, or None where it must not pass.

        The raw target is compared, so that no encoding, dot or doubled slash can mean another path.
        """
        ...

    def shown(self, headers: Mapping[str, str], target: str) -> str:
        """The dummy credential where this vendor's clients show theirs; empty where they show none."""
        ...

    def figures(self, told: Mapping[str, Any]) -> Figures:
        """The usage that an event of a stream, or a whole answer, tells. Later figures replace earlier."""
        ...

    def error(self, status: int, message: str) -> dict[str, Any]:
        """The body of a refusal as this vendor's clients read it."""
        ...


def upstream(address: str) -> URL:
    """A vendor's base address. Raises ValueError, which does not quote it: it may hold a credential."""
    problem = "The model's base URL must be http(s)://host[:port][/path], without query or credentials."
    try:
        url = URL(address.strip())
    except ValueError as error:
        raise ValueError(problem) from error
    if url.scheme not in {"http", "https"} or not url.host or url.user or url.password or url.query_string:
        raise ValueError(problem)
    return url.with_fragment(None)


def secret(value: str | None) -> str:
    """A credential without the blanks around it. Raises ValueError, which does not quote it."""
    stripped = (value or "").strip()
    if stripped and not _SECRET.fullmatch(stripped):
        raise ValueError("The model's key holds characters that no header can carry.")
    return stripped


def bearer(headers: Mapping[str, str]) -> str:
    """The token of an `Authorization: Bearer` header, or what else stands there."""
    return headers.get("Authorization", "").removeprefix("Bearer ")


def tokens(told: object, name: str) -> int | None:
    """A sane figure of that name, or None."""
    figure = told.get(name) if isinstance(told, dict) else None
    sane = isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure <= _MAX_TOKENS
    return figure if sane else None


def with_cached(total: int | None, cached: int | None, output: int | None) -> Figures:
    """Figures of a vendor that counts what came from its cache as input too."""
    seen: Figures = {}
    if total is not None:
        seen["input_tokens"] = max(total - (cached or 0), 0)
    if cached is not None:
        seen["cache_read_tokens"] = cached
    if output is not None:
        seen["output_tokens"] = output
    return seen
