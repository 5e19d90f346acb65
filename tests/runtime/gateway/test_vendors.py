"""Each vendor's protocol through the one socket: credentials, paths, usage, refusals."""

import asyncio
import json
from typing import Any

import pytest
import structlog
from aiohttp import web

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.gemini import Gemini
from agent_runtime.gateway.openai import OpenAI
from agent_runtime.gateway.relay import MAX_BODY_BYTES, Patience
from agent_runtime.needs import Egress
from agent_runtime.records import Usage
from tests.runtime.gateway.protocols import CASES, OWN, REAL, Case, ask, each, everything
from tests.runtime.gateway.upstream import agent, api, broker, no_call, raw_api


@each
async def test_the_vendor_sees_the_real_key_and_nothing_that_the_agent_brought(case: Case):
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        assert await request.json() == case.body
        headers = {"Set-Cookie": "a=b", "openai-organization": "the-hosts", "x-internal": "1"}
        return web.json_response(case.whole, headers=headers)

    brought = {
        "x-api-key": OWN, "Authorization": f"Bearer {OWN}", "x-goog-api-key": OWN, "api-key": OWN,
        "Cookie": OWN, "OpenAI-Organization": OWN, "OpenAI-Project": OWN, "x-goog-user-project": OWN,
        "Proxy-Authorization": OWN, "X-Forwarded-For": OWN, "Forwarded": OWN, "User-Agent": "some-agent/1",
    }  # fmt: skip
    async with api(answer) as url, broker(case.vendor(url)) as gate:
        endpoint = await gate.open("s")
        async with agent(endpoint, token="") as client:
            headers = {**brought, **case.shown(endpoint.token)}
            async with client.post(case.target, json=case.body, headers=headers) as response:
                assert response.status == 200
                assert await response.json() == case.whole
                assert not {"Set-Cookie", "openai-organization", "x-internal"} & {*response.headers}
    name, value = case.real
    assert seen[0].headers[name] == value
    assert seen[0].raw_path == case.arrives_at
    assert seen[0].headers["User-Agent"] == "some-agent/1"
    everything_told = seen[0].raw_path + str(seen[0].headers)
    assert OWN not in everything_told
    assert endpoint.token not in everything_told
    assert everything_told.count(REAL) == 1


@each
@pytest.mark.parametrize("streamed", [True, False])
async def test_usage_is_read_from_whole_and_from_streamed_answers(case: Case, streamed: bool):
    used: list[Usage] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if not streamed:
            return web.json_response(case.whole)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in case.stream:
            for letter in f"data: {json.dumps(event)}\n\n":
                await response.write(letter.encode())
        return response

    async with api(answer) as url, broker(case.vendor(url), on_usage=lambda _, u: used.append(u)) as gate:
        endpoint = await gate.open("s")
        async with (
            agent(endpoint) as client,
            client.post(case.target, json=case.body, headers=case.shown(endpoint.token)) as response,
        ):
            assert response.status == 200
            await response.read()
        assert gate.usage("s") == case.usage
    assert used == [case.usage]


@each
async def test_the_first_piece_of_an_answer_arrives_before_the_second_is_sent(case: Case):
    seen = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await seen.wait()
        return response

    async with api(answer) as url, broker(case.vendor(url)) as gate:
        endpoint = await gate.open("s")
        async with (
            agent(endpoint) as client,
            client.post(case.target, json=case.body, headers=case.shown(endpoint.token)) as response,
        ):
            assert await response.content.readany() == b"data: {}\n\n"
            seen.set()
            assert await response.read() == b""


@each
async def test_a_wrong_token_is_refused_in_the_vendors_own_words(case: Case):
    async with api(no_call) as url, broker(*everything(url)) as gate:
        mine, other = await gate.open("mine"), await gate.open("other")
        for token in (other.token, OWN, "", "ä"):
            status, body = await ask(mine, case, token=token)
            assert (status, body) == (401, case.refused(401, "The token is not the one of this session."))


@each
async def test_without_a_key_the_agent_is_told_so(case: Case):
    keyless = [Anthropic(), OpenAI(), Gemini()]
    async with broker(*keyless) as gate:
        message = "The runtime has no key for this model's API."
        assert await ask(await gate.open("s"), case) == (401, case.refused(401, message))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("messages", "/v1/messages/batches"),
        ("messages", "/v1/messages/../files"),
        ("chat", "/v1/chat/completions?x=1"),
        ("chat", "/v1/chat/completions/"),
        ("chat", "/v1/chat/completions/abc/messages"),
        ("chat", "/v1/models"),
        ("responses", "/v1/responses/resp_of_somebody_else"),
        ("responses", "/v1/responses/resp_1/input_items"),
        ("responses", "/v1/responses/../files"),
        ("gemini", "/v1beta/files"),
        ("gemini", "/v1beta/models"),
        ("gemini", "/v1beta/cachedContents"),
        ("gemini", "/v1beta/models/m-1"),
        ("gemini", "/v1beta/models/m-1:batchGenerateContent"),
        ("gemini", "/v1beta/models/../tunedModels/m-1:generateContent"),
        ("gemini", "/v1beta/models/m%2f1:generateContent"),
        ("gemini", "/v1beta/tunedModels/m-1:generateContent"),
        ("gemini", "/v1beta/models/m-1:generateContent#x"),
    ],
)  # fmt: skip
async def test_what_the_protocol_has_beside_these_requests_does_not_pass(name: str, target: str):
    case = CASES[name]
    async with api(no_call) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s")
        shown = next(iter(case.shown(endpoint.token).items()))
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\n{shown[0]}: {shown[1]}\r\nContent-Length: 2\r\n\r\n{{}}"
        reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
        if answer.split(b" ", 2)[1] != b"400":  # no HTTP at all
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert body == case.refused(403, "This is none of the requests that may pass to a model.")
        assert answer.split(b" ", 2)[1] in {b"400", b"403"}


