import asyncio
import json
import os
import shutil
import stat
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent_runtime.errors import SandboxFault
from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import (
    MESSAGE,
    REAL_KEY,
    agent,
    api,
    gateway,
)


async def test_opening_again_gives_the_same_endpoint_and_a_restart_too():
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"usage": {"output_tokens": 1}})

    async with api(answer) as url, gateway(url) as first:
        before = await first.open("s")
        assert await first.open("s") == before
        run_dir = before.socket.parent.parent
        # `first` is left as a killed process leaves it: its socket lies there and is not removed.
        async with gateway(url, run_dir=run_dir) as second:
            assert await second.open("s") == before
            async with agent(before) as client:
                await client.post("/v1/messages", json=MESSAGE)
            assert second.usage("s") == Usage(output_tokens=1)
            await first.close("s")
            assert before.socket.exists(), "an old process does not remove the socket of a new one"


async def test_another_run_dir_gives_other_tokens():
    async with gateway("http://127.0.0.1:9") as one, gateway("http://127.0.0.1:9") as two:
        assert (await one.open("s")).token != (await two.open("s")).token


async def test_the_socket_is_open_to_all_inside_a_directory_that_is_open_to_none():
    async with gateway("http://127.0.0.1:9") as gate:
        endpoint = await gate.open("s")
        run_dir = endpoint.socket.parent.parent
        assert stat.S_IMODE(endpoint.socket.stat().st_mode) == 0o666
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        assert [path.name for path in endpoint.socket.parent.iterdir()] == [endpoint.socket.name]
        secrets = [path for path in run_dir.iterdir() if path.is_file()]
        assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600]


async def test_closing_cuts_what_runs_and_opening_again_serves_again():
    begun = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with api(answer) as url, gateway(url) as gate:
        endpoint = await gate.open("s")
        async with agent(endpoint) as client, asyncio.TaskGroup() as group:

            async def ask() -> None:
                with pytest.raises(aiohttp.ClientError):
                    await client.post("/v1/messages", json=MESSAGE)

            group.create_task(ask())
            await begun.wait()
            await gate.close("s")
            await gate.close("s")
        assert not endpoint.socket.exists()
        assert endpoint.socket.parent.is_dir(), "a sandbox may still have the directory mounted"
        assert await gate.open("s") == endpoint
        async with agent(endpoint, token="wrong") as client, client.post("/v1/messages") as response:
            assert response.status == 401


async def test_a_run_dir_with_too_long_a_path_has_its_sockets_in_a_short_private_place(tmp_path: Path):
    run_dir = tmp_path / ("d" * 100)
    async with gateway("http://127.0.0.1:9", run_dir=run_dir) as gate:
        endpoint = await gate.open("s")
        place = endpoint.socket.parent.parent
        try:
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
            async with agent(endpoint, token="wrong") as client, client.post("/v1/messages") as response:
                assert response.status == 401
            async with gateway("http://127.0.0.1:9", run_dir=run_dir) as restarted:
                assert await restarted.open("s") == endpoint
        finally:
            shutil.rmtree(place)


@pytest.mark.parametrize(
    "url", ["ftp://x", "", "localhost:80", "http://", "http://u:hidden@h", "http://h?key=hidden"]
)
async def test_an_address_that_cannot_be_used_is_refused_without_being_quoted(url: str):
    with pytest.raises(ValueError, match="base URL") as caught:
        Anthropic(url, api_key="k")
    assert "hidden" not in str(caught.value)


async def test_a_key_that_no_header_can_carry_is_refused_without_being_quoted():
    with pytest.raises(ValueError, match="key") as caught:
        Anthropic("http://h", api_key="hidden\r\nX-Evil: 1")
    assert "hidden" not in str(caught.value)


async def test_the_environment_gives_address_and_credential():
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({})

    async with api(answer) as url, gateway("http://unused") as lender:
        run_dir = (await lender.open("x")).socket.parent.parent
        environ = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "t", "ANTHROPIC_API_KEY": "k"}
        gate = Gateway.from_environment(run_dir, environ=environ)
        async with agent(await gate.open("s")) as client:
            await client.post("/v1/messages", data=json.dumps(MESSAGE))
        await gate.aclose()
        assert REAL_KEY not in repr(gate)
    assert seen == ["Bearer t"]


async def test_directories_of_sessions_that_closed_long_ago_are_swept_and_those_in_use_are_not():
    long_ago = (1.0, 1.0)
    async with gateway("http://127.0.0.1:9") as first:
        closed, used = await first.open("closed"), await first.open("used")
        await first.close("closed")
        for endpoint in (closed, used):
            os.utime(endpoint.socket.parent, long_ago)
        async with gateway("http://127.0.0.1:9", run_dir=used.socket.parent.parent) as second:
            await second.open("other")
        assert not closed.socket.parent.exists()
        assert used.socket.exists()


async def test_a_damaged_secret_is_a_plain_error_and_gives_no_tokens():
    async with gateway("http://127.0.0.1:9") as first:
        run_dir = (await first.open("s")).socket.parent.parent
        (run_dir / "key").write_bytes(b"short")
        async with gateway("http://127.0.0.1:9", run_dir=run_dir) as second:
            with pytest.raises(SandboxFault, match="damaged"):
                await second.open("s")


async def test_a_run_dir_that_is_no_directory_is_a_plain_error(tmp_path: Path):
    (tmp_path / "f").write_text("")
    async with gateway("http://127.0.0.1:9", run_dir=tmp_path / "f" / "run") as gate:
        with pytest.raises(SandboxFault, match="cannot use") as caught:
            await gate.open("s")
        assert str(tmp_path) not in caught.value.detail
