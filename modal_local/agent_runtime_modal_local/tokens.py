"""The tokens of the data path: three parts, signed, with an end; all that were given out can be refused."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from typing import Final

LIFETIME_S: Final = 900.0


class Tokens:
    """Signs and checks. The SDK reads only `exp`; the signature is for us.

    Attributes:
        lifetime_s: of the tokens that are given out from now on.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self.lifetime_s = LIFETIME_S

    def issue(self, subject: str) -> str:
        """A token for a subject (a task, or the account)."""
        claims = {"sub": subject, "exp": time.time() + self.lifetime_s}
        body = ".".join(_encode(json.dumps(part).encode()) for part in ({"alg": "HS256"}, claims))
        return f"{body}.{self._signature(body)}"

    def subject(self, token: str) -> str | None:
        """Whose token this is; None where it is forged, expired or nonsense."""
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        claims = json.loads(_decode(body.partition(".")[2]))
        return str(claims["sub"]) if claims["exp"] > time.time() else None

    def refuse(self) -> None:
        """From now on no token that was given out so far is good, whatever its end."""
        self._key = secrets.token_bytes(32)

    def _signature(self, body: str) -> str:
        return _encode(hmac.new(self._key, body.encode(), "sha256").digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