@each
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_no_other_verb_passes(case: Case, method: str):
    async with api(no_call) as url, broker(*everything(url)) as gate:
        status, _ = await ask(await gate.open("s"), case, method=method)
        assert status == 403


async def test_a_path_that_is_nobodys_is_refused():
    async with api(no_call) as url, broker(*everything(url)) as gate:
        status, body = await ask(await gate.open("s"), CASES["messages"], target="/metrics")
        assert (status, body["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize(
    "query",
    ["key={token}", "alt=sse&key={token}", "k%65y={token}&alt=sse", "key={token}&key=own&access_token=own"],
)
async def test_a_key_in_the_address_is_taken_out_of_it(query: str):
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        assert request.headers["x-goog-api-key"] == REAL
        return web.json_response({})

    async with api(answer) as url, broker(Gemini(url, api_key=REAL)) as gate:
        endpoint = await gate.open("s")
        reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
        path = "/v1beta/models/m-1:generateContent"
        target = f"{path}?{query.format(token=endpoint.token)}"
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + b"{}")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
    assert seen == [path + ("?alt=sse" if "alt" in query else "")]


@each
async def test_a_body_over_the_bound_is_refused_in_the_vendors_own_words(case: Case):
    async def pieces():
        yield b'{"model":"m-1","x":"'
        for _ in range((MAX_BODY_BYTES >> 20) + 1):
            yield bytes(1 << 20)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        raise AssertionError("it must never be whole")

    async with api(answer) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s")
        async with agent(endpoint) as client:
            headers = case.shown(endpoint.token)
            async with client.post(case.target, data=pieces(), headers=headers) as response:
                assert response.status == 413
                told = await response.json()
                assert told == case.refused(413, told["error"]["message"])


@each
async def test_a_vendor_that_is_away_or_hangs_is_a_refusal_in_its_own_words(case: Case):
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_api(hang) as url, broker(*everything(url), patience=Patience(idle_s=0.2)) as gate:
        status, told = await ask(await gate.open("s"), case)
        assert (status, told) == (504, case.refused(504, "The model's API did not answer in time."))
    async with broker(*everything(url)) as gate:  # nobody listens there any more
        status, told = await ask(await gate.open("s"), case)
        assert (status, told) == (
            502,
            case.refused(502, "The model's API cannot be reached or broke off."),
        )


@each
async def test_a_vendor_that_refuses_the_key_is_not_quoted(case: Case):
    """Some tell the key that they refuse, or its ends."""

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"Incorrect API key: {REAL}"}}, status=401)

    async with api(refuse) as url, broker(*everything(url)) as gate:
        message = "The model's API refuses the runtime's key."
        assert await ask(await gate.open("s"), case) == (401, case.refused(401, message))


async def test_no_key_is_in_a_refusal_a_log_or_a_representation():
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://elsewhere/?key={REAL}"})

    said: list[Any] = []
    with structlog.testing.capture_logs() as logs:
        async with api(refuse) as url, broker(*everything(url)) as gate:
            endpoint = await gate.open("s", egress=Egress(models=("m-1",)))
            for case in CASES.values():
                said += [await ask(endpoint, case), await ask(endpoint, case, token=OWN)]
                said += [await ask(endpoint, case, body=b"x"), await ask(endpoint, case, method="PUT")]
            said += [repr(gate), *map(repr, everything(url)), *(repr(v.account) for v in everything(url))]
    everything_said = str(said) + str(logs)
    assert REAL not in everything_said
    assert OWN not in everything_said
    assert endpoint.token not in everything_said
    refusals = [entry for entry in logs if entry["event"] == "model_request_refused"]
    assert {entry["session_id"] for entry in refusals} == {"s"}
    assert {entry["vendor"] for entry in refusals} == {"anthropic", "openai", "gemini"}


async def test_all_vendors_come_from_the_environment_as_their_own_clients_read_it(tmp_path: Any):
    seen: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        names = ("x-api-key", "Authorization", "x-goog-api-key")
        seen.append((request.path, next(request.headers[n] for n in names if n in request.headers)))
        return web.json_response({})

    async with api(answer) as url:
        environ = {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "key-a",
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "key-o",
            "GOOGLE_GEMINI_BASE_URL": url,
            "GOOGLE_API_KEY": "key-g",
        }
        gate = Gateway.from_environment(tmp_path / "run", environ=environ)
        endpoint = await gate.open("s")
        for case in CASES.values():
            assert (await ask(endpoint, case))[0] == 200
        await gate.aclose()
    assert seen == [
        ("/v1/messages", "key-a"),
        ("/v1/chat/completions", "Bearer key-o"),
        ("/v1/responses", "Bearer key-o"),
        ("/v1beta/models/m-1:streamGenerateContent", "key-g"),
    ]


@pytest.mark.parametrize("kind", [Anthropic, OpenAI, Gemini])
@pytest.mark.parametrize(
    ("url", "key"), [("http://u:hidden@h", "k"), ("ftp://h", "k"), ("http://h", "hidden\r\nX-Evil: 1")]
)
def test_what_cannot_be_used_is_refused_without_being_quoted(kind: Any, url: str, key: str):
    with pytest.raises(ValueError, match=r"base URL|key") as caught:
        kind(url, api_key=key)
    assert "hidden" not in str(caught.value)
