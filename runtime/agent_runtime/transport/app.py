"""app: the transport as an aiohttp application, by itself or mounted in a host's.

Its life: at start the manager opens; at shutdown streams and connections end, so that clients go
and look for us elsewhere; at cleanup the background work ends and the manager closes.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest
from agent_runtime.manager import SessionManager
from agent_runtime.transport import pages
from agent_runtime.transport.auth import authenticator_of
from agent_runtime.transport.call import Transport
from agent_runtime.transport.engine import SocketServer
from agent_runtime.transport.guard import Perform, add_headers, authenticated, guard, public
from agent_runtime.transport.routes import ROUTES
from agent_runtime.transport.socket import SocketCommands

SOCKET_PATH: Final = "/socket.io/"
TRANSPORT: Final = web.AppKey("agent_runtime.transport", Transport)
"""Where a host finds the transport of an application that `build_app` made."""


def build_app(manager: SessionManager, config: RuntimeConfig, *, prefix: str = "") -> web.Application:
    """An application that serves the runtime: REST, event streams, Socket.IO, console.

    `prefix` is where it is going to be mounted, for links in answers. Give the runner no access log
    of its own, or one without query strings: requests are logged here.
    """
    transport = Transport(manager, config, authenticator_of(config), prefix=prefix)
    # Bodies are bounded where they are read; this one bound is for those that aiohttp reads itself.
    app = web.Application(middlewares=[guard(transport)], client_max_size=_packet_bound(config))
    app[TRANSPORT] = transport
    app.on_response_prepare.append(add_headers(transport))
    for route in ROUTES:
        _add(app, transport, route.method, route.path, route.perform, is_public=route.is_public)
    for name, path in pages.console_files().items():
        shown = "/" if name == "index.html" else f"/{name}"
        _add(app, transport, "GET", shown, pages.console_file(path), is_public=True)
    _add_sockets(app, transport)
    return app


def attach(app: web.Application, manager: SessionManager, config: RuntimeConfig, *, prefix: str = "") -> None:
    """Mount the runtime in a host's application, before that one starts.

    Below `prefix` (`/agents`) everything is the runtime's, Socket.IO at `{prefix}/socket.io`. Without
    one the runtime answers whatever the host's own routes do not.
    """
    prefix = prefix.rstrip("/")
    mounted = build_app(manager, config, prefix=prefix)
    if prefix:
        app.add_subapp(prefix, mounted)
    else:
        app.add_domain("*", mounted)


def _add(
    app: web.Application, transport: Transport, method: str, path: str, perform: Perform, *, is_public: bool
) -> None:
    handler = public(transport, perform) if is_public else authenticated(transport, perform)
    if method == "GET":
        app.router.add_get(path, handler)  # HEAD too
    else:
        app.router.add_route(method, path, handler)


def _add_sockets(app: web.Application, transport: Transport) -> None:
    config = transport.config
    server = SocketServer(
        transport.tasks,
        max_packet_bytes=_packet_bound(config),
        backlog_bytes=config.viewer_backlog_bytes,
        origins=config.cors_origins,
        on_slow=transport.metrics.slow_consumers.inc,
    )
    SocketCommands(transport, server)

    async def serve(request: web.Request) -> web.StreamResponse:
        if "j" in request.query:
            raise InvalidRequest("JSONP is not served.", code="malformed_request")
        answer: web.StreamResponse = await server.handle_request(request)
        return answer

    for method in ("GET", "POST", "OPTIONS"):
        app.router.add_route(method, SOCKET_PATH, serve)

    async def open_all(_app: web.Application) -> None:
        await transport.manager.open()
        await transport.tasks.open()

    async def end_connections(_app: web.Application) -> None:
        transport.is_closing = True
        for stream in tuple(transport.streams):
            stream.cancel()
        await server.close_all()

    async def close_all(_app: web.Application) -> None:
        await transport.tasks.close()
        await transport.manager.close()

    app.on_startup.append(open_all)
    app.on_shutdown.append(end_connections)
    app.on_cleanup.append(close_all)


def _packet_bound(config: RuntimeConfig) -> int:
    """Room for a message over the bound to be read and refused by name, and no more."""
    return 4 * config.max_message_bytes + 64 * 1024
