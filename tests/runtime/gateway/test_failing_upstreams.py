import asyncio
import socket

import aiohttp
import pytest
from aiohttp import web

from agent_runtime.gateway.relay import Patience
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import (
    MESSAGE,
    REAL_KEY,
    START,
    agent,
    api,
    error_of,
    gateway,
    raw_api,
    spelled,
    sse,
)
from tests.waiting import eventually


async def test_an_upstream_that_refuses_is_a_502():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with (
        gateway(f"http://127.0.0.1:{port}") as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert await error_of(response) == (502, "api_error")
        assert REAL_KEY not in await response.text()


async def test_an_upstream_that_hangs_is_a_504():
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        raw_api(hang) as url,
        gateway(url, patience=Patience(idle_s=0.2)) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert await error_of(response) == (504, "timeout_error")


@pytest.mark.parametrize(
    "noise", [b"\x00\xff" * 500, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", b""]
)
async def test_an_upstream_that_speaks_garbage_is_a_502(noise: bytes):
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(noise)
        await writer.drain()

    async with (
        raw_api(babble) as url,
        gateway(url) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert await error_of(response) == (502, "api_error")


@pytest.mark.parametrize(
    "framing", ["Transfer-Encoding: chunked\r\n\r\n%x\r\n", "Content-Length: 9999\r\n\r\n"]
)
async def test_an_answer_that_is_cut_looks_cut_to_the_agent_and_is_counted(framing: str):
    told = sse(START)
    used: list[tuple[str, Usage]] = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing
        writer.write((head % len(told) if "%" in head else head).encode() + told + b"\r\n")
        await writer.drain()

    async with raw_api(cut) as url, gateway(url, on_usage=lambda *a: used.append(a)) as gate:
        async with agent(await gate.open("s")) as client:
            with pytest.raises(aiohttp.ClientError):
                async with client.post("/v1/messages", json=MESSAGE) as response:
                    await response.read()
        await eventually(lambda: used)
    assert used == [("s", Usage(input_tokens=100, cache_read_tokens=7, output_tokens=1))]


async def test_an_answer_that_stalls_half_way_is_cut():
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(START))
        await reader.read()
        await reader.read()

    async with (
        raw_api(stall) as url,
        gateway(url, patience=Patience(idle_s=1.0)) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert await response.content.readany() == sse(START)
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_a_redirect_is_not_followed():
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/v1/messages"
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with (
        api(answer) as url,
        gateway(url) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE, allow_redirects=False) as response,
    ):
        assert await error_of(response) == (502, "api_error")
        assert "Location" not in response.headers


@pytest.mark.parametrize("spoken", [b"", b"first"])
async def test_when_the_agent_goes_the_upstream_request_ends(spoken: bytes):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            if spoken:
                await response.prepare(request)
                await response.write(spoken)
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()
        return response

    async with api(answer) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        _, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        writer.write(spelled(endpoint))
        await begun.wait()
        writer.close()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_an_upload_that_stalls_is_ended():
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})

    async with api(answer) as url, gateway(url, patience=Patience(upload_idle_s=0.2)) as gate:
        endpoint = await gate.open("s")
        reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        writer.write(spelled(endpoint, **{"Content-Length": "9"}))
        assert b" 408 " in await reader.readline()
        writer.close()
