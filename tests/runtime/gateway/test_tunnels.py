"""CONNECT through a session's socket: where it leads, where it never does, and what bounds it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.decisions import Decisions
from agent_runtime.gateway.network import PublicInternet
from agent_runtime.gateway.tunnels import Bounds
from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint
from tests.runtime.gateway.upstream import agent, api, broker, no_call, raw, spelled
from tests.waiting import eventually

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Names:
    """A network whose names point where a test says; each look-up takes the next answer, the last stays."""

    answers: dict[str, list[list[str]]]
    allowed: Callable[[str], bool] = PublicInternet().may_go_to
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.answers.get(host, [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def may_go_to(self, address: str) -> bool:
        return self.allowed(address)

    def close(self) -> None:
        pass


def loopback(**names: str) -> Names:
    """Names on this machine, which only a test lets anybody reach."""
    return Names({name: [[address]] for name, address in names.items()}, lambda address: True)


@contextlib.asynccontextmanager
async def host(talk: Talk, *addresses: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Something that listens; gives the port, and the addresses at which it was reached."""
    reached: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer.get_extra_info("sockname")[0])
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    port, servers = 0, []
    for address in addresses or ("127.0.0.1",):
        servers.append(await asyncio.start_server(serve, address, port))
        port = servers[0].sockets[0].getsockname()[1]
    try:
        yield port, reached
    finally:
        for server in servers:
            server.close()


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say everything again in capitals, and end when the other side does."""
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()


def network_of(names: Names, **options: Any) -> contextlib.AbstractAsyncContextManager[Gateway]:
    return broker(Anthropic(), network=names, **options)


def connect_to(wanted: str, *headers: str) -> bytes:
    return "\r\n".join((f"CONNECT {wanted} HTTP/1.1", f"Host: {wanted}", *headers, "", "")).encode()


class Tunnel:
    """What a client in the sandbox sees."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0

    @classmethod
    async def ask(cls, endpoint: GatewayEndpoint, wanted: str) -> "Tunnel":
        tunnel = cls(*await asyncio.open_unix_connection(str(endpoint.socket)))
        tunnel.writer.write(connect_to(wanted))
        head = await tunnel.reader.readuntil(b"\r\n\r\n")
        tunnel.status = int(head.split()[1])
        return tunnel

    async def said(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def is_cut(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while await self.reader.read(65536):
                    pass
        self.writer.close()
        return True


async def status_of(endpoint: GatewayEndpoint, wanted: str) -> int:
    tunnel = await Tunnel.ask(endpoint, wanted)
    tunnel.writer.close()
    return tunnel.status


async def test_an_allowed_host_is_reached_and_bytes_pass_both_ways():
    async with host(shout) as (port, _), network_of(loopback(**{"pypi.test": "127.0.0.1"})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        tunnel = await Tunnel.ask(endpoint, f"PyPI.test:{port}")
        assert tunnel.status == 200
        assert await tunnel.said(b"hello") == b"HELLO"
        big = b"x" * (4 << 20)
        tunnel.writer.write(big)
        tunnel.writer.write_eof()
        assert await tunnel.reader.read() == big.upper(), "one direction may end before the other"
        tunnel.writer.close()


async def test_what_is_sent_along_with_the_request_is_not_lost_however_it_is_cut():
    async with host(shout) as (port, _), network_of(loopback(**{"pypi.test": "127.0.0.1"})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        whole = connect_to(f"pypi.test:{port}", "Proxy-Authorization: Basic eA==") + b"early"
        for pieces in ([whole], [whole[:3], whole[3:]], [whole[i : i + 1] for i in range(len(whole))]):
            reader, writer = await asyncio.open_unix_connection(str(endpoint.socket))
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            writer.write_eof()
            assert (await reader.read()).endswith(b"\r\n\r\nEARLY")
            writer.close()


async def test_a_session_without_hosts_reaches_none():
    async with host(shout) as (port, reached), network_of(loopback(**{"pypi.test": "127.0.0.1"})) as gate:
        for egress in (None, Egress(), Egress(models=("m",))):
            endpoint = await gate.open("s", egress=egress)
            assert await status_of(endpoint, f"pypi.test:{port}") == 403
        assert reached == []


async def test_a_session_reaches_its_own_hosts_and_not_its_neighbours():
    names = loopback(**{"a.test": "127.0.0.1", "b.test": "127.0.0.1"})
    async with host(shout) as (port, reached), network_of(names) as gate:
        a = await gate.open("a", egress=Egress(hosts=(f"a.test:{port}",)))
        b = await gate.open("b", egress=Egress(hosts=(f"b.test:{port}",)))
        assert await status_of(a, f"b.test:{port}") == 403
        assert await status_of(b, f"a.test:{port}") == 403
        assert reached == []
        assert names.asked == [], "what is not allowed is not even looked up"
        assert await status_of(a, f"a.test:{port}") == 200


@pytest.mark.parametrize(
    "wanted",
    ["127.0.0.1", "[::1]", "127.1", "2130706433", "0x7f000001", "localhost.", "a b", "", "pypi.test:1"],
)
async def test_an_address_is_never_a_host_even_where_a_rule_names_it(wanted: str):
    async with host(shout) as (port, reached), network_of(loopback(**{"127.0.0.1": "127.0.0.1"})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"127.0.0.1:{port}", f"127.1:{port}")))
        assert (await raw(endpoint, connect_to(f"{wanted}:{port}"))).split()[1] in {b"400", b"403"}
        assert reached == []


async def test_a_name_that_points_to_this_machine_leads_nowhere():
    """With the network that a runtime really has."""
    async with host(shout) as (port, reached), broker(Anthropic()) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"localhost:{port}",)))
        answer = await raw(endpoint, connect_to(f"localhost:{port}"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"not public" in answer
        assert b"127.0.0.1" not in answer, "what the host's names point to is not for the sandbox"
        assert reached == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"], ["fd00:ec2::254"],
        ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["8.8.8.8", "127.0.0.1"], ["fe80::1%lo"], ["not an address"],
    ],
)  # fmt: skip
async def test_a_name_with_an_address_that_is_not_public_leads_nowhere(addresses: list[str]):
    async with network_of(Names({"evil.test": [addresses]})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=("evil.test",)))
        answer = await raw(endpoint, connect_to("evil.test:443"))
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_a_name_that_points_elsewhere_once_it_was_checked_changes_nothing():
    """The first answer is one that may be reached, all later ones are not: only the first is asked for."""
    names = Names({"rebinding.test": [["127.0.0.1"], ["127.0.0.2"]]}, lambda address: address == "127.0.0.1")
    async with host(shout, "127.0.0.1", "127.0.0.2") as (port, reached), network_of(names) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"rebinding.test:{port}",)))
        tunnel = await Tunnel.ask(endpoint, f"rebinding.test:{port}")
        assert tunnel.status == 200
        assert await tunnel.said(b"a") == b"A"
        assert names.asked == ["rebinding.test"]
        assert await status_of(endpoint, f"rebinding.test:{port}") == 403
        assert reached == ["127.0.0.1"]
        tunnel.writer.close()


