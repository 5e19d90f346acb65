"""What the gateway's tests stand on: an API of their own making, and a client on a unix socket."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.vendor import Vendor
from agent_runtime.ports import GatewayEndpoint

REAL_KEY = "sk-ant-the-real-key"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


MESSAGE = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
START = {
    "type": "message_start",
    "message": {"usage": {"input_tokens": 100, "cache_read_input_tokens": 7, "output_tokens": 1}},
}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}}


async def no_call(request: web.Request) -> web.Response:
    raise AssertionError(f"{request.method} {request.raw_path} must not get here")


async def error_of(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and kind of an answer in the form of the Messages API's errors."""
    body = await response.json()
    assert body["type"] == "error"
    return response.status, body["error"]["type"]


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


@contextlib.asynccontextmanager
async def api(handler: Handler) -> AsyncIterator[str]:
    """Serve every path with `handler`; gives the base URL."""
    app = web.Application(client_max_size=256 << 20)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_api(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A peer that speaks whatever `talk` writes; gives the base URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def broker(*vendors: Vendor, run_dir: Path | None = None, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway in a directory with a short path; `options` as its own."""
    with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp") as scratch:
        made = Gateway(vendors, run_dir or Path(scratch) / "run", **options)
        try:
            yield made
        finally:
            await made.aclose()


def gateway(
    url: str, *, api_key: str | None = REAL_KEY, auth_token: str | None = None, **options: Any
) -> contextlib.AbstractAsyncContextManager[Gateway]:
    """A broker that knows the Messages API alone."""
    return broker(Anthropic(url, api_key=api_key, auth_token=auth_token), **options)


@contextlib.asynccontextmanager
async def agent(endpoint: GatewayEndpoint, token: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """What an agent in the sandbox has: the socket and the dummy token."""
    headers = {"x-api-key": endpoint.token if token is None else token, "anthropic-version": "2023-06-01"}
    async with aiohttp.ClientSession(
        "http://localhost", connector=aiohttp.UnixConnector(str(endpoint.socket)), headers=headers
    ) as client:
        yield client


def spelled(
    endpoint: GatewayEndpoint, target: str = "/v1/messages", body: str = "{}", **headers: str
) -> bytes:
    """A request letter by letter, for what no well-behaved client would send."""
    fields = {"Host": "x", "x-api-key": endpoint.token, "Content-Length": str(len(body)), **headers}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", body]
    return "\r\n".join(lines).encode()


async def raw(endpoint: GatewayEndpoint, *pieces: bytes) -> bytes:
    """Send bytes as they are and read until the end; a bound keeps a silent peer from hanging us."""
    reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer
