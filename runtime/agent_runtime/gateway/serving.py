"""HTTP on one session's unix socket. Knows connections and their bounds, nothing of models or hosts.

Whoever can reach the socket may connect, and what connects is hostile: connections are counted,
those over the bound are closed at once, silent ones after a while, and a request whose client has
gone is cancelled. A connection whose first bytes ask for a tunnel is handed over as it is, never
parsed as HTTP. What a request means is the handler's business (`broker`), where a tunnel leads that
of `tunnels`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent_runtime.errors import SandboxFault
from agent_runtime.gateway.tunnels import METHOD

MAX_CONNECTIONS: Final = 64
"""Of one session at a time; an agent with many subagents opens some twenty."""
_SILENCE_S: Final = 600.0
_CUT_S: Final = 0.05
_BACKLOG: Final = 128

_logger = logging.getLogger("agent_runtime.gateway.http")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
TunnelTaker = Callable[[asyncio.Transport, bytes], None]
"""Takes over a connection, with the bytes that were read from it."""


class SocketServer:
    """Serves `path` between `start` and `stop`; a socket that an earlier process left is replaced."""

    def __init__(self, path: Path, handler: Handler, tunnel: TunnelTaker) -> None:
        self._path = path
        self._handler = handler
        self._tunnel = tunnel
        self._beginning: set[_Beginning] = set()
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
        for connection in list(self._beginning):
            connection.cut()
        await self._web.shutdown(_CUT_S)
        self._listener = self._web = None

    def _protocol(self) -> asyncio.Protocol:
        assert self._web is not None
        if len(self._web.connections) + len(self._beginning) >= MAX_CONNECTIONS:
            return _Refusal()
        return _Beginning(self._web, self._tunnel, self._beginning)

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


class _Beginning(asyncio.Protocol):
    """Waits for the first bytes of a connection, which say whose it is."""

    def __init__(self, http: web.Server, tunnel: TunnelTaker, among: set[_Beginning]) -> None:
        self._http = http
        self._tunnel = tunnel
        self._among = among
        self._first = b""
        self._transport: asyncio.Transport | None = None
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._silence = asyncio.get_running_loop().call_later(_SILENCE_S, self._transport.abort)
        self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is gone either way
        self._forget()

    def data_received(self, data: bytes) -> None:
        self._first += data
        if len(self._first) < len(METHOD) and METHOD.startswith(self._first):
            return
        self._forget()
        assert self._transport is not None
        if self._first.startswith(METHOD):
            self._tunnel(self._transport, self._first)
            return
        protocol = self._http()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._first)

    def cut(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    def _forget(self) -> None:
        self._among.discard(self)
        if self._silence is not None:
            self._silence.cancel()


class _Refusal(asyncio.Protocol):
    """Closes a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record tells of our own failure. A client's bad HTTP would let it write our log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_logger.addFilter(_is_ours)
