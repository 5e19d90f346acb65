"""Where each session's socket lies and which token opens it: the same again after a restart.

Both are derived from a secret in the runtime's own directory, so that a sandbox which outlives the
runtime finds the way it knows. Every session has a directory that holds its socket and nothing
else, because the provider mounts the directory, and a mount keeps showing the directory that it
was made from: so it is left in place when the session closes, and swept when it is long unused.
Who listens on the socket is `serving`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import time
from functools import cached_property
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import GatewayEndpoint

MAX_SOCKET_PATH_BYTES: Final = 107 if os.uname().sysname == "Linux" else 103
"""What the kernel takes as a unix socket's address, without its closing zero."""
_SOCKET: Final = "s"
_KEY_FILE: Final = "key"
_KEY_BYTES: Final = 32
_UNUSED_S: Final = 24 * 3600.0
"""No sandbox waits for a runtime for so long; its directory may go."""


class Endpoints:
    """The endpoints of one runtime. `run_dir` belongs to it alone and survives its restarts.

    All methods raise `SandboxFault` where the directory cannot be used.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def endpoint(self, session_id: str) -> GatewayEndpoint:
        """The session's endpoint; its directory exists when this returns."""
        try:
            return self._endpoint(session_id)
        except OSError as error:
            raise SandboxFault(f"The model gateway cannot use its directory: {error.strerror}.") from error

    def _endpoint(self, session_id: str) -> GatewayEndpoint:
        directory = self._sockets / self._derive("directory", session_id)[:8].hex()
        directory.mkdir(mode=0o755, exist_ok=True)
        directory.chmod(0o755)
        token = base64.urlsafe_b64encode(self._derive("token", session_id)).decode().rstrip("=")
        return GatewayEndpoint(socket=directory / _SOCKET, token=f"session-{token}")

    @cached_property
    def _sockets(self) -> Path:
        """Where the sessions' directories lie: in `run_dir`, or, where that is too long, in a short place.

        The short place is the same for the same `run_dir`, so a restarted runtime finds it too.
        """
        longest = len(os.fsencode(self._run_dir.absolute())) + len(f"/{bytes(8).hex()}/{_SOCKET}")
        if longest <= MAX_SOCKET_PATH_BYTES:
            return self._run_dir
        name = hashlib.sha256(os.fsencode(self._run_dir.absolute())).hexdigest()[:16]
        place = Path("/tmp") / f"agent-runtime-{name}"  # noqa: S108 - TMPDIR may be long; the owner is checked
        _own(place)
        _sweep(place)
        return place

    def _derive(self, purpose: str, session_id: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}:{session_id}".encode(), hashlib.sha256)

    @cached_property
    def _key(self) -> bytes:
        """The secret; the first look at it makes the directory ready."""
        _own(self._run_dir)
        path = self._run_dir / _KEY_FILE
        if not path.exists():
            _write_secret(path)
        _sweep(self._run_dir)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise SandboxFault("The model gateway's secret is damaged: delete it.", retryable=False)
        return key


def _own(directory: Path) -> None:
    """Make sure of a directory that nobody else can enter or has made."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise SandboxFault("The model gateway's directory belongs to somebody else.", retryable=False)
    directory.chmod(0o700)


def _write_secret(path: Path) -> None:
    """Write it aside and link it into place: whole or absent, and the first of two writers wins."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()


def _sweep(directory: Path) -> None:
    """Remove directories of sessions that closed long ago; one with a socket in it is not empty."""
    unused_since = time.time() - _UNUSED_S
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < unused_since:
            with contextlib.suppress(OSError):
                Path(entry.path).rmdir()
