"""HTTP on one session's unix socket. Knows connections and their bounds, nothing of models.

Whoever can reach the socket may connect, and what connects is hostile: connections are counted,
those over the bound are closed at once, silent ones after a while, and a request whose client has
gone is cancelled. What a request means is the handler's business (`relay`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent_runtime.errors import SandboxFault

MAX_CONNECTIONS: Final = 64
"""Of one session at a time; an agent with many subagents opens some twenty."""
_SILENCE_S: Final = 600.0
_CUT_S: Final = 0.05
_BACKLOG: Final = 128

_logger = logging.getLogger("agent_runtime.gateway.http")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class SocketServer:
    """Serves `path` between `start` and `stop`; a socket that an earlier process left is replaced."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._listener: asyncio.Server | None = None
        self._web: web.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """Listen; connections are accepted when this returns. Raises `SandboxFault`."""
        self._web = web.Server(
            self._handler,
            handler_cancellation=True,
            access_log=None,
            logger=_logger,
            auto_decompress=False,
            keepalive_timeout=_SILENCE_S,
            tcp_keepalive=False,
        )
        listening = self._bind()
        try:
            self._listener = await asyncio.get_running_loop().create_unix_server(
                self._protocol, sock=listening, backlog=_BACKLOG
            )
        except BaseException:
            listening.close()
            raise

    async def stop(self) -> None:
        """Stop listening, cut what runs, remove the socket. Idempotent."""
        if self._listener is None or self._web is None:
            return
        self._listener.close()
        self._unlink()
        await self._web.shutdown(_CUT_S)
        self._listener = self._web = None

    def _protocol(self) -> asyncio.Protocol:
        assert self._web is not None
        return self._web() if len(self._web.connections) < MAX_CONNECTIONS else _Refusal()

    def _bind(self) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            listening.bind(os.fspath(self._path))
            # The sandbox's user is another one. Only it sees the directory, by the provider's mount.
            self._path.chmod(0o666)
            found = self._path.lstat()
        except OSError as error:
            listening.close()
            raise SandboxFault(f"The model gateway cannot open its socket: {error.strerror}.") from error
        self._identity = (found.st_dev, found.st_ino)
        return listening

    def _unlink(self) -> None:
        """Remove our socket, and not the one of a process that took the path over."""
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()


class _Refusal(asyncio.Protocol):
    """Closes a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record tells of our own failure. A client's bad HTTP would let it write our log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_logger.addFilter(_is_ours)
