"""A port inside a sandbox is shown to a browser: HTTP and WebSocket, whoever answers there."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import pytest

from agent_runtime.needs import SandboxNeeds
from agent_runtime.ports import Principal
from agent_runtime.profile import AgentProfile
from agent_runtime.transport import grants
from tests.runtime.transport.world import ANNA, BERT
from tests.stories import shown_server
from tests.stories.inside import Inside, everywhere, inside

SERVER = Path(__file__).parent / "shown_server.py"
NOBODYS = 1
"""A port that nobody listens on."""


@asynccontextmanager
async def showing(kind: str = "unsafe-subprocess", **options: Any) -> AsyncIterator[tuple[Inside, str]]:
    """A place with the server inside, and the address that shows it, without the `/` at its end."""
    async with inside(kind, files={SERVER.name: SERVER.read_text()}, **options) as place:
        url = await place.shown(await place.serve(SERVER.name))
        yield place, url.rstrip("/")


async def got(url: str, method: str = "GET", **more: Any) -> tuple[int, bytes, Any]:
    """Ask as somebody who has nothing but the address."""
    async with (
        aiohttp.ClientSession(auto_decompress=False) as http,
        http.request(method, url, allow_redirects=False, **more) as answer,
    ):
        return answer.status, await answer.read(), answer.headers


@everywhere
async def test_a_page_is_shown_with_nothing_but_its_address(kind: str) -> None:
    async with showing(kind) as (_, url):
        status, body, headers = await got(url + "/")
        assert (status, body) == (200, shown_server.PAGE)
        assert headers["Content-Type"] == "text/html"
        status, _, headers = await got(url)
        assert (status, headers["Location"]) == (308, f"/{url.split('/', 3)[3]}/")
        status, body, headers = await got(url + "/", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(len(shown_server.PAGE)))


async def test_it_runs_without_our_origins_rights() -> None:
    async with showing() as (_, url):
        _, _, headers = await got(url + "/")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("sandbox allow-scripts")
        assert "allow-same-origin" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        status, body, _ = await got(url + "/sw.js", headers={"Service-Worker": "script"})
        assert (status, json.loads(body)["code"]) == (403, "service_worker_refused")


async def test_nothing_of_ours_goes_in() -> None:
    given = {
        "Authorization": f"Bearer {ANNA}",
        "Cookie": "theirs=1",
        "X-Api-Key": "k",
        "X-Forwarded-Access-Token": "t",
        "Cf-Access-Jwt-Assertion": "j",
        "Proxy-Authorization": "p",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "h",
        "Referer": "http://console/",
        "Origin": "null",
        "X-Csrf-Token": "the page's own",
        "Accept-Language": "de",
    }
    async with showing() as (place, url):
        _, body, _ = await got(url + "/told?a=b%20c", headers=given)
        target, method, headers = json.loads(body)
        told = {name.lower(): value for name, value in headers}
        assert (target, method) == ("/told?a=b%20c", "GET")
        assert ANNA not in body.decode()
        assert told["host"].startswith("localhost:")
        assert told["origin"] == f"http://{told['host']}"
        assert told["x-csrf-token"] == "the page's own"
        assert told["accept-language"] == "de"
        kept = {
            "host",
            "origin",
            "x-csrf-token",
            "accept-language",
            "accept",
            "accept-encoding",
            "user-agent",
        }
        assert told.keys() == kept | {"connection"}
        assert place.session_id not in body.decode()


async def test_what_it_says_does_not_act_on_our_origin() -> None:
    said = [
        "Set-Cookie: a=b",
        "Clear-Site-Data: *",
        "Strict-Transport-Security: max-age=9999",
        "Service-Worker-Allowed: /",
        "Content-Security-Policy: default-src *",
        "Refresh: 0; url=/",
        "Access-Control-Allow-Credentials: true",
        "X-Accel-Redirect: /etc/passwd",
        "WWW-Authenticate: Basic",
        "Alt-Svc: h2=evil",
        "Keep-Alive: 1",
        "X-Own: kept",
        "Cache-Control: no-store",
    ]
    async with showing() as (_, url):
        status, _, headers = await got(f"{url}/say?{json.dumps(said).encode().hex()}")
        assert status == 200
        ours = {"content-security-policy", "access-control-allow-origin", "access-control-expose-headers"}
        ours |= {"x-content-type-options", "x-robots-tag", "referrer-policy", "cross-origin-resource-policy"}
        ours |= {"content-type", "content-length", "date", "server", "connection"}
        assert {name.lower() for name in headers} - ours == {"x-own", "cache-control"}
        assert headers.getall("Content-Security-Policy") == [headers["Content-Security-Policy"]]


async def test_redirections_stay_inside() -> None:
    async with showing() as (_, url):
        path = "/" + url.split("/", 3)[3]
        _, body, _ = await got(url + "/told")
        host = dict(json.loads(body)[2])["host"]
        for given, wanted in (
            ("/login?next=%2F", f"{path}/login?next=%2F"),
            ("next", "next"),
            (f"http://{host}/a/b?c", f"{path}/a/b?c"),
            (f"http://127.0.0.1:{host.partition(':')[2]}", f"{path}/"),
            ("http://evil.example/", None),
            ("//evil.example/", None),
            ("/\\evil.example", None),
            ("javascript:alert(1)", None),
            ("http://localhost:1/", None),
            ("../../api/sessions", None),
            ("/x/%2e%2E/y", None),
        ):
            status, body, headers = await got(f"{url}/redirect?{given.encode().hex()}")
            if wanted is None:
                assert (status, json.loads(body)["code"]) == (502, "preview_bad_answer"), given
            else:
                assert (status, headers["Location"]) == (302, wanted)


@everywhere
async def test_websockets_go_through_whole(kind: str) -> None:
    async with showing(kind) as (_, url), aiohttp.ClientSession() as http:
        options: dict[str, Any] = {
            "protocols": ("chat",),
            "headers": {"Origin": "null"},
            "max_msg_size": 2**25,
        }
        async with http.ws_connect(url + "/ws", **options) as socket:
            assert socket.protocol == "chat"
            assert (await socket.receive_str()).startswith("http://localhost:")
            for text in ("hello", "x" * 200, "y" * 100_000):
                await socket.send_str(text)
                assert await socket.receive_str() == text
            data = bytes(range(256)) * 2**13
            await socket.send_bytes(data)
            assert await socket.receive_bytes() == data
            await socket.close(code=4001, message=b"bye")
            assert socket.close_code == 4001


@everywhere
async def test_an_answer_streams_as_it_is_made(kind: str) -> None:
    async with (
        showing(kind) as (_, url),
        aiohttp.ClientSession() as http,
        http.get(url + "/stream") as answer,
    ):
        assert await answer.content.readany() == b"one\n"
        assert (await got(url + "/release"))[0] == 200
        assert await answer.content.readany() == b"two\n"
        assert await answer.content.read() == b""


@everywhere
async def test_large_bodies_go_both_ways(kind: str) -> None:
    size = 24 * 2**20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // 2**16):
            yield b"0123456789abcdef" * 4096

    wanted = hashlib.sha256(b"0123456789abcdef" * (size // 16)).hexdigest()
    async with showing(kind) as (_, url):
        status, body, headers = await got(f"{url}/big?{size}")
        assert (status, headers["Content-Length"]) == (200, str(size))
        assert hashlib.sha256(body).hexdigest() == wanted
        assert json.loads((await got(url + "/upload", "POST", data=pieces()))[1]) == [size, wanted]
        whole = io.BytesIO(b"0123456789abcdef" * (size // 16))
        assert json.loads((await got(url + "/upload", "POST", data=whole))[1]) == [size, wanted]


async def test_a_slow_reader_holds_up_what_is_inside_and_nobody_else() -> None:
    async with showing() as (_, url), aiohttp.ClientSession(read_bufsize=2**16) as http:
        async with http.get(f"{url}/big?{2**28}") as slow:
            assert await slow.content.readexactly(2**16)
            assert (await got(url + "/"))[0] == 200
            assert slow.content.total_bytes < 2**24
            slow.close()
        assert (await got(url + "/"))[0] == 200


@everywhere
async def test_a_hundred_at_once_are_served(kind: str) -> None:
    async with showing(kind) as (_, url):
        answers = await asyncio.gather(*(got(f"{url}/told?{n}") for n in range(100)))
        assert [status for status, _, _ in answers] == [200] * 100
        assert [json.loads(body)[0] for _, body, _ in answers] == [f"/told?{n}" for n in range(100)]


@everywhere
async def test_a_port_that_nobody_listens_on_and_a_server_that_dies_are_told(kind: str) -> None:
    async with showing(kind) as (place, url):
        nobody = await place.shown(NOBODYS)
        status, body, _ = await got(nobody)
        assert (status, json.loads(body)["code"]) == (502, "port_closed")
        status, body, _ = await got(url + "/die")
        assert (status, json.loads(body)["code"]) == (502, "preview_bad_answer")
        codes = set()
        async with asyncio.timeout(10):
            while "port_closed" not in codes:
                status, body, _ = await got(url + "/")
                codes.add(json.loads(body)["code"])
                assert status == 502, body
        assert codes <= {"port_closed", "preview_bad_answer"}


async def test_whatever_is_no_http_is_one_typed_error() -> None:
    async with showing() as (_, url):
        for name in (*shown_server.HOSTILE, "endless"):
            status, body, headers = await got(f"{url}/hostile/{name}")
            assert (status, json.loads(body)["code"]) == (502, "preview_bad_answer"), name
            assert "Set-Cookie" not in headers
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url + "/hostile/switched")
            assert refused.value.status == 502


async def test_an_answer_that_is_cut_short_does_not_look_whole() -> None:
    async with showing() as (_, url):
        for name in shown_server.CUT_SHORT:
            with pytest.raises(aiohttp.ClientError):
                await got(f"{url}/cut/{name}")


async def test_an_address_that_is_unknown_forged_expired_or_of_another_sandbox_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with showing() as (place, url):
        base, _, label = url.rpartition("/")
        forged = ("a" * 26, label[:-1] + ("a" if label[-1] != "a" else "b"), label.upper(), "x", "", "../api")
        for other in forged:
            status, body, _ = await got(f"{base}/{other}/")
            assert (status, json.loads(body)["code"]) in {
                (404, "preview_not_found"),
                (401, "unauthenticated"),
            }
        found = place.world.manager
        await found.stop_session(Principal("anna"), place.session_id)
        status, body, _ = await got(url + "/")
        assert (status, json.loads(body)["code"]) == (404, "preview_not_found")
        await place.wake()
        assert (await got(url + "/"))[0] == 404, "it is another sandbox"
        monkeypatch.setattr(grants, "LIFETIME", grants.LIFETIME * 0)
        assert (await got(await place.shown(NOBODYS)))[0] == 404, "it has expired"


async def test_only_the_owner_of_a_session_with_a_sandbox_gets_an_address() -> None:
    async with inside() as place:
        path = f"/api/sessions/{place.session_id}/ports"
        for asked, token, status, code in (
            ("8000", ANNA, 409, "sandbox_not_running"),
            ("8000", BERT, 404, "session_not_found"),
            ("8000", None, 401, "unauthenticated"),
            ("0", ANNA, 422, "invalid_request"),
            ("65536", ANNA, 422, "invalid_request"),
            ("http", ANNA, 422, "invalid_request"),
        ):
            answer = await place.world.call("POST", f"{path}/{asked}", token=token)
            assert (answer[0], answer[1]["code"]) == (status, code)
        assert await place.phase() == "dormant", "asking woke nothing"


@everywhere
async def test_a_profile_says_which_ports_may_be_opened_and_what_a_terminal_finds(kind: str) -> None:
    needs = SandboxNeeds(ports=(8001,), env={"FROM_PROFILE": "found"})
    profiles = (AgentProfile(profile_id="narrow", name="Narrow", sandbox=needs),)
    async with inside(kind, profile="narrow", profiles=profiles) as place:
        shell = await place.shell()
        await shell.run("echo it was $FROM_PROFILE", "it was found")
        for port, status in ((8001, 201), (8002, 403)):
            answer = await place.world.call("POST", f"/api/sessions/{place.session_id}/ports/{port}")
            assert answer[0] == status
        assert answer[1]["code"] == "port_not_allowed"


@everywhere
async def test_pages_of_their_own_origin_may_use_all_paths_and_keep_their_cookies(kind: str) -> None:
    async with showing(kind, preview_origin="http://*.preview.localhost:9") as (place, url):
        host = url.removeprefix("http://")
        label = host.partition(".")[0]
        assert host == f"{label}.preview.localhost:9"
        given = {"Host": host, "Cookie": f"theirs=1; preview_{label[:8]}_own=2; preview_other_x=3"}
        status, body, headers = await got(place.world.url + "/static/x.js", headers=given)
        assert (status, body) == (200, shown_server.PAGE)
        assert "Content-Security-Policy" not in headers
        _, body, _ = await got(place.world.url + "/told", headers=given | {"Authorization": f"Bearer {ANNA}"})
        told = {name.lower(): value for name, value in json.loads(body)[2]}
        assert told["cookie"] == "own=2"
        assert "authorization" not in told
        said = json.dumps(["Set-Cookie: own=2; Domain=localhost; Path=/; HttpOnly", "Set-Cookie: __Host-a=b"])
        _, _, headers = await got(f"{place.world.url}/say?{said.encode().hex()}", headers=given)
        assert headers.getall("Set-Cookie") == [f"preview_{label[:8]}_own=2; Path=/; HttpOnly"]
        _, _, headers = await got(f"{place.world.url}/redirect?{b'/a'.hex()}", headers=given)
        assert headers["Location"] == "/a"
        for path in ("/", "/api/sessions", "/socket.io/"):
            status, _, _ = await got(place.world.url + path, headers={"Host": "unknown.preview.localhost"})
            assert status == 404, "nothing of ours is there"
        for origin in (f"http://{host}", "null"):
            status, answer, _ = await place.world.call("GET", "/api/sessions", headers={"Origin": origin})
            assert (status, answer["code"]) == (401, "foreign_origin")


@everywhere
async def test_the_sessions_stop_ends_what_is_open(kind: str) -> None:
    async with (
        showing(kind) as (place, url),
        aiohttp.ClientSession() as http,
        http.ws_connect(url + "/ws") as socket,
        http.get(url + "/stream") as stream,
    ):
        assert await stream.content.readany() == b"one\n"
        await socket.receive_str()
        await place.world.call("POST", f"/api/sessions/{place.session_id}/stop")
        assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()


async def test_below_a_hosts_prefix_it_is_the_same() -> None:
    async with showing(prefix="/agents") as (place, url):
        assert "/agents/preview/" in url
        path = "/" + url.split("/", 3)[3]
        assert (await got(url + "/"))[:2] == (200, shown_server.PAGE)
        _, _, headers = await got(f"{url}/redirect?{b'/a'.hex()}")
        assert headers["Location"] == f"{path}/a"
        assert (await got(urljoin(url, "/host")))[1] == b"the host's own page"
    async with showing(prefix="/agents", preview_origin="http://*.preview.localhost") as (place, url):
        host = url.removeprefix("http://")
        for path in ("/", "/agents/api/sessions", "/host"):
            address = urljoin(place.world.url, path)
            assert (await got(address, headers={"Host": host}))[:2] == (200, shown_server.PAGE)


async def test_no_request_whatsoever_is_an_internal_error() -> None:
    async with showing() as (place, url):
        host, port = place.world.url.removeprefix("http://").split(":")
        path = "/" + url.split("/", 3)[3]
        for target in (
            *(f"{path}/", f"{path}", f"{path}?", f"{path}//", f"{path}/%00", f"{path}/\xff", f"{path}/a b"),
            *(f"{path}/../../api", f"{path}/%zz", f"{path}/#x", f"http://x{path}/", "/preview/", "/preview"),
            *("/preview//", "/preview/%2e%2e/", f"/preview/{'a' * 26}", f"/preview/{'a' * 9000}", "*"),
        ):
            for head in (
                b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                b"GET %s HTTP/1.0\r\n\r\n",
                b"get %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                b"CONNECT %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
                b"GET %s HTTP/1.1\r\nHost: x\r\nX-\xff: \xfe\r\nConnection: close\r\n\r\n",
                b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
                b"GET %s HTTP/1.1\r\nHost: x\r\nOrigin: \xff\r\nConnection: close\r\n\r\n",
                b"GET %s HTTP/1.1\r\nHost: [::\r\nConnection: close\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(head.replace(b"%s", target.encode("latin-1")))
                answer = await reader.read(2**16)
                writer.transport.abort()
                assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500")), (target, head, answer)


async def test_addresses_are_in_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    async with showing() as (_, url):
        assert (await got(url + "/told?secret=1"))[0] == 200
        label = url.rpartition("/")[2]
    assert label not in capsys.readouterr().out
