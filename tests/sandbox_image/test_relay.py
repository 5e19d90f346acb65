"""The relay hands on bytes between a TCP address and the gateway's socket, whatever becomes of either."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_runtime_sandbox.door import MAX_CONNECTIONS, Door
from agent_runtime_sandbox.relay import Relay
from tests.sandbox_image.runner_client import running

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def gateway(path: Path) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Something at the gateway's place that says everything again in capitals; gives its connections."""
    connections: list[asyncio.StreamWriter] = []

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data.upper())
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(shout, path)
    try:
        yield connections
    finally:
        server.close()


@contextlib.asynccontextmanager
async def relaying(path: Path) -> AsyncIterator[Door]:
    door = Door(0)
    serving = asyncio.get_running_loop().create_task(Relay(door, path).run())
    await asyncio.sleep(0)
    try:
        yield door
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def connect(relay: Door) -> Connection:
    host, port = relay.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def said(connection: Connection, data: bytes) -> bytes:
    reader, writer = connection
    writer.write(data)
    return await reader.readexactly(len(data))


async def test_bytes_pass_both_ways_and_one_direction_may_end_first(tmp_path: Path):
    async with gateway(tmp_path / "s"), relaying(tmp_path / "s") as relay:
        reader, writer = connection = await connect(relay)
        assert await said(connection, b"hello") == b"HELLO"
        big = b"x" * (8 << 20)
        writer.write(big)
        writer.write_eof()
        assert await reader.read() == big.upper()
        writer.close()


async def test_a_gateway_that_is_away_ends_the_connection_and_is_found_again(tmp_path: Path):
    async with relaying(tmp_path / "s") as relay:
        reader, writer = await connect(relay)
        assert await reader.read() == b""
        writer.close()
        for _ in range(2):
            async with gateway(tmp_path / "s"):
                connection = await connect(relay)
                assert await said(connection, b"a") == b"A"
                connection[1].close()


async def test_a_gateway_that_breaks_off_ends_the_connection(tmp_path: Path):
    async with gateway(tmp_path / "s") as connections, relaying(tmp_path / "s") as relay:
        reader, writer = connection = await connect(relay)
        assert await said(connection, b"a") == b"A"
        connections[0].transport.abort()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_connections_over_the_bound_wait_for_one_that_ends(tmp_path: Path):
    async with gateway(tmp_path / "s") as connections, relaying(tmp_path / "s") as relay:
        held = [await connect(relay) for _ in range(MAX_CONNECTIONS)]
        for connection in held:
            assert await said(connection, b"a") == b"A"
        late = await connect(relay)
        late[1].write(b"b")
        assert await said(held[0], b"a") == b"A"
        assert len(connections) == MAX_CONNECTIONS
        held.pop()[1].close()
        assert await late[0].readexactly(1) == b"B"
        for _, writer in (*held, late):
            writer.close()


async def test_the_end_of_the_relay_ends_what_it_carries(tmp_path: Path):
    async with gateway(tmp_path / "s"):
        async with relaying(tmp_path / "s") as relay:
            reader, writer = connection = await connect(relay)
            assert await said(connection, b"a") == b"A"
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(relay)


async def test_tools_are_told_of_it_as_their_proxy_only_where_it_is_one(tmp_path: Path):
    async with relaying(tmp_path / "s") as relay:
        assert relay.environment(proxy=False) == {"AGENT_RUNTIME_RELAY": relay.url}
        told = relay.environment(proxy=True)
        assert {told[name] for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")} == {relay.url}
        assert "127.0.0.1" in told["no_proxy"].split(",")


async def test_a_runner_has_one_at_the_port_that_it_was_given_and_lives_on_without_a_gateway(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with running(gateway=Path("g.sock"), options=("--relay", str(port))) as runner:
        client = await runner.attach()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b"", "there is no gateway yet"
        writer.close()
        async with gateway(runner.directory / "g.sock"):
            connection = await asyncio.open_connection("127.0.0.1", port)
            assert await said(connection, b"a") == b"A"
            connection[1].close()
        await client.result("sync")
