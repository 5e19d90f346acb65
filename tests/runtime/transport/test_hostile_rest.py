"""What comes over HTTP from somebody careless or malicious: a problem object, never a 500."""

import asyncio
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.transport.routes import ROUTES
from tests.runtime.transport.world import ANNA, world

JSON_HEADERS = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "agentProfileRef"),
        ({"agentProfileRef": 7}, "agentProfileRef"),
        ({"agentProfileRef": ""}, "agentProfileRef"),
        ({"agentProfileRef": "default", "wat": 1, "foo": 2}, "wat: unknown field; foo: unknown field"),
        ({"agentProfileRef": "default", "agent_profile_ref": "x"}, "agent_profile_ref"),
        ({"agentProfileRef": "default", "sessionOptions": []}, "sessionOptions"),
        ({"agentProfileRef": "default", "sessionOptions": {"modle": "x"}}, "modle"),
        ({"agentProfileRef": "default", "metadata": "x"}, "metadata"),
        ({"agentProfileRef": "default", "name": "x" * 300}, "name"),
        ({"agentProfileRef": "default", "message": ""}, "message"),
        ({"agentProfileRef": "default", "message": 7}, "message"),
        ({"agentProfileRef": "default", "architecture": "abacus"}, "abacus"),
        ({"agentProfileRef": "default", "workspaceFiles": [{"path": "a"}]}, "workspaceFiles"),
        (
            {"agentProfileRef": "default", "workspaceFiles": [{"path": "../a", "content": ""}]},
            "path",
        ),
        (
            {
                "agentProfileRef": "default",
                "workspaceFiles": [{"path": "a", "content": "!", "encoding": "base64"}],
            },
            "base64",
        ),
        ([], "payload"),
        ("x", "payload"),
        (None, "payload"),
    ],
)
async def test_a_wrong_field_is_named(body: Any, named: str) -> None:
    async with world() as w:
        data = json.dumps(body).encode()
        status, problem, _ = await w.call("POST", "/api/sessions", data=data, headers=JSON_HEADERS)
        assert status == 422, problem
        assert problem["status"] == 422
        assert named in problem["detail"]
        assert (await w.call("GET", "/api/sessions"))[1] == {"sessions": []}


async def test_an_unknown_profile_is_not_found() -> None:
    async with world() as w:
        status, problem, _ = await w.call("POST", "/api/sessions", {"agentProfileRef": "nobody"})
        assert (status, problem["code"]) == (404, "profile_not_found")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("", 422),
        ("   \n", 422),
        ([], 422),
        ([{"type": "text"}], 422),
        ([{"type": "song", "text": "x"}], 422),
        ([{"type": "image", "source": {"type": "base64", "mediaType": "image/png", "data": "%"}}], 422),
        ({"text": "x"}, 422),
        (None, 422),
        ("x" * 1_048_577, 413),
        ("ü" * 600_000, 413),
        ("x" * 1_048_576, 202),
        ("\x00\u200b\U0001f600", 202),
    ],
)
async def test_what_a_message_may_be(content: Any, status: int) -> None:
    async with world() as w:
        session = await w.session()
        body = io.BytesIO(json.dumps({"content": content}).encode())
        answer = await w.call("POST", f"/api/sessions/{session}/messages", data=body, headers=JSON_HEADERS)
        assert answer[0] == status, answer[1]


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"{", JSON_HEADERS, 400, "malformed_json"),
        (b"\xff\xfe", JSON_HEADERS, 400, "malformed_json"),
        (b'{"content": "\\ud800"}', JSON_HEADERS, 400, "malformed_json"),
        (b'{"content": NaN}', JSON_HEADERS, 400, "malformed_json"),
        (b"[" * 50_000, JSON_HEADERS, 400, "malformed_json"),
        (b'{"content": "x"}', {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"content": "x"}', {"Content-Type": "nonsense"}, 415, "unsupported_media_type"),
        (b"content=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"no gzip", JSON_HEADERS | {"Content-Encoding": "gzip"}, 400, "malformed_request"),
        (b" " * 8_000_000, JSON_HEADERS, 413, "body_too_large"),
        (b'{"content": "x", "whenBusy": "never"}', JSON_HEADERS, 422, "invalid_request"),
        (b'{"content": "x", "messageId": ""}', JSON_HEADERS, 422, "invalid_request"),
    ],
)
async def test_a_bad_body_is_refused(data: bytes, headers: dict[str, str], status: int, code: str) -> None:
    async with world() as w:
        session = await w.session()
        got, problem, kind = await w.call(
            "POST", f"/api/sessions/{session}/messages", data=io.BytesIO(data), headers=headers
        )
        assert (got, problem["code"], problem["status"]) == (status, code, status)
        assert kind["Content-Type"].startswith("application/problem+json")


async def test_a_body_without_a_stated_length_is_bounded_too() -> None:
    async with world() as w:
        session = await w.session()

        async def endless() -> Any:
            while True:
                yield b" " * 65_536

        status, problem, _ = await w.call(
            "POST", f"/api/sessions/{session}/messages", data=endless(), headers=JSON_HEADERS
        )
        assert (status, problem["code"]) == (413, "body_too_large")


async def test_a_body_that_never_comes_is_given_up() -> None:
    async with world(body_timeout_s=0.1) as w:
        session = await w.session()

        async def never() -> Any:
            yield b"{"
            await asyncio.sleep(30)

        status, problem, _ = await w.call(
            "POST", f"/api/sessions/{session}/messages", data=never(), headers=JSON_HEADERS
        )
        assert (status, problem["code"]) == (408, "request_timeout")


