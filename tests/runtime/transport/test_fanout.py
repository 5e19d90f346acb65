"""Live events reach every viewer once and in order, written past its queue where its socket takes them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_websocket import WebSocketWriter, WSMsgType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.tasks import Tasks
from agent_runtime.transport.engine import SocketServer
from agent_runtime.transport.frames import WRITE_BYTES, framed, header
from tests.runtime.transport.test_hostile_sockets import ack, raw_socket
from tests.runtime.transport.world import ANNA, World, delta, world
from tests.waiting import eventually

BACKLOG = 1_000_000
SENT_BUFFER = 16 * 1024
"""Of the system, so that a socket that is not read is full soon."""


@dataclass
class Line:
    """One connection of a server that knows only connections, and its other end."""

    server: SocketServer
    sid: str
    client: aiohttp.ClientWebSocketResponse
    slow: list[None]
    issued: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = self.server.eio.sockets[self.server.manager.eio_sid_from_sid(self.sid, "/")]

    @property
    def held(self) -> int:
        """Bytes of events that the server keeps for this connection."""
        queue = self.connection.queue
        return int(queue.live_bytes + (queue.socket.unsent_bytes if queue.socket else 0))

    def number(self) -> int:
        self.issued.append(len(self.issued))
        return self.issued[-1]

    def deliver(self, size: int, count: int = 1) -> None:
        """Send live events of about this size."""
        told = [json.dumps([self.number(), "x" * size]).encode() for _ in range(count)]
        self.server.deliver([self.sid], [("event", payload) for payload in told])

    async def answer(self, size: int) -> None:
        """Send something through the queue."""
        await self.server.emit("event", [self.number(), "x" * size], to=self.sid)

    async def ack(self, size: int) -> None:
        """Send something as acks are sent."""
        packet = self.server.packet_class(data=["event", [self.number(), "ü" * size]])
        await self.server._send_packet(self.connection.sid, packet)

    def read(self, wanted: bool) -> None:
        """Whether the client takes what comes."""
        transport = self.client._response.connection.transport
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    async def next(self) -> int:
        """The number of the next event that arrives."""
        while not (text := await self.client.receive_str()).startswith("42"):
            pass
        return int(json.loads(text[2:])[1][0])


@asynccontextmanager
async def line(compress: int = 0) -> AsyncIterator[Line]:
    """A server with one connection over a real socket."""
    slow: list[None] = []
    tasks = Tasks()
    await tasks.open()
    server = SocketServer(
        tasks,
        max_packet_bytes=1_000_000,
        read_body=lambda request: request.read(),
        backlog_bytes=BACKLOG,
        connect_within_s=10,
        origins=(),
        on_slow=lambda: slow.append(None),
    )
    connected: asyncio.Queue[str] = asyncio.Queue()
    server.on("connect", lambda sid, *_: connected.put_nowait(sid))
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BUFFER)
    await web.SockSite(runner, listener).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/socket.io/?EIO=4&transport=websocket"
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url, compress=compress) as client:
            await client.receive_str()
            await client.send_str("40{}")
            assert (await client.receive_str()).startswith("40")
            yield Line(server, await connected.get(), client, slow)
    finally:
        await server.close_all()
        await runner.cleanup()
        await tasks.close()


async def test_an_event_for_a_socket_that_takes_it_is_never_queued() -> None:
    async with line() as it:
        it.deliver(200)
        it.deliver(200, count=3)
        assert it.connection.queue.empty()
        assert [await it.next() for _ in it.issued] == it.issued


async def test_an_ack_for_a_socket_that_takes_it_is_not_queued_unless_it_is_large() -> None:
    async with line() as it:
        await it.ack(10)
        it.deliver(10)
        assert it.connection.queue.empty()
        await it.ack(WRITE_BYTES)
        assert not it.connection.queue.empty()
        it.deliver(10)
        assert [await it.next() for _ in it.issued] == it.issued


async def test_whoever_does_not_read_his_acks_has_few_of_them_in_his_socket() -> None:
    async with line() as it:
        it.read(False)
        for _ in range(100):
            await it.ack(WRITE_BYTES // 8)
        assert it.connection.queue.total_bytes > 50 * WRITE_BYTES // 8
        it.read(True)
        assert [await it.next() for _ in it.issued] == it.issued


async def test_an_event_does_not_pass_an_answer_that_waits_or_is_on_its_way() -> None:
    async with line() as it:
        for steps in range(12):
            await it.answer(10)
            for _ in range(steps):
                await asyncio.sleep(0)
            it.deliver(10)
        assert [await it.next() for _ in it.issued] == it.issued


async def test_after_an_answer_events_are_written_at_once_again() -> None:
    async with line() as it:
        await it.answer(10)
        it.deliver(10)
        assert [await it.next() for _ in it.issued] == it.issued
        await eventually(lambda: it.connection.queue.is_passable)
        it.deliver(10)
        assert it.connection.queue.empty()
        assert await it.next() == it.issued[-1]


async def test_whoever_does_not_read_is_cut_at_the_bound_and_nothing_more_is_kept() -> None:
    async with line() as it:
        it.read(False)
        for _ in range(1000):
            it.deliver(1000, count=10)
            # Five have been seen: the queue's writer and the transport each stop some writes later.
            assert it.held <= BACKLOG + 8 * WRITE_BYTES
            await asyncio.sleep(0)
        assert it.slow == [None]
        assert it.connection.queue.live_bytes == 0
        it.read(True)
        arrived = 0
        async with asyncio.timeout(10):
            while (message := await it.client.receive()).type is aiohttp.WSMsgType.TEXT:
                assert json.loads(message.data[2:])[1][0] == arrived
                arrived += 1
        assert message.extra == "slow_consumer"
        assert arrived < len(it.issued)


async def test_a_large_answer_that_is_still_on_its_way_does_not_count_as_slow() -> None:
    async with line() as it:
        it.read(False)
        await it.answer(3 * BACKLOG)
        it.deliver(1000, count=100)
        await eventually(lambda: it.held > 2 * BACKLOG)
        it.deliver(1000, count=100)
        it.read(True)
        assert [await it.next() for _ in it.issued] == it.issued
        assert it.slow == []


STEP = st.one_of(
    st.tuples(st.just("deliver"), st.sampled_from([0, 1, 100, 200, 20_000, 70_000]), st.integers(1, 4)),
    st.tuples(st.just("answer"), st.sampled_from([0, 100, 20_000, 100_000])),
    st.tuples(st.just("ack"), st.sampled_from([0, 100, 10_000, 100_000])),
    st.tuples(st.just("read"), st.booleans()),
    st.tuples(st.just("steps"), st.integers(1, 6)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=40))
def test_whatever_is_written_past_the_queue_or_through_it_arrives_in_order(steps: list[Any]) -> None:
    async def story() -> None:
        async with line() as it:
            for what, *how in steps:
                if what == "deliver":
                    it.deliver(*how)
                elif what == "answer":
                    await it.answer(*how)
                elif what == "ack":
                    await it.ack(*how)
                elif what == "read":
                    it.read(*how)
                else:
                    for _ in range(*how):
                        await asyncio.sleep(0)
            if it.slow:
                return  # more was issued than may wait; it is told elsewhere
            it.read(True)
            async with asyncio.timeout(10):
                assert [await it.next() for _ in it.issued] == it.issued
                await it.server.drained(it.sid, 0)

    asyncio.run(story())


async def polled(w: World, sid: str, heard: list[Any]) -> None:
    """Poll until the server says that the websocket takes over."""
    url = f"{w.url}/socket.io/?EIO=4&transport=polling&sid={sid}"
    while True:
        async with w.http.get(url) as answer:
            packets = (await answer.text()).split("\x1e")
        heard += [json.loads(packet[2:])[1]["seq"] for packet in packets if packet.startswith("42")]
        if "6" in packets:
            return


async def test_an_upgrade_in_the_middle_of_a_stream_loses_and_repeats_nothing() -> None:
    async with world() as w:
        session = await w.session()
        heard: list[int] = []
        url = f"{w.url}/socket.io/?EIO=4&transport=polling"
        async with w.http.get(url) as opened:
            sid = json.loads((await opened.text())[1:])["sid"]
        for packet in ("40" + json.dumps({"token": ANNA}), f'421["session:join","{session}"]'):
            async with w.http.post(f"{url}&sid={sid}", data=packet) as told:
                assert told.status == 200
        ws_url = f"{w.url}/socket.io/?EIO=4&transport=websocket&sid={sid}"
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(polled(w, sid, heard))
            await w.log.append(session, [delta("a", "0")])
            await eventually(lambda: heard == [1])
            upgraded = await w.http.ws_connect(ws_url)
            await w.log.append(session, [delta("a", "1")])
            await upgraded.send_str("2probe")
            assert await upgraded.receive_str() == "3probe"
            await w.log.append(session, [delta("a", "2"), delta("a", "3")])
        assert polling.done()
        async with upgraded:
            await w.log.append(session, [delta("a", "4")])
            await upgraded.send_str("5")
            for number in range(5, 60):
                await w.log.append(session, [delta("a", str(number))])
            async with asyncio.timeout(10):
                while heard[-1] < 60:
                    if (text := await upgraded.receive_str()).startswith("42"):
                        heard.append(json.loads(text[2:])[1]["seq"])
        assert heard == list(range(1, 61))


async def test_whoever_polls_hears_the_same_as_whoever_has_a_websocket() -> None:
    async with world() as w, w.viewer(transports=["polling"]) as polls, w.viewer() as listens:
        session = await w.session()
        for viewer in (polls, listens):
            await viewer.ask("session:join", session)
        for number in range(100):
            await w.log.append(
                session, [delta("a", f"{number} ünd «{chr(0x1F600)}»"), delta("b", "\n\x1e\\")]
            )
        await eventually(lambda: polls.seqs[-1:] == listens.seqs[-1:] == [200])
        assert polls.heard == listens.heard


class Written(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: Any) -> None:
        self.data += bytes(data)

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
async def test_our_frames_are_the_librarys_and_it_writes_them_without_waiting(size: int) -> None:
    transport = Written()
    writer = WebSocketWriter(BaseProtocol(asyncio.get_running_loop()), transport)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        writer.send_frame(b"x" * size, WSMsgType.TEXT).send(None)
    assert header(size) + b"x" * size == transport.data


def test_events_that_are_due_together_are_few_writes_of_bounded_size() -> None:
    batches = list(framed([("e", b"1" * size) for size in (10, 60_000, 10, 10_000, 200_000, 10)]))
    assert [len(batch.packets) for batch in batches] == [3, 1, 1, 1]
    assert [len(batch.queued) for batch in batches] == [3, 1, 1, 1]
    assert list(framed([])) == []


async def test_no_connection_is_compressed_for_what_is_written_is_shared() -> None:
    async with line(compress=15) as it:
        assert it.client.compress == 0
        it.deliver(200)
        assert await it.next() == 0


async def test_two_viewers_and_one_that_is_cut_share_what_is_sent() -> None:
    async with world() as w, raw_socket(w) as one, raw_socket(w) as other:
        session = await w.session()
        for client in (one, other):
            await ack(client, f'421["session:join","{session}"]')
        await w.log.append(session, [delta("a", "first")])
        assert await one.receive_str() == await other.receive_str()
        await one.close()
        await w.log.append(session, [delta("a", "second")])
        assert "second" in await other.receive_str()