async def test_a_host_that_does_not_answer_at_one_address_is_tried_at_the_next():
    names = Names({"pypi.test": [["127.0.0.9", "127.0.0.1"]]}, lambda address: True)
    async with host(shout) as (port, _), network_of(names) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        tunnel = await Tunnel.ask(endpoint, f"pypi.test:{port}")
        assert await tunnel.said(b"a") == b"A"
        tunnel.writer.close()


async def test_a_name_without_an_address_and_a_host_that_is_away_are_told_apart():
    class Broken(Names):
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            raise OSError("the name server is away")

    async with host(shout) as (port, _):
        pass
    hosts = Egress(hosts=(f"pypi.test:{port}",))
    for names, why in (
        (Broken({}), b"has no address"),
        (Names({}), b"has no address"),
        (loopback(**{"pypi.test": "127.0.0.1"}), b"cannot be reached"),
    ):
        async with network_of(names) as gate:
            answer = await raw(await gate.open("s", egress=hosts), connect_to(f"pypi.test:{port}"))
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert why in answer


async def test_a_name_server_that_hangs_is_not_waited_for():
    class Hanging(Names):
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            await asyncio.Event().wait()
            raise AssertionError

    async with network_of(Hanging({}), bounds=Bounds(resolve_s=0.1)) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=("pypi.test",)))
        assert (await raw(endpoint, connect_to("pypi.test:443"))).startswith(b"HTTP/1.1 502 ")


async def test_a_change_of_the_allowed_hosts_counts_at_once():
    names = loopback(**{"a.test": "127.0.0.1", "b.test": "127.0.0.1"})
    with structlog.testing.capture_logs() as logs:
        await _change_hosts(names)
    assert [entry["decision"] for entry in logs if entry["event"] == "egress_decided"] == [
        *("allowed", "allowed", "withdrawn", "not_allowed", "withdrawn")
    ]