async def test_deep_nesting_is_refused_and_flat_oddities_come_back_as_they_were() -> None:
    async with world() as w:
        deep: Any = {}
        for _ in range(100):
            deep = {"d": deep}
        status, problem, _ = await w.call(
            "POST", "/api/sessions", {"agentProfileRef": "default", "metadata": deep}
        )
        assert status == 422
        assert "metadata" in problem["detail"]
        odd = {"": None, "a b": [1.5, -(2**63), 2**64 - 1, True], "snake_key": {"Ünï": "\x00"}}
        session = await w.session(metadata=odd)
        assert (await w.call("GET", f"/api/sessions/{session}"))[1]["session"]["metadata"] == odd


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if not r.is_public], ids=lambda r: f"{r.method} {r.path}"
)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic YTpi", "Bearer " + "ü" * 9])
async def test_nothing_is_answered_without_a_token(route: Any, authorization: str | None) -> None:
    async with world() as w:
        path = route.path.replace("{path:.+}", "a").replace("{sessionId}", "s").replace("{profileId}", "p")
        headers = {"Authorization": authorization} if authorization else {}
        status, problem, answered = await w.call(route.method, path, token=None, headers=headers)
        assert (status, problem["code"]) == (401, "unauthenticated")
        assert answered["WWW-Authenticate"] == "Bearer"


async def test_paths_and_methods_that_do_not_exist() -> None:
    async with world() as w:
        for path in (
            "/nothing",
            "/api/nothing",
            "/api/sessions/a/b/c",
            "/api/sessions/",
            "//",
            "/%00",
        ):
            status, problem, _ = await w.call("GET", path)
            assert (status, problem["code"]) == (404, "route_not_found")
        assert (await w.call("GET", "/api/nothing", token=None))[0] == 401
        status, problem, headers = await w.call("PUT", "/api/sessions")
        assert (status, problem["code"], headers["Allow"]) == (405, "method_not_allowed", "GET, HEAD, POST")
        assert (await w.call("PUT", "/health", token=None))[0] == 405


@pytest.mark.parametrize("session", ["x", "%00", "%ff", "%F0%9F%98%80", "x" * 500, "..", "a%2Fb", "'--"])
async def test_odd_session_ids_are_not_found(session: str) -> None:
    async with world() as w:
        for tail in ("", "/blocks", "/files", "/turns", "/events"):
            status, problem, _ = await w.call("GET", f"/api/sessions/{session}{tail}")
            assert status == 404
            assert problem["code"] in {"session_not_found", "route_not_found"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1000",
        "limit=x",
        "limit=1.5",
        "before=-1",
        "limit=99999999999999999999999",
    ],
)
async def test_paging_is_checked(query: str) -> None:
    async with world() as w:
        session = await w.session()
        status, problem, _ = await w.call("GET", f"/api/sessions/{session}/turns?{query}")
        assert (status, problem["category"]) == (422, "validation")


async def test_a_made_up_cursor_and_block_are_refused_by_name() -> None:
    async with world() as w:
        session = await w.session()
        status, problem, _ = await w.call("GET", "/api/sessions?cursor=made-up")
        assert (status, problem["code"]) == (422, "invalid_cursor")
        status, problem, _ = await w.call("GET", f"/api/sessions/{session}/blocks?before=made-up")
        assert (status, problem["code"]) == (404, "block_not_found")


@pytest.mark.parametrize("key", ["", "x" * 300, "ümlaut"])
async def test_an_odd_idempotency_key_is_refused(key: str) -> None:
    async with world() as w:
        status, _, _ = await w.call(
            "POST", "/api/sessions", {"agentProfileRef": "default"}, headers={"Idempotency-Key": key}
        )
        assert status == 422


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    [
        "agentProfileRef",
        "content",
        "messageId",
        "metadata",
        "name",
        "sessionOptions",
        "turnId",
        "message",
        "type",
    ]
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from([route for route in ROUTES if "{path" not in route.path]),
            st.sampled_from(["real", "%00", "x", "%C3%28"]),
            st.one_of(
                st.dictionaries(_FIELDS, _JSON, max_size=4).map(json.dumps).map(str.encode),
                _JSON.map(json.dumps).map(str.encode),
                st.binary(max_size=20),
            ),
            st.sampled_from([JSON_HEADERS, {}, {"Content-Type": "x/y"}, {"Accept": "text/event-stream"}]),
            st.text("abc=&%0+[]", max_size=12),
        ),
        min_size=30,
        max_size=30,
    )
)
def test_no_request_whatsoever_is_an_internal_error(requests: list[tuple[Any, ...]]) -> None:
    async def story() -> None:
        async with world() as w:
            real = await w.session()
            for route, session, body, headers, query in requests:
                if route.path.endswith(("/events", "/sessions/{sessionId}")) and route.method != "PATCH":
                    continue  # endless, or the end of the session that the rest is about
                path = route.path.replace("{sessionId}", real if session == "real" else session)
                path = path.replace("{profileId}", session)
                async with w.http.request(
                    route.method,
                    f"{w.url}{path}?{query}",
                    data=body if route.method != "GET" else None,
                    headers={"Authorization": f"Bearer {ANNA}", "Content-Type": "application/json"} | headers,
                ) as answer:
                    assert answer.status != 500, (route.path, body)

    asyncio.run(story())
