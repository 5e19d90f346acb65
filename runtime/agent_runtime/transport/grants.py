"""grants: addresses under which somebody's port is shown, and for how long. In memory only.

An address holds a random label of 130 bits and is all that is needed to open what it names: a browser
that follows it sends no credentials of ours. It leads to one port of one sandbox, so it is worth
nothing any more once that sandbox has ended. A label fits into a host's name.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agent_runtime.clock import now
from agent_runtime.errors import NotFound
from agent_runtime.ports import Principal

LIFETIME: Final = timedelta(hours=1)
MOST: Final = 10_000
"""Of all sessions together; the oldest is forgotten first."""
LABEL: Final = "[a-z2-7]{26}"
"""A label as a regular expression."""
_LABEL_CHARS: Final = 26
_LABEL_BYTES: Final = 17


@dataclass(frozen=True, slots=True)
class Grant:
    """One address, for whom it was made, and what it leads to."""

    label: str
    principal: Principal
    session_id: str
    sandbox_id: str
    port: int
    expires_at: datetime


class Grants:
    """All addresses of one server. They are looked up by hash: how long that takes tells nothing."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Grant] = OrderedDict()

    def give(self, principal: Principal, session_id: str, sandbox_id: str, port: int) -> Grant:
        """A new address."""
        self._forget_expired()
        label = base64.b32encode(secrets.token_bytes(_LABEL_BYTES)).decode("ascii").lower()[:_LABEL_CHARS]
        grant = Grant(label, principal, session_id, sandbox_id, port, now() + LIFETIME)
        self._held[_key(label)] = grant
        if len(self._held) > MOST:
            self._held.popitem(last=False)
        return grant

    def find(self, label: str) -> Grant:
        """What an address leads to. Raises `NotFound` (`preview_not_found`)."""
        grant = self._held.get(_key(label))
        if grant is None or grant.expires_at <= now():
            raise not_found()
        return grant

    def forget(self, grant: Grant) -> None:
        """It leads nowhere any more. Idempotent."""
        self._held.pop(_key(grant.label), None)

    def _forget_expired(self) -> None:
        """They expire in the order in which they were made."""
        present = now()
        while self._held and next(iter(self._held.values())).expires_at <= present:
            self._held.popitem(last=False)


def not_found() -> NotFound:
    """Unknown, forged, expired or of a sandbox that is gone: nobody is told which."""
    return NotFound("This address leads nowhere, or not any more.", code="preview_not_found")


def _key(label: str) -> bytes:
    return hashlib.sha256(label.encode()).digest()
