import asyncio
import io

from aiohttp import web

from agent_runtime.gateway.relay import MAX_BODY_BYTES
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import (
    END,
    MESSAGE,
    REAL_KEY,
    START,
    agent,
    api,
    error_of,
    gateway,
    no_call,
    spelled,
    sse,
)


async def test_the_first_piece_of_an_answer_arrives_before_the_second_is_sent():
    seen = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "request-id": "req_1"})
        await response.prepare(request)
        await response.write(sse(START))
        await seen.wait()
        await response.write(sse(END))
        return response

    async with api(answer) as url, gateway(url) as gate, agent(await gate.open("s")) as client:
        async with client.post("/v1/messages?beta=true", json=MESSAGE) as response:
            assert (response.status, response.headers["request-id"]) == (200, "req_1")
            assert response.content_type == "text/event-stream"
            first = await response.content.readany()
            seen.set()
            assert first + await response.read() == sse(START, END)
        assert gate.usage("s") == Usage(input_tokens=100, cache_read_tokens=7, output_tokens=42)


async def test_the_upstream_sees_the_real_key_and_nothing_of_the_clients_own():
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"usage": {"input_tokens": 3, "output_tokens": 4}})

    async with api(answer) as url, gateway(url + "/prefix/") as gate:
        endpoint = await gate.open("s")
        smuggled = {
            "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "Proxy-Authorization": "Basic eA==", "X-Evil": "1",
            "Authorization": f"Bearer {endpoint.token}", "anthropic-beta": "one,two", "TE": "trailers",
            "Accept-Encoding": "gzip, br", "X-Claude-Code-Session-Id": "abc", "Host": "evil.example",
            "User-Agent": "claude-cli/1",
        }  # fmt: skip
        async with agent(endpoint) as client:
            async with client.post("/v1/messages?beta=true", json=MESSAGE, headers=smuggled) as response:
                assert response.status == 200
            headers = seen[0].headers
            assert seen[0].raw_path == "/prefix/v1/messages?beta=true"
            assert headers["x-api-key"] == REAL_KEY
            assert endpoint.token not in str(headers)
            assert not {
                "Cookie",
                "X-Forwarded-For",
                "Proxy-Authorization",
                "TE",
                "Authorization",
                "X-Evil",
            } & {*headers}
            assert headers["Host"] in url
            assert headers["Accept-Encoding"] == "identity"
            assert headers["anthropic-beta"] == "one,two"
            assert headers["X-Claude-Code-Session-Id"] == "abc"
            assert headers["User-Agent"] == "claude-cli/1"


async def test_an_auth_token_is_sent_as_a_bearer_and_the_dummy_may_be_one():
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({})

    async with api(answer) as url, gateway(url, api_key=" ", auth_token="real-token") as gate:
        endpoint = await gate.open("s")
        bearer = {"Authorization": f"Bearer {endpoint.token}"}
        async with agent(endpoint, token="") as client:
            await client.post("/v1/messages", json=MESSAGE, headers=bearer)
    assert seen[0].headers["Authorization"] == "Bearer real-token"
    assert "x-api-key" not in seen[0].headers


async def test_count_tokens_passes_and_costs_nothing():
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/v1/messages/count_tokens"
        return web.json_response({"input_tokens": 12})

    async with api(answer) as url, gateway(url) as gate, agent(await gate.open("s")) as client:
        async with client.post("/v1/messages/count_tokens?beta=true", json=MESSAGE) as response:
            assert await response.json() == {"input_tokens": 12}
        assert gate.usage("s") == Usage()


async def test_errors_of_the_api_pass_with_status_and_advice_but_without_cookies():
    async def answer(request: web.Request) -> web.Response:
        advice = {"retry-after": "7", "request-id": "req_9", "anthropic-ratelimit-requests-limit": "5"}
        return web.json_response({"type": "error"}, status=429, headers={**advice, "Set-Cookie": "a=b"})

    async with (
        api(answer) as url,
        gateway(url) as gate,
        agent(await gate.open("s")) as client,
        client.post("/v1/messages", json=MESSAGE) as response,
    ):
        assert response.status == 429
        assert response.headers["retry-after"] == "7"
        assert response.headers["request-id"] == "req_9"
        assert response.headers["anthropic-ratelimit-requests-limit"] == "5"
        assert "Set-Cookie" not in response.headers


async def test_a_big_body_passes_whole_and_one_over_the_bound_is_refused():
    sizes: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        sizes.append(len(await request.read()))
        return web.json_response({})

    async def pieces(count: int):
        for _ in range(count):
            yield bytes(1 << 20)

    async with api(answer) as url, gateway(url) as gate, agent(await gate.open("s")) as client:
        async with client.post("/v1/messages", data=io.BytesIO(bytes(20 << 20))) as response:
            assert response.status == 200
        async with client.post("/v1/messages", data=pieces(20)) as response:
            assert response.status == 200
        assert sizes == [20 << 20, 20 << 20]
        async with client.post("/v1/messages", data=pieces((MAX_BODY_BYTES >> 20) + 1)) as response:
            assert await error_of(response) == (413, "request_too_large")
        assert len(sizes) == 2


async def test_a_body_that_claims_to_be_over_the_bound_is_refused_unread():
    async with api(no_call) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        writer.write(spelled(endpoint, **{"Content-Length": str(MAX_BODY_BYTES + 1)}))
        assert b" 413 " in await reader.readline()
        writer.close()


async def test_a_compressed_answer_is_read_and_passes_plain():
    async def answer(request: web.Request) -> web.Response:
        response = web.json_response({"usage": {"input_tokens": 3, "output_tokens": 4}})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with api(answer) as url, gateway(url) as gate, agent(await gate.open("s")) as client:
        async with client.post("/v1/messages", json=MESSAGE) as response:
            assert "Content-Encoding" not in response.headers
            assert (await response.json())["usage"]["output_tokens"] == 4
        assert gate.usage("s") == Usage(input_tokens=3, output_tokens=4)
