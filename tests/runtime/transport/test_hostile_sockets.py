"""What comes over Socket.IO from somebody careless or malicious: a typed error, and nothing else happens."""

import asyncio
import contextlib
import io
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent_runtime.transport import engine
from agent_runtime.transport.engine import MALFORMED, StrictPacket
from tests.runtime.transport.world import ANNA, BERT, World, delta, start, world
from tests.waiting import eventually

_ENDED = {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
COMMANDS = [
    "session:join",
    "session:leave",
    "session:send",
    "session:interrupt",
    "sessions:watch",
    "sessions:unwatch",
]


@asynccontextmanager
async def raw_socket(w: World, token: str | None = ANNA) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A websocket that speaks Engine.IO by hand; with a token it is connected."""
    url = f"{w.url}/socket.io/?EIO=4&transport=websocket"
    async with w.http.ws_connect(url, max_msg_size=0) as socket:
        assert (await socket.receive_str())[0] == "0"
        if token is not None:
            await socket.send_str("40" + json.dumps({"token": token}))
            assert (await socket.receive_str())[:2] == "40"
        yield socket


async def ack(socket: aiohttp.ClientWebSocketResponse, packet: str) -> Any:
    """Send `42<id>[...]` and wait for its ack."""
    await socket.send_str(packet)
    wanted = "43" + packet[2 : packet.index("[")] + "["
    async with asyncio.timeout(20):
        while True:
            answer = await socket.receive_str()
            if answer.startswith(wanted):
                return json.loads(answer[answer.index("[") :])[0]


@pytest.mark.parametrize("command", COMMANDS[:4])
@pytest.mark.parametrize(
    "payload",
    [None, 7, True, [], {}, {"sessionId": None}, {"sessionId": 7}, {"sessionId": "s", "wat": 1}, "\x00"],
)
async def test_a_malformed_payload_is_answered_by_a_typed_error(command: str, payload: Any) -> None:
    async with world() as w, w.viewer() as viewer:
        error = (await viewer.ask(command, payload))["error"]
        assert error["category"] in {"validation", "not_found"}
        assert error["status"] in {404, 422}
        assert (await viewer.ask("sessions:watch"))["ok"] is True


async def test_an_unknown_field_is_named() -> None:
    async with world() as w, w.viewer() as viewer:
        answer = await viewer.ask("session:join", {"sessionId": "s", "postion": "a:1"})
        assert answer["error"]["code"] == "invalid_request"
        assert "postion: unknown field" in answer["error"]["detail"]


async def test_sessions_of_others_look_absent_to_every_command() -> None:
    async with world() as w, w.viewer(BERT) as bert:
        session = await w.session()
        for command, more in [
            ("session:join", {}),
            ("session:join", {"position": "a:0"}),
            ("session:send", {"content": "x", "messageId": "m"}),
            ("session:interrupt", {}),
        ]:
            answer = await bert.ask(command, {"sessionId": session} | more)
            assert answer["error"]["code"] == "session_not_found"
        await w.log.append(session, [start("secret")])
        assert await bert.ask("session:leave", session) == {"ok": True}
        assert bert.heard == []


async def test_an_unknown_command_is_answered_too() -> None:
    async with world() as w, w.viewer() as viewer:
        for name in ("session:destroy", "message", "*", "connect", "disconnect", "x" * 5000, ""):
            answer = await viewer.client.call(name, {}, timeout=20)
            assert answer["error"]["code"] == "unknown_command"
            assert len(answer["error"]["detail"]) < 200


async def test_a_client_cannot_run_the_servers_own_handlers() -> None:
    async with world() as w:
        session = await w.session()
        async with raw_socket(w) as socket:
            await ack(socket, f'421["session:join","{session}"]')
            for number, name in enumerate(["disconnect", "connect"], 2):
                answer = await ack(socket, f'42{number}["{name}",{{}},{{"token":"{BERT}"}}]')
                assert answer["error"]["code"] == "unknown_command"
            await w.log.append(session, [start("still here")])
            assert "still here" in await socket.receive_str()


async def test_a_missing_ack_function_harms_nobody() -> None:
    async with world() as w, w.viewer() as viewer:
        for command in COMMANDS:
            for payload in ("nonsense", {"sessionId": 1}, None):
                await viewer.client.emit(command, payload)
        session = await w.session()
        await viewer.client.emit("session:join", session)
        await viewer.client.emit("session:send", {"sessionId": session, "content": "hi", "messageId": "m"})
        await eventually(lambda: "turn_end" in viewer.names)


async def test_a_message_over_the_bound_is_refused_by_name() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        message = {"sessionId": session, "content": "x" * 2_000_000, "messageId": "m"}
        answer = await viewer.ask("session:send", message)
        assert answer["error"]["code"] == "message_too_large"
        assert answer["error"]["status"] == 413
        assert (await w.call("GET", f"/api/sessions/{session}/turns"))[1] == {"turns": []}


async def test_what_is_too_large_to_be_read_ends_its_connection_and_no_other() -> None:
    async with world() as w, w.viewer() as other, raw_socket(w) as socket:
        with contextlib.suppress(ConnectionError):
            await socket.send_str('421["session:send","' + "x" * 5_000_000 + '"]')
        assert (await socket.receive()).type in _ENDED
        assert (await other.ask("sessions:watch"))["ok"] is True


@pytest.mark.parametrize("token", [None, ANNA])
@pytest.mark.parametrize(
    "frame",
    [
        "",
        "9",
        "x",
        "b!!!",
        "4",
        "4{",
        '4{"a":1}',
        "4" + "[" * 100_000,
        "3" + "[" * 100_000,
        "4٣",
        "47",
        b"\x00\xff",
        b"",
    ],
)
async def test_a_frame_that_is_none_ends_the_connection_or_is_ignored(token: str | None, frame: Any) -> None:
    async with world() as w, w.viewer() as other, raw_socket(w, token) as socket:
        await (socket.send_str if isinstance(frame, str) else socket.send_bytes)(frame)
        if not socket.closed:
            await socket.send_str('4277["sessions:unwatch"]')
        assert (await other.ask("sessions:watch"))["ok"] is True
    # the server has let go of everything when the world closes; a leak would hang or warn there


@pytest.mark.parametrize(
    "packet",
    [
        "42",
        "42[]",
        "42{}",
        '42"x"',
        "42[7]",
        "42[null]",
        '42[["a"]]',
        "42[",
        "42" + "[" * 5000,
        '42["\\ud800"]',
        '451-["session:join",{"_placeholder":true,"num":0}]',
        '459999999999-["session:join"]',
        "43[]",
        '431["x"]',
        "44",
        "46",
        "41/other,",
        "40/admin,",
        '40{"token":"again"}',
        "42/other,[]",
        "4" + "2" * 200,
    ],
)
async def test_a_packet_that_is_none_is_ignored(packet: str) -> None:
    async with world() as w, raw_socket(w) as socket:
        await socket.send_str(packet)
        assert await ack(socket, '4299["sessions:unwatch"]') == {"ok": True}


@given(st.one_of(st.text(), st.binary(), st.text('0123456-[]{}/,"ab_', max_size=60)))
@settings(max_examples=400, deadline=None)
def test_reading_a_packet_never_fails(data: Any) -> None:
    packet = StrictPacket(encoded_packet=data)
    assert packet.attachment_count == 0
    if packet.packet_type == 2:
        assert isinstance(packet.data[0], str)
        assert packet.data[0] == MALFORMED or packet.data[0] not in {"connect", "disconnect"}


async def test_before_it_is_connected_a_client_commands_nothing() -> None:
    async with world() as w, raw_socket(w, None) as socket:
        await socket.send_str('421["sessions:watch",{}]')
        await socket.send_str("40" + json.dumps({"token": "wrong"}))
        assert (await socket.receive_str()).startswith("44")
        await socket.send_str('422["sessions:watch",{}]')
        await socket.send_str("40" + json.dumps({"token": ANNA}))
        assert (await socket.receive_str()).startswith("40")


async def test_whoever_shows_no_token_in_time_is_sent_away() -> None:
    async with world(connect_timeout_s=2.0) as w, raw_socket(w) as known, raw_socket(w, None) as silent:
        message = await silent.receive()
        assert (message.type, message.extra) == (aiohttp.WSMsgType.CLOSE, "not_connected")
        assert await ack(known, '421["sessions:unwatch"]') == {"ok": True}


async def test_no_log_holds_a_token_or_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="agent_runtime.transport.engine")
    async with world() as w, raw_socket(w) as socket:
        session_id = await w.session()
        said = {"sessionId": session_id, "content": "between us", "messageId": "m"}
        assert (await ack(socket, "421" + json.dumps(["session:send", said])))["ok"]

    assert ANNA not in caplog.text
    assert "between us" not in caplog.text


async def test_a_foreign_page_is_not_let_in_unless_it_is_named() -> None:
    async with world(cors_origins=("https://good.example",)) as w:
        path = f"{w.url}/socket.io/?EIO=4&transport=polling"
        async with w.http.get(path, headers={"Origin": "https://evil.example"}) as answer:
            assert answer.status == 400
        async with w.http.get(path, headers={"Origin": "https://good.example"}) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"


@pytest.mark.parametrize(
    "path",
    [
        "/socket.io/",
        "/socket.io/?EIO=3",
        "/socket.io/?EIO=4&transport=carrier-pigeon",
        "/socket.io/?EIO=4&transport=polling&sid=unknown",
        "/socket.io/?EIO=4&transport=polling&j=0",
        "/socket.io/?EIO=4&transport=websocket",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_odd_polls_are_refused(path: str, method: str) -> None:
    async with world() as w, w.http.request(method, w.url + path, data=b"\xff\xfe") as answer:
        assert answer.status == 400


async def test_a_polled_body_of_garbage_harms_nobody() -> None:
    async with world() as w:
        url = f"{w.url}/socket.io/?EIO=4&transport=polling"
        async with w.http.get(url) as answer:
            sid = json.loads((await answer.text())[1:])["sid"]
        for body in (b"\xff\xfe", b"", b"4" * 100, b"\x1e\x1e\x1e", b"b!!!", b"9", b"4[" * 1000):
            async with w.http.post(f"{url}&sid={sid}", data=body) as answer:
                assert answer.status < 500
        async with w.http.post(f"{url}&sid={sid}", data=io.BytesIO(b"4" * 6_000_000)) as answer:
            assert answer.status == 413


async def test_commands_without_end_are_refused_while_the_first_ones_run() -> None:
    async with world() as w, w.viewer() as viewer:
        released = asyncio.Event()
        listing = w.manager.list_sessions

        async def slowly(*arguments: Any, **named: Any) -> Any:
            await released.wait()
            return await listing(*arguments, **named)

        w.manager.list_sessions = slowly  # type: ignore[method-assign]
        answers: list[Any] = []
        for _ in range(100):
            await viewer.client.emit("sessions:watch", {}, callback=answers.append)
        await eventually(lambda: len(answers) == 36)
        assert {answer["error"]["code"] for answer in answers} == {"rate_limited"}
        released.set()
        await eventually(lambda: len(answers) == 100)


async def test_a_viewer_that_does_not_read_is_closed_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_FAREWELL_S", 600.0)  # it reads again after the others heard everything
    async with world(viewer_backlog_bytes=1_000_000) as w, w.viewer() as other, raw_socket(w) as socket:
        session = await w.session()
        await ack(socket, f'421["session:join","{session}"]')
        await other.ask("session:join", session)
        transport = socket._response.connection.transport
        transport.pause_reading()
        for number in range(100):
            await w.log.append(session, [delta("a", "x" * 50_000) for _ in range(4)])
            await eventually(lambda seq=4 * number + 4: seq in other.seqs[-1:])
        _, text, _ = await w.call("GET", "/metrics")
        assert b"agent_runtime_slow_consumers_total 1.0" in text
        assert other.seqs == list(range(1, 401))
        transport.resume_reading()
        async with asyncio.timeout(20):
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4008, "slow_consumer")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(COMMANDS),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(max_size=20),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["sessionId", "content", "messageId", "position", "limit", "type"]),
                        inner,
                        max_size=4,
                    )
                ),
                max_leaves=8,
            ),
        ),
        min_size=20,
        max_size=40,
    )
)
def test_no_payload_whatsoever_is_an_internal_error(commands: list[tuple[str, Any]]) -> None:
    async def story() -> None:
        async with world() as w, raw_socket(w) as socket:
            for number, (command, payload) in enumerate(commands):
                text = json.dumps([command, payload])
                answer = await ack(socket, f"42{number}{text}")
                assert answer.get("error", {}).get("category") != "internal", (command, payload)

    asyncio.run(story())


async def test_who_hangs_up_in_the_handshake_is_no_failure() -> None:
    hello = (
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with world() as w:
        port = int(w.url.rpartition(":")[2])
        with capture_logs() as logs:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port)) as caller:
                    caller.sendall(hello)
            await eventually(lambda: len(logs) >= 20)
        assert {line["event"] for line in logs} == {"request"}
        assert 499 in {line["status"] for line in logs}
        async with w.viewer() as viewer:
            assert (await viewer.ask("sessions:watch"))["ok"]
