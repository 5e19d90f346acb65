"""Serve: a runtime on a port until a signal, then closed in order.

Standard output gets one line of JSON when requests are accepted, and nothing else; people read
standard error. `running` is the same server for whoever wants to do something while it runs (the
demo).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from agent_runtime.errors import InvalidRequest
from agent_runtime.ports import ModelGateway
from agent_runtime.runtime import AgentRuntime
from agent_runtime.transport.auth import OpenAccess, TokenAuthenticator, is_loopback, new_token

from .collecting import sparing_the_loop
from .composition import compose, surroundings
from .folder import held
from .settings import Settings

TOKEN_ENV: Final = "AGENT_RUNTIME_TOKEN"
_SHUTDOWN_TIMEOUT_S: Final = 5.0
"""For open requests at the end; viewers reconnect, so nothing is gained by waiting for streams."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that accepts requests. `token` is empty where access is open."""

    url: str
    token: str
    runtime: AgentRuntime

    @property
    def console(self) -> str:
        """The console's address, ready to click; the token is in the part that browsers never send."""
        return f"{self.url}/#token={self.token}" if self.token else f"{self.url}/"


@asynccontextmanager
async def running(settings: Settings, *, gateway: ModelGateway | None = None) -> AsyncIterator[Served]:
    """Serve while the block runs. Raises `InvalidRequest` where the settings cannot be served."""
    token = "" if settings.open_access else os.environ.get(TOKEN_ENV) or new_token()
    if settings.open_access and not is_loopback(settings.host):
        detail = "open access is refused on an address that others can reach"
        raise InvalidRequest(detail, code="open_access_refused")
    with held(settings.data):
        async with _serving(settings, token, gateway) as served:
            yield served


@asynccontextmanager
async def _serving(settings: Settings, token: str, gateway: ModelGateway | None) -> AsyncIterator[Served]:
    try:
        authenticator = OpenAccess() if settings.open_access else TokenAuthenticator(token)
        runtime = AgentRuntime(compose(settings, authenticator=authenticator, gateway=gateway))
    except ValueError as error:
        raise InvalidRequest(str(error), code="invalid_settings") from error
    runner = web.AppRunner(runtime.app(), access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            detail = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            raise InvalidRequest(detail, code="address_unavailable") from error
        yield Served(_url(runner, settings.host), token, runtime)
    finally:
        await runner.cleanup()


async def serve(settings: Settings) -> None:
    """Serve until a signal. SIGINT (Ctrl-C) ends the sandboxes; SIGTERM leaves them to the next start."""
    ended: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.put_nowait, number)
    async with surroundings(settings), sparing_the_loop(), running(settings) as served:
        ready = {"event": "ready", "url": served.url, "token": served.token}
        sys.stdout.write(orjson.dumps(ready).decode() + "\n")
        sys.stdout.flush()
        sys.stderr.write(f"console: {served.console}\n")
        if await ended.get() is signal.SIGINT:
            sys.stderr.write("ending the sandboxes\n")
            await served.runtime.manager.stop_all()
        sys.stderr.write("closing\n")


def _url(runner: web.AppRunner, host: str) -> str:
    port = runner.addresses[0][1]
    shown = "127.0.0.1" if host in {"0.0.0.0", ""} else "[::1]" if host == "::" else host  # noqa: S104
    return f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{port}"
