"""Each vendor's protocol through the one socket: credentials, paths, models, usage, refusals."""

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from aiohttp import web

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.gemini import Gemini
from agent_runtime.gateway.openai import OpenAI
from agent_runtime.gateway.relay import MAX_BODY_BYTES, Patience
from agent_runtime.gateway.vendor import Vendor
from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import agent, api, broker, no_call, raw_api

REAL = "the-real-key-of-the-host"
OWN = "a-key-that-the-agent-brought"


@dataclass(frozen=True)
class Case:
    """One request of a protocol, and how its clients see things."""

    vendor: Callable[[str], Vendor]
    target: str
    arrives_at: str
    shown: Callable[[str], dict[str, str]]
    real: tuple[str, str]
    body: dict[str, Any]
    whole: Any
    stream: list[Any]
    usage: Usage
    refused: Callable[[int, str], dict[str, Any]]


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 400: "invalid_request_error"}
    kinds |= {413: "request_too_large", 504: "timeout_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


def openai_error(status: int, message: str) -> dict[str, Any]:
    codes = {401: "invalid_api_key", 403: "permission_denied", 413: "request_too_large"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": codes.get(status)}}


def gemini_error(status: int, message: str) -> dict[str, Any]:
    names = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 502: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
    return {"error": {"code": status, "message": message, "status": names.get(status, "INVALID_ARGUMENT")}}


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 9,
    "total_tokens": 109,
    "prompt_tokens_details": {"cached_tokens": 60},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "output_tokens": 9,
    "total_tokens": 109,
    "input_tokens_details": {"cached_tokens": 60},
}
GEMINI_USAGE = {
    "promptTokenCount": 90,
    "toolUsePromptTokenCount": 10,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 4,
}
USED = Usage(input_tokens=40, cache_read_tokens=60, output_tokens=9)
ANTHROPIC_USAGE = {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 9}

CASES = {
    "messages": Case(
        vendor=lambda url: Anthropic(url, api_key=REAL),
        target="/v1/messages",
        arrives_at="/v1/messages",
        shown=lambda token: {"x-api-key": token},
        real=("x-api-key", REAL),
        body={"model": "m-1", "messages": []},
        whole={"type": "message", "usage": ANTHROPIC_USAGE},
        stream=[
            {"type": "message_start", "message": {"usage": {**ANTHROPIC_USAGE, "output_tokens": 1}}},
            {"type": "message_delta", "usage": {"output_tokens": 9}},
        ],
        usage=USED,
        refused=anthropic_error,
    ),
    "chat": Case(
        vendor=lambda url: OpenAI(url + "/v1", api_key=REAL),
        target="/v1/chat/completions",
        arrives_at="/v1/chat/completions",
        shown=lambda token: {"Authorization": f"Bearer {token}"},
        real=("Authorization", f"Bearer {REAL}"),
        body={"messages": [], "model": "m-1", "stream_options": {"include_usage": True}},
        whole={"object": "chat.completion", "choices": [], "usage": CHAT_USAGE},
        stream=[
            {"choices": [{"delta": {"content": '"usage"'}}], "usage": None},
            {"choices": [], "usage": CHAT_USAGE},
        ],
        usage=USED,
        refused=openai_error,
    ),
    "responses": Case(
        vendor=lambda url: OpenAI(url + "/prefix/v1/", api_key=REAL),
        target="/v1/responses",
        arrives_at="/prefix/v1/responses",
        shown=lambda token: {"Authorization": f"Bearer {token}"},
        real=("Authorization", f"Bearer {REAL}"),
        body={"model": "m-1", "input": [], "stream": True},
        whole={"object": "response", "output": [], "usage": RESPONSES_USAGE},
        stream=[
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.output_text.delta", "delta": '"usage"'},
            {"type": "response.completed", "response": {"output": [], "usage": RESPONSES_USAGE}},
        ],
        usage=USED,
        refused=openai_error,
    ),
    "gemini": Case(
        vendor=lambda url: Gemini(url, api_key=REAL),
        target="/v1beta/models/m-1:streamGenerateContent?alt=sse",
        arrives_at="/v1beta/models/m-1:streamGenerateContent?alt=sse",
        shown=lambda token: {"x-goog-api-key": token},
        real=("x-goog-api-key", REAL),
        body={"contents": []},
        whole=[
            {"candidates": [], "usageMetadata": {"promptTokenCount": 90}},
            {"candidates": [], "usageMetadata": GEMINI_USAGE},
        ],
        stream=[
            {"candidates": [], "usageMetadata": {"promptTokenCount": 90}},
            {"candidates": [], "usageMetadata": GEMINI_USAGE},
        ],
        usage=USED,
        refused=gemini_error,
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def everything(url: str) -> list[Vendor]:
    """All vendors, at one address: their paths are disjoint."""
    return [Anthropic(url, api_key=REAL), OpenAI(url + "/v1", api_key=REAL), Gemini(url, api_key=REAL)]


async def ask(
    endpoint: GatewayEndpoint, case: Case, *, token: str | None = None, **changes: Any
) -> tuple[int, Any]:
    """Status and JSON of an answer. `changes`: target, method, body, headers."""
    shown = case.shown(endpoint.token if token is None else token)
    target, method = changes.get("target", case.target), changes.get("method", "POST")
    async with agent(endpoint, token="") as client:
        client.headers.pop("x-api-key")
        body = changes.get("body", case.body)
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {**shown, "Content-Type": "application/json", **changes.get("headers", {})}
        async with client.request(method, target, headers=headers, **given) as response:
            return response.status, await response.json(content_type=None)


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
async def test_a_model_that_the_session_may_not_use_never_reaches_the_vendor(case: Case):
    served: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        served.append(request.raw_path)
        return web.json_response({})

    async with api(answer) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s", egress=Egress(models=("m-*",)))
        assert (await ask(endpoint, case))[0] == 200
        await gate.open("s", egress=Egress(models=("other", "n-*")))
        message = "The model 'm-1' is not among those of this session."
        assert await ask(endpoint, case) == (403, case.refused(403, message))
        await gate.open("s", egress=Egress(models=("m-1",)))
        assert (await ask(endpoint, case))[0] == 200
        await gate.open("s")
        assert (await ask(endpoint, case))[0] == 200
    assert len(served) == 3


@pytest.mark.parametrize("name", ["messages", "chat", "responses"])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b"nonsense", b'{"model":"m-1","model":"x"}', b'{"a":1}', b"\x1f\x8b\x08\x00"]
)
async def test_a_body_in_which_no_model_is_found_is_refused_where_models_are_restricted(
    name: str, body: bytes
):
    async with api(no_call) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s", egress=Egress(models=("m-1",)))
        status, told = await ask(endpoint, CASES[name], body=body)
        assert status == 400
        assert told == CASES[name].refused(400, told["error"]["message"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "zstd"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-7"},
        {"Content-Type": ""},
    ],
)
async def test_a_body_that_its_headers_let_be_read_otherwise_is_refused_where_models_are_restricted(
    headers: dict[str, str],
):
    async with api(no_call) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s", egress=Egress(models=("m-1",)))
        body = b'{"model":"m-1","x":"&model=forbidden&"}'
        for name in ("messages", "responses"):
            status, told = await ask(endpoint, CASES[name], body=body, headers=headers)
            assert status == 400
            assert "not plain JSON" in told["error"]["message"]


@pytest.mark.parametrize("model", ["m-1", "forbidden"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_model_that_is_named_after_megabytes_is_found_and_none_of_it_is_kept(
    model: str, chunked: bool
):
    """The vendor hears of the request, but has it whole only where the model may be used."""
    whole: list[int] = []
    body = json.dumps({"messages": ["x" * (8 << 20)], "model": model}).encode()

    async def answer(request: web.Request) -> web.Response:
        whole.append(len(await request.read()))
        return web.json_response({})

    async def pieces():
        for at in range(0, len(body), 1 << 20):
            yield body[at : at + (1 << 20)]

    async with api(answer) as url, broker(*everything(url)) as gate:
        endpoint = await gate.open("s", egress=Egress(models=("m-1",)))
        async with agent(endpoint) as client:
            headers = {**CASES["chat"].shown(endpoint.token), "Content-Type": "application/json"}
            data = pieces() if chunked else io.BytesIO(body)
            async with client.post("/v1/chat/completions", data=data, headers=headers) as response:
                assert response.status == (200 if model == "m-1" else 403)
        status, _ = await ask(endpoint, CASES["chat"])
        assert status == 200
    assert whole == ([len(body)] if model == "m-1" else []) + [len(json.dumps(CASES["chat"].body))]


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
