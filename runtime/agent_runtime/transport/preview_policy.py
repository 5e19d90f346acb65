"""preview_policy: which headers pass between a browser and what is shown inside, and how. Pure.

Both sides are untrusted here: what is inside must not get our callers' credentials, and what it says
must not act on our origin. So what goes in is all but what may hold a credential; what comes out is
only what is known to be harmless. Where a page has no origin of its own (`Place.own_origin` False) a
policy in each answer takes ours away from it: it runs with an opaque origin, without storage and cookies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from agent_runtime.errors import SandboxFault

Headers = list[tuple[str, str]]

SANDBOX: Final = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"
"""Without `allow-same-origin`: the page's origin is opaque, and so is that of all it opens."""

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_NOT_INWARD: Final = _HOP_BY_HOP | {
    *("host", "origin", "referer", "expect", "content-length", "forwarded", "via", "x-real-ip"),
    *("service-worker", "dpop"),
}
_NOT_INWARD_BEGINS: Final = ("proxy-", "x-forwarded-", "x-amzn-", "x-amz-", "x-goog-", "x-ms-", "cf-", "fly-")
"""What proxies in front of us add; some of it names the caller, or is worth a login."""
_CREDENTIALS: Final = re.compile(
    r"auth|cookie|token|jwt|secret|api-?key|session|assertion|identity|credential"
)
_NO_CREDENTIALS: Final = frozenset({"x-csrf-token", "x-xsrf-token", "x-csrftoken"})
"""A page's own, however they are called."""