async def _change_hosts(names: Names) -> None:
    async with host(shout) as (port, _), network_of(names) as gate:
        both = Egress(hosts=(f"a.test:{port}", f"b.test:{port}"))
        endpoint = await gate.open("s", egress=both)
        a, b = [await Tunnel.ask(endpoint, f"{name}.test:{port}") for name in "ab"]
        assert (a.status, b.status) == (200, 200)
        assert await gate.open("s", egress=Egress(hosts=(f"a.test:{port}",))) == endpoint
        assert await b.is_cut()
        assert await a.said(b"still") == b"STILL"
        assert await status_of(endpoint, f"b.test:{port}") == 403
        await gate.open("s")
        assert await a.is_cut()
        await gate.close("s")


async def test_tunnels_over_the_bound_are_refused_and_models_are_reached_all_the_same():
    async def answer(request: Any) -> Any:
        return await no_call(request)

    names = loopback(**{"pypi.test": "127.0.0.1"})
    async with (
        host(shout) as (port, _),
        api(answer) as url,
        broker(Anthropic(url), network=names, bounds=Bounds(tunnels=3)) as gate,
    ):
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        open_ones = [await Tunnel.ask(endpoint, f"pypi.test:{port}") for _ in range(3)]
        assert await status_of(endpoint, f"pypi.test:{port}") == 503
        async with agent(endpoint, token="wrong") as client, client.post("/v1/messages") as response:
            assert response.status == 401
        open_ones.pop().writer.close()

        while await status_of(endpoint, f"pypi.test:{port}") != 200:
            pass
        for tunnel in open_ones:
            tunnel.writer.close()


async def test_a_silent_tunnel_is_cut_and_a_long_one_too():
    names = loopback(**{"pypi.test": "127.0.0.1"})
    for bounds in (Bounds(idle_s=1.0), Bounds(total_s=1.0)):
        async with host(shout) as (port, _), network_of(names, bounds=bounds) as gate:
            endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
            tunnel = await Tunnel.ask(endpoint, f"pypi.test:{port}")
            assert tunnel.status == 200
            assert await tunnel.is_cut()


async def test_a_session_moves_no_more_bytes_than_it_may():
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    names = loopback(**{"pypi.test": "127.0.0.1"})
    async with host(pour) as (port, _), network_of(names, bounds=Bounds(session_bytes=1 << 20)) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        tunnel = await Tunnel.ask(endpoint, f"pypi.test:{port}")
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await tunnel.reader.read(65536):
                got += len(data)
        assert got <= 1 << 20
        tunnel.writer.close()
        answer = await raw(endpoint, connect_to(f"pypi.test:{port}"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"as many bytes as it may" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT \r\n\r\n",
        b"CONNECT pypi.test:443\r\n\r\n",
        b"CONNECT pypi.test:443 HTTP/2\r\n\r\n",
        b"CONNECT  pypi.test:443 HTTP/1.1\r\n\r\n",
        b"CONNECT pypi.test:443 HTTP/1.1 x\r\n\r\n",
        b"CONNECT \x00\xff\r\n\r\n",
        b"CONNECT pypi.test:443 HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
        b"connect pypi.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://pypi.test/ HTTP/1.1\r\nHost: pypi.test\r\n\r\n",
        b"POST https://pypi.test:443/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_nothing_but_a_well_formed_connect_leads_out(head: bytes):
    async with network_of(Names({"pypi.test": [["127.0.0.1"]]}, lambda address: True)) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=("pypi.test", "pypi.test:80")))
        status = int((await raw(endpoint, head)).split()[1])
        assert status in {400, 401, 403}


