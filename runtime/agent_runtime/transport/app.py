"""app: the transport as an aiohttp application, by itself or mounted in a host's.

Its life: at start the manager opens; at shutdown streams and connections end, so that clients go
and look for us elsewhere; at cleanup the background work ends and the manager closes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from aiohttp import web

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest
from agent_runtime.manager import SessionManager
from agent_runtime.transport import pages
from agent_runtime.transport.auth import authenticator_of
from agent_runtime.transport.call import Transport, read_bytes
from agent_runtime.transport.engine import SocketServer
from agent_runtime.transport.guard import Handler, authenticated, guard, guarded, previews_first, public
from agent_runtime.transport.preview import FOLDER
from agent_runtime.transport.routes import ROUTES
from agent_runtime.transport.socket import SocketCommands

SOCKET_PATH: Final = "/socket.io/"


def build_app(manager: SessionManager, config: RuntimeConfig, *, prefix: str = "") -> web.Application:
    """An application that serves the runtime: REST, event streams, Socket.IO, console.

    `prefix` is where it is going to be mounted, for links in answers. Give the runner no access log
    of its own, or one without query strings: requests are logged here.
    """
    transport = Transport(manager, config, authenticator_of(config), prefix=prefix)
    app = _build(transport)
    app.middlewares.insert(0, previews_first(transport))
    return app


def _build(transport: Transport) -> web.Application:
    server = _socket_server(transport)
    app = web.Application(middlewares=[guard(transport)])
    for method, path, handler in _served(transport, server):
        app.router.add_route(method, path, handler)
    _live(app, transport, server)
    return app


def attach(app: web.Application, manager: SessionManager, config: RuntimeConfig, *, prefix: str = "") -> None:
    """Mount the runtime in a host's application, before that one starts.

    Below `prefix` (`/agents`) everything is the runtime's, Socket.IO at `{prefix}/socket.io`. Without
    one the runtime's routes stand beside the host's, and what neither serves is the host's to answer.
    """
    prefix = prefix.rstrip("/")
    transport = Transport(manager, config, authenticator_of(config), prefix=prefix)
    app.middlewares.insert(0, previews_first(transport))
    if prefix:
        app.add_subapp(prefix, _build(transport))
        return
    server = _socket_server(transport)
    for method, path, handler in _served(transport, server):
        app.router.add_route(method, path, guarded(transport, handler))
    _live(app, transport, server)


def _served(transport: Transport, server: SocketServer) -> Iterator[tuple[str, str, Handler]]:
    """Everything that is served: method, path, handler."""
    for route in ROUTES:
        enter = public if route.is_public else authenticated
        yield route.method, route.path, enter(transport, route.perform)
        if route.method == "GET" and route.has_end:
            yield "HEAD", route.path, enter(transport, route.perform)
    for name, file in pages.console_files().items():
        yield "GET", "/" if name == "index.html" else f"/{name}", public(transport, pages.console_file(file))

    yield "*", f"{FOLDER}/{{rest:(?s:.*)}}", transport.previews.at_our_host

    async def serve_socket(request: web.Request) -> web.StreamResponse:
        transport.refuse_previews(request)
        if "j" in request.query:
            raise InvalidRequest("JSONP is not served.", code="malformed_request")
        answer: web.StreamResponse = await server.handle_request(request)
        return answer

    for method in ("GET", "POST", "OPTIONS"):
        yield method, SOCKET_PATH, serve_socket


def _socket_server(transport: Transport) -> SocketServer:
    config = transport.config
    # Room for a message over the bound to be read and refused by name, and no more.
    packet_bound = 4 * config.max_message_bytes + 64 * 1024
    server = SocketServer(
        transport.tasks,
        max_packet_bytes=packet_bound,
        read_body=partial(read_bytes, limit=packet_bound, within_s=config.body_timeout_s),
        backlog_bytes=config.viewer_backlog_bytes,
        connect_within_s=config.connect_timeout_s,
        origins=config.cors_origins,
        on_slow=transport.metrics.slow_consumers.inc,
    )
    SocketCommands(transport, server)
    return server


def _live(app: web.Application, transport: Transport, server: SocketServer) -> None:
    """Tie the transport's life to the application's."""

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
