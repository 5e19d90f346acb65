"""The application around the routes: pages, health, mounting, origins, who may call."""

import re

import pytest

from agent_runtime.config import RuntimeConfig
from agent_runtime.ports import Credentials
from agent_runtime.transport.auth import OpenAccess, TokenAuthenticator, check_exposure, new_token
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.runtime.transport.world import ANNA, NoGateway, ScriptedAgent, ScriptedSandboxes, start, world
from tests.waiting import eventually


async def test_health_warns_of_missing_isolation_and_ready_tells_each_part() -> None:
    async with world() as w:
        status, health, _ = await w.call("GET", "/health", token=None)
        assert (status, health["status"], health["isolation"]) == (200, "ok", "none")
        assert len(health["warnings"]) == 1
        status, ready, _ = await w.call("GET", "/ready", token=None)
        assert (status, ready["ok"]) == (200, True)
        assert ready["parts"]["sandboxes"]["provider"] == "scripted"
        assert ready["parts"]["sandboxes"]["enforces"] == []


async def test_metrics_count_by_route_and_never_by_what_clients_make_up() -> None:
    async with world() as w:
        await w.call("GET", "/api/sessions/secret-session-name")
        await w.call("GET", "/made-up-path")
        async with w.viewer() as viewer:
            await viewer.ask("made-up-command", {})
            _, text, headers = await w.call("GET", "/metrics")
        assert headers["Content-Type"].startswith("text/plain")
        assert b'route="/api/sessions/{sessionId}",status="404"' in text
        assert b"agent_runtime_socket_connections 1.0" in text
        for of_the_process in (b"sandboxes_reaped_total", b"pool_claims_total", b"model_tokens_total"):
            assert b"# HELP agent_runtime_" + of_the_process in text
        assert b"made-up" not in text
        assert b"secret" not in text


async def test_the_openapi_document_resolves_and_names_every_route() -> None:
    async with world() as w:
        _, document, _ = await w.call("GET", "/api/openapi.json", token=None)
        text = str(document)
        schemas = document["components"]["schemas"]
        assert {
            name.split("/")[-1] for name in re.findall(r"#/components/schemas/[\w-]+", text)
        } <= schemas.keys()
        assert {"Problem", "Envelope", "ClientSession", "CreateSession", "WorkspaceFile"} <= schemas.keys()
        assert document["paths"]["/api/sessions"]["post"]["responses"].keys() == {"201", "default"}
        assert "sessionId" in schemas["Envelope"]["required"]
        operations = [
            operation["operationId"] for path in document["paths"].values() for operation in path.values()
        ]
        assert len(set(operations)) == len(operations)


async def test_the_docs_page_runs_no_script_and_needs_no_other_server() -> None:
    async with world() as w:
        status, page, headers = await w.call("GET", "/docs", token=None)
        assert status == 200
        assert b"/api/sessions/{sessionId}/messages" in page
        assert b"<script" not in page
        assert b"http://" not in page.replace(b"http://json-schema", b"")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_the_console_is_served_with_a_strict_policy() -> None:
    async with world() as w:
        status, page, headers = await w.call("GET", "/", token=None)
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        named = re.findall(rb'(?:src|href)="([\w./-]+)"', page)
        assert named
        for name in named:
            status, _, headers = await w.call("GET", f"/{name.decode()}", token=None)
            assert status == 200, name
        assert (await w.call("GET", "/package.json", token=None))[0] == 404


async def test_a_host_mounts_the_runtime_below_a_prefix() -> None:
    async with world(prefix="/agents") as w:
        assert (await w.call("GET", "/host"))[1] == b"the host's own page"
        status, session, headers = await w.call(
            "POST", "/agents/api/sessions", {"agentProfileRef": "default"}
        )
        assert (status, headers["Location"]) == (201, f"/agents/api/sessions/{session['sessionId']}")
        async with w.viewer(socketio_path="agents/socket.io") as viewer:
            assert (await viewer.ask("session:join", session["sessionId"]))["ok"] is True
            await w.log.append(session["sessionId"], [start("a")])
            await eventually(lambda: viewer.seqs)
        assert (await w.call("GET", "/agents/nothing"))[1]["code"] == "route_not_found"
        assert (await w.call("GET", "/agents/api/x", token=None))[0] == 401
        assert (await w.call("GET", "/agents/api/openapi.json"))[1]["servers"] == [{"url": "/agents"}]
        assert (await w.call("GET", "/api/sessions"))[0] == 404


async def test_a_host_may_give_the_runtime_all_that_it_does_not_serve() -> None:
    async with world(prefix="") as w:
        assert (await w.call("GET", "/host"))[1] == b"the host's own page"
        assert (await w.call("GET", "/api/sessions"))[1] == {"sessions": []}
        async with w.viewer() as viewer:
            assert (await viewer.ask("sessions:watch"))["ok"] is True


async def test_a_page_of_a_named_origin_may_call_and_no_other() -> None:
    async with world(cors_origins=("https://good.example",)) as w:
        asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
        for origin, allowed in (("https://good.example", True), ("https://evil.example", False)):
            headers = {"Origin": origin}
            _, _, preflight = await w.call("OPTIONS", "/api/sessions", token=None, headers=headers | asked)
            _, _, answer = await w.call("GET", "/api/sessions", headers=headers)
            _, _, refused = await w.call("GET", "/api/sessions/none", headers=headers)
            for got in (preflight, answer, refused):
                assert got.get("Access-Control-Allow-Origin") == (origin if allowed else None)


async def test_open_access_is_for_this_machines_own_names_only() -> None:
    async with world(authenticator=None, open_access=True) as w:
        assert (await w.call("GET", "/api/sessions", token=None))[0] == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            assert (await w.call("GET", "/api/sessions", token=None, headers=headers))[0] == 401
        async with w.viewer(token=None) as viewer:
            assert (await viewer.ask("sessions:watch"))["ok"] is True


async def test_without_an_authenticator_nobody_gets_in_by_accident() -> None:
    async with world(authenticator=None) as w:
        assert (await w.call("GET", "/api/sessions", token=None))[0] == 401
        assert (await w.call("GET", "/api/sessions", token=ANNA))[0] == 401


def test_open_access_is_refused_where_others_could_call() -> None:
    config = RuntimeConfig(
        persistence=MemoryPersistence(),
        sandboxes=ScriptedSandboxes(),
        agents=(ScriptedAgent(),),
        gateway=NoGateway(),
        log=MemoryEventLog(),
        open_access=True,
    )
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        check_exposure(config, host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "", "localhost.evil.example"):
        with pytest.raises(ValueError, match="loopback"):
            check_exposure(config, host)


@pytest.mark.parametrize("shown", [None, "", "wrong", "ümlaut\ud800", "t" * 100_000])
async def test_a_token_is_right_or_wrong(shown: str | None) -> None:
    token = new_token()
    known = TokenAuthenticator(token, owner="anna")
    assert await known.authenticate(Credentials(shown)) is None
    principal = await known.authenticate(Credentials(token))
    assert principal is not None
    assert principal.owner == "anna"
    with pytest.raises(ValueError, match="16"):
        TokenAuthenticator("short")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "[::1"}, {"Host": ""}, {}, {"Host": "localhost@evil.example"}, {"Host": "127.0.0.1.evil"}],
)
async def test_open_access_knows_a_foreign_name_however_it_is_written(headers: dict[str, str]) -> None:
    assert await OpenAccess().authenticate(Credentials(None, headers)) is None
