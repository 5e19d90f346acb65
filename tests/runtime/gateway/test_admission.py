import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web

from agent_runtime.gateway.serving import MAX_CONNECTIONS
from tests.runtime.gateway.upstream import (
    MESSAGE,
    agent,
    api,
    error_of,
    gateway,
    no_call,
    raw,
    spelled,
)


async def test_another_sessions_token_opens_nothing():
    async with api(no_call) as url, gateway(url) as gate:
        mine, other = await gate.open("a"), await gate.open("b")
        assert mine.socket.parent != other.socket.parent
        for token in (other.token, "", "x", mine.token[:-1], mine.token + "x", "\udce4"):
            async with agent(mine, token=token) as client:
                headers = None if token != "\udce4" else {"x-api-key": "ä"}
                async with client.post("/v1/messages", json=MESSAGE, headers=headers) as response:
                    assert await error_of(response) == (401, "authentication_error")


@pytest.mark.parametrize(
    "target",
    [
        "/", "*", "/v1/files", "/v1/messages/", "//v1/messages", "/v1//messages", "/v1/./messages",
        "/V1/messages",
        "/v1/messages/../files", "/v1/messages\\..\\files", "/v1/messages%2f..%2ffiles", "/v1/%6dessages",
        "/v1/messages/batches", "/v1/messages#x", "/v1/messages;x", "http://evil.example/v1/messages",
        "/v1/messages?a=http://evil", "/v1/messages?x=1?y", "/v1/messages?" + "a" * 300,
    ],
)  # fmt: skip
async def test_nothing_but_the_two_methods_passes(target: str):
    async with api(no_call) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        status = (await raw(endpoint, spelled(endpoint, target))).split(b" ", 2)[1]
        assert status in {b"403", b"400"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_no_other_verb_passes(method: str):
    async with (
        api(no_call) as url,
        gateway(url) as gate,
        agent(await gate.open("s")) as client,
        client.request(method, "/v1/messages") as response,
    ):
        assert response.status == 403


async def test_no_tunnel_is_opened():
    async with api(no_call) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        head = (
            f"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\nx-api-key: {endpoint.token}\r\n\r\n"
        )
        assert not (await raw(endpoint, head.encode())).startswith(b"HTTP/1.1 2")


async def test_every_request_of_a_connection_is_checked():
    served: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        served.append(request.raw_path)
        return web.json_response({})

    async with api(answer) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        good, unnamed = spelled(endpoint), spelled(endpoint, **{"x-api-key": ""})
        answers = await raw(endpoint, good + good + unnamed)
        assert [line.split()[1] for line in answers.split(b"\r\n") if line.startswith(b"HTTP/")] == [
            b"200", b"200", b"401",
        ]  # fmt: skip
        answers = await raw(endpoint, good + spelled(endpoint, "/v1/files"))
        assert answers.count(b"HTTP/1.1 403") == 1
        assert served == ["/v1/messages"] * 3


async def test_two_lengths_in_one_request_smuggle_nothing_and_write_no_log(caplog: pytest.LogCaptureFixture):
    served: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        served.append(await request.read())
        return web.json_response({})

    async with api(answer) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        hidden = "POST /v1/files HTTP/1.1\r\nHost: x\r\n\r\n"
        request = spelled(endpoint, body=f"0\r\n\r\n{hidden}", **{"Transfer-Encoding": "chunked"})
        assert (await raw(endpoint, request)).startswith(b"HTTP/1.0 400")
        assert caplog.records == []
        assert served == []


async def test_without_a_key_the_agent_is_told_so():
    async with (
        gateway("http://127.0.0.1:9", api_key=None) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert response.status == 401
        assert "no key" in (await response.json())["error"]["message"]


async def test_connections_over_the_bound_are_closed_and_others_go_on():
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({})

    async with api(answer) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        idle = [await asyncio.open_unix_connection(str(endpoint.socket)) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        assert await reader.read() == b""
        idle.pop()[1].close()
        async with agent(endpoint) as client:

            async def served() -> bool:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.post("/v1/messages", json=MESSAGE) as response:
                        return response.status == 200
                return False

            while not await served():
                pass
        for _, other in (*idle, (reader, writer)):
            other.close()