async def test_a_connection_that_began_with_a_model_never_becomes_a_tunnel():
    async with host(shout) as (port, reached), network_of(loopback(**{"pypi.test": "127.0.0.1"})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        for first in (spelled(endpoint), spelled(endpoint, "/nothing")):
            answers = await raw(endpoint, first + connect_to(f"pypi.test:{port}"))
            assert b"HTTP/1.1 200" not in answers
        assert reached == []


async def test_requests_that_never_end_are_counted_as_tunnels():
    async with network_of(Names({}), bounds=Bounds(tunnels=3)) as gate:
        endpoint = await gate.open("s")
        begun = [await asyncio.open_unix_connection(str(endpoint.socket)) for _ in range(3)]
        for _, writer in begun:
            writer.write(b"CONNECT pypi.test:443 HTTP/1.1\r\n")
        assert (await raw(endpoint, connect_to("pypi.test:443"))).startswith(b"HTTP/1.1 503 ")
        for _, writer in begun:
            writer.close()


async def test_a_request_that_never_ends_is_not_waited_for():
    async with network_of(Names({}), bounds=Bounds(head_s=0.1)) as gate:
        endpoint = await gate.open("s")
        assert (await raw(endpoint, b"CONNECT pypi.test:443 HTTP/1.1\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_does_not_read_holds_nothing_up():
    """Neither its own session's other tunnels nor the end of the gateway."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    names = loopback(**{"pypi.test": "127.0.0.1", "b.test": "127.0.0.1"})
    async with host(pour) as (port, _), host(shout) as (other, _), network_of(names) as gate:
        hosts = (f"pypi.test:{port}", f"b.test:{other}")
        endpoint = await gate.open("s", egress=Egress(hosts=hosts))
        stuck = await Tunnel.ask(endpoint, f"pypi.test:{port}")
        lively = await Tunnel.ask(endpoint, f"b.test:{other}")
        assert await lively.said(b"a") == b"A"
        async with asyncio.timeout(5):
            await gate.close("s")
        assert await lively.is_cut()
        stuck.writer.close()


async def test_every_decision_is_told_with_its_session_and_in_one_harmless_line():
    names = Names({"a.test": [["10.0.0.1"]]})
    with structlog.testing.capture_logs() as logs:
        async with network_of(names) as gate:
            endpoint = await gate.open("s", egress=Egress(hosts=("a.test",)))
            nasty = "evil\x1b[2J\r" + "x" * 3000
            for wanted in ("a.test:443", "b.test:443", f"{nasty}:443"):
                await raw(endpoint, connect_to(wanted))
            await raw(endpoint, b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    told = [entry for entry in logs if entry["event"] == "egress_decided"]
    assert [(entry["session_id"], entry["decision"]) for entry in told] == [
        ("s", "not_public"),
        ("s", "not_allowed"),
        ("s", "malformed"),
        ("s", "not_a_tunnel"),
    ]
    assert told[0]["host"] == "a.test:443"
    assert all(entry["host"].isprintable() and len(entry["host"]) < 1000 for entry in told)


def test_a_flood_of_decisions_is_few_lines_and_hides_none_of_another_kind():
    now = 0.0
    decisions = Decisions("s", lambda: now)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            decisions.tunnel("not_allowed", "b.test:443")
            decisions.refusal("anthropic", 403, "no")
        decisions.tunnel("allowed", "a.test:443")
        now = 5.0
        decisions.tunnel("not_allowed", "c.test:443")
    assert [entry["host"] for entry in logs if entry.get("decision") == "allowed"] == ["a.test:443"]
    assert len(logs) == 100 + 100 + 1 + 1
    assert (logs[-1]["host"], logs[-1]["unsaid_before"]) == ("c.test:443", 900)
    counted = REGISTRY.get_sample_value("agent_runtime_egress_decisions_total", {"decision": "not_allowed"})
    assert counted is not None
    assert counted >= 1001


async def test_an_endpoint_that_is_given_to_another_session_is_that_ones_alone():
    """A sandbox that was made before its session: its socket and token stay what they were."""
    names = loopback(**{"pypi.test": "127.0.0.1"})
    with structlog.testing.capture_logs() as logs:
        async with host(shout) as (port, _), network_of(names) as gate:
            early = await gate.open("pool-1", lane="pool-1")
            assert await status_of(early, f"pypi.test:{port}") == 403
            mine = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)), lane="pool-1")
            assert mine == early
            await gate.close("pool-1")
            tunnel = await Tunnel.ask(mine, f"pypi.test:{port}")
            assert tunnel.status == 200
            await gate.open("s", lane="s")
            assert await tunnel.is_cut(), "a session has one way out at a time"
            assert not mine.socket.exists()
    told = [entry["session_id"] for entry in logs if entry["event"] == "egress_decided"]
    assert told == ["pool-1", "s"]


async def test_nothing_of_a_tunnel_is_left_when_both_ends_are_through():
    async with host(shout) as (port, _), network_of(loopback(**{"pypi.test": "127.0.0.1"})) as gate:
        endpoint = await gate.open("s", egress=Egress(hosts=(f"pypi.test:{port}",)))
        before = asyncio.all_tasks()
        for _ in range(20):
            tunnel = await Tunnel.ask(endpoint, f"pypi.test:{port}")
            assert await tunnel.said(b"a") == b"A"
            tunnel.writer.close()
        await eventually(lambda: len(asyncio.all_tasks()) <= len(before), within=20)
