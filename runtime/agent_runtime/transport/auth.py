"""auth: who is calling. A token, a host's own scheme, or, on loopback only and by name, anybody.

`Credentials` are read here from a request or a Socket.IO handshake; whether they are good is the
`Authenticator`'s decision. A server without any of it makes a token of its own: it is never open by
accident.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import RuntimeFault, Unauthenticated
from agent_runtime.ports import Authenticator, Credentials, Principal

LOCAL_OWNER: Final = "local"
"""The owner of everything on a server that knows one caller only."""

_ANSWER_WITHIN_S: Final = 10.0
_log = structlog.get_logger(__name__)


def new_token() -> str:
    """A random token that nobody guesses (256 bits)."""
    return secrets.token_urlsafe(32)


class TokenAuthenticator:
    """Knows one caller by one token.

    Args:
        token: at least 16 characters; raises ValueError where it is shorter.
        owner: whom the sessions made with it belong to.
    """

    def __init__(self, token: str, *, owner: str = LOCAL_OWNER) -> None:
        if len(token) < 16:  # noqa: PLR2004 said in the docstring
            raise ValueError("a token has at least 16 characters")
        self._token = token.encode()
        self._principal = Principal(owner)

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """The owner, where the token is the right one; compared in constant time."""
        shown = (credentials.token or "").encode(errors="replace")
        return self._principal if hmac.compare_digest(shown, self._token) else None


class OpenAccess:
    """Lets everybody in who calls this machine by a loopback name.

    A page of another site reaches a loopback server too, by its own name (DNS rebinding) or blindly;
    so the names that the browser tells us, of the server and of the page, must be loopback ones.
    """

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """The local owner, unless a foreign name is in play."""
        headers = {name.lower(): value for name, value in credentials.headers.items()}
        origin = headers.get("origin")
        named = [_host_of(f"//{headers.get('host', '')}")] + ([_host_of(origin)] if origin else [])
        return Principal(LOCAL_OWNER) if all(is_loopback(name) for name in named) else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine and no other."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: RuntimeConfig, host: str) -> None:
    """Refuse to listen without authentication where others could call. Raises ValueError."""
    if config.open_access and not is_loopback(host):
        raise ValueError(f"open access is for loopback addresses only; {host} can be reached by others")


def authenticator_of(config: RuntimeConfig) -> Authenticator:
    """The configured one; open access where asked for by name; else a fresh token, told on the log."""
    if config.authenticator is not None:
        return config.authenticator
    if config.open_access:
        return OpenAccess()
    token = new_token()
    _log.warning("token_made_for_this_run", token=token)
    return TokenAuthenticator(token)


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def request_credentials(request: web.Request) -> Credentials:
    """What a REST caller showed."""
    return Credentials(bearer_of(request.headers), dict(request.headers), request.remote)


def handshake_credentials(request: web.Request, auth: Any) -> Credentials:
    """What a Socket.IO caller showed: `auth: {token}`, or the header where a client can set one."""
    token = auth.get("token") if isinstance(auth, dict) else None
    if not isinstance(token, str):
        token = bearer_of(request.headers)
    return Credentials(token, dict(request.headers), request.remote)


async def identify(authenticator: Authenticator, credentials: Credentials) -> Principal:
    """The caller. Raises `Unauthenticated`, also where the host's scheme fails or does not answer."""
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            principal = await authenticator.authenticate(credentials)
    except RuntimeFault:
        raise
    except Exception as error:
        _log.exception("authenticator_failed")
        raise Unauthenticated("The caller could not be authenticated.", retryable=True) from error
    if principal is None:
        raise Unauthenticated("A valid token is needed: Authorization: Bearer <token>.")
    return principal


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