_OUTWARD: Final = frozenset(
    {
        *("content-type", "content-encoding", "content-language", "content-disposition", "content-range"),
        *("content-length", "accept-ranges", "cache-control", "etag", "last-modified", "expires", "vary"),
        *("date", "age", "retry-after", "allow", "pragma", "server-timing", "sourcemap", "x-sourcemap"),
        *("sec-websocket-protocol", "sec-websocket-accept", "sec-websocket-extensions"),
    }
)
_OUTWARD_ON_OWN_ORIGIN: Final = frozenset(
    {
        *("content-security-policy", "content-security-policy-report-only", "x-frame-options", "link"),
        *("cross-origin-opener-policy", "cross-origin-embedder-policy", "cross-origin-resource-policy"),
        *("www-authenticate", "permissions-policy"),
    }
)
_PAGES_OWN: Final = ("x-", "hx-", "access-control-")
"""Headers that only a page's own script reads."""
_NOT_OUTWARD: Final = frozenset({"x-sendfile", "x-content-type-options", "x-robots-tag", "x-request-id"})
_NOT_OUTWARD_BEGINS: Final = ("x-accel-", "x-lighttpd-")
"""Orders to a proxy in front of us, and what we say ourselves."""
_UPWARD: Final = re.compile(r"(?:^|/)(?:\.|%2e){2}(?:$|[/?#])", re.IGNORECASE)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", "0.0.0.0"})  # noqa: S104 - a name here
_COOKIE_PREFIX: Final = "preview_"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is shown: `base` is the path in front of its own, empty where it has an origin."""

    port: int
    base: str
    own_origin: bool
    label: str

    @property
    def cookie_prefix(self) -> str:
        """Tells cookies that were set inside from those of our own domain, which a browser sends along."""
        return f"{_COOKIE_PREFIX}{self.label[:8]}_"


def inward(headers: Iterable[tuple[str, str]], place: Place) -> Headers:
    """The headers of a request as they are told inside, `Host` among them."""
    given = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip().lower() for name, value in given if name == "connection" for part in value.split(",")
    }
    passed = [(name, value) for name, value in given if name not in named and _goes_in(name)]
    host = f"localhost:{place.port}"
    passed.append(("host", host))
    if any(name == "origin" for name, _ in given):
        passed.append(("origin", f"http://{host}"))
    cookies = [value for name, value in given if name == "cookie"] if place.own_origin else []
    if kept := "; ".join(_cookies_inward(cookies, place.cookie_prefix)):
        passed.append(("cookie", kept))
    return passed


def outward(headers: Iterable[tuple[str, str]], place: Place) -> Headers:
    """The headers of an answer as a browser is told them. Raises `SandboxFault` (`preview_bad_answer`)."""
    passed: Headers = []
    for given, value in headers:
        name = given.lower()
        if name == "location":
            passed.append((name, location(value, place)))
        elif name == "set-cookie" and place.own_origin:
            passed += [(name, cookie) for cookie in _cookie_outward(value, place.cookie_prefix)]
        elif _comes_out(name, own_origin=place.own_origin):
            passed.append((name, value))
    return passed + list(_said_by_us(place))


def location(target: str, place: Place) -> str:
    """A redirection, kept inside. Raises `SandboxFault` (`preview_bad_answer`) for one that leads out."""
    if any(character <= " " or character == "\\" for character in target):
        raise _leads_out()
    try:
        parts = urlsplit(target)
        port = parts.port or (80 if parts.scheme == "http" else None)
    except ValueError as error:
        raise _leads_out() from error
    if parts.netloc or parts.scheme:
        if parts.scheme not in {"http", ""} or parts.hostname not in _LOOPBACK or port != place.port:
            raise _leads_out()
        target = target[target.index(parts.netloc) + len(parts.netloc) :]
        target = target if target.startswith("/") else f"/{target}"
    if not place.own_origin and _UPWARD.search(target):
        raise _leads_out()
    if target.startswith("/"):
        return f"{place.base}/{target.lstrip('/')}"
    return target


def _leads_out() -> SandboxFault:
    return SandboxFault("What is shown redirects to somewhere else.", code="preview_bad_answer")


def _goes_in(name: str) -> bool:
    if name in _NOT_INWARD or name.startswith(_NOT_INWARD_BEGINS):
        return False
    return name in _NO_CREDENTIALS or _CREDENTIALS.search(name) is None


def _comes_out(name: str, *, own_origin: bool) -> bool:
    if name in _OUTWARD:
        return True
    if own_origin and name in _OUTWARD_ON_OWN_ORIGIN:
        return True
    if name in _NOT_OUTWARD or name.startswith(_NOT_OUTWARD_BEGINS):
        return False
    if name.startswith("access-control-") and not own_origin:
        return False  # we say those: a page without an origin needs them for its own scripts
    return name.startswith(_PAGES_OWN) and name not in _OUTWARD_ON_OWN_ORIGIN


def _said_by_us(place: Place) -> Iterator[tuple[str, str]]:
    yield "x-content-type-options", "nosniff"
    yield "x-robots-tag", "noindex"
    # The address is all that is needed to come here: nobody else is to learn it from a link.
    yield "referrer-policy", "same-origin" if place.own_origin else "no-referrer"
    if not place.own_origin:
        yield "content-security-policy", SANDBOX
        # Its own origin is nobody's: without these it could not read what belongs to it. No cookie and
        # no credential of ours is worth anything here, only the address is, and who asks has that.
        yield "access-control-allow-origin", "*"
        yield "access-control-expose-headers", "*"
        yield "cross-origin-resource-policy", "cross-origin"


def _cookies_inward(values: Iterable[str], prefix: str) -> Iterator[str]:
    for value in values:
        for cookie in value.split(";"):
            if cookie.strip().startswith(prefix):
                yield cookie.strip().removeprefix(prefix)


def _cookie_outward(value: str, prefix: str) -> Iterator[str]:
    """A cookie for this host and no other, under a name of its own."""
    cookie, *attributes = value.split(";")
    name, equals, content = cookie.strip().partition("=")
    if not (name and equals) or name.startswith("__"):
        return  # names that begin so are promises to the browser which a prefix would break
    kept = [each.strip() for each in attributes if each.strip().partition("=")[0].lower() != "domain"]
    yield "; ".join([f"{prefix}{name}={content}", *kept])
