"""A session that may use some models only, whichever vendor's protocol it speaks."""

import io
import json

import pytest
from aiohttp import web

from agent_runtime.needs import Egress
from tests.runtime.gateway.protocols import CASES, Case, ask, each, everything
from tests.runtime.gateway.upstream import agent, api, broker, no_call


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
