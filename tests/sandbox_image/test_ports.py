"""Connections through a real runner to what listens inside."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent_runtime_sandbox import frames, ports
from tests.sandbox_image.runner_client import RunnerProcess, running
from tests.sandbox_image.shell_client import Stranger, connected
from tests.waiting import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """The runner of these tests shares this machine's loopback, so a server of the test's own is inside."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(one, host, 0, limit=2**20)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def opened(runner: RunnerProcess, port: int) -> AsyncIterator[Stranger]:
    async with connected(runner, "port", port=port) as stranger:
        assert await stranger.line() == {"k": "opened"}
        yield stranger


async def test_bytes_go_both_ways_untouched() -> None:
    async with running() as runner, listening(echo) as port, opened(runner, port) as stranger:
        for data in (b"\x00\xff\n{}", b"\n\n\n", bytes(range(256)) * 1000):
            stranger.writer.write(data)
            assert await stranger.reader.readexactly(len(data)) == data


async def test_what_is_said_with_the_first_line_arrives_too() -> None:
    async with running() as runner, listening(echo) as port:
        reader, writer = await asyncio.open_unix_connection(runner.directory / "runner.sock")
        writer.write(frames.encode({"k": "port", "port": port}) + b"at once\n")
        assert frames.decode(await reader.readline()) == {"k": "opened"}
        assert await reader.readline() == b"at once\n"
        writer.transport.abort()


async def test_the_other_loopback_is_tried_too() -> None:
    async with running() as runner, listening(echo, "::1") as port, opened(runner, port) as stranger:
        stranger.writer.write(b"six")
        assert await stranger.reader.readexactly(3) == b"six"


async def test_a_port_that_nobody_listens_on_is_refused_in_words() -> None:
    async with listening(echo) as port:
        pass
    async with running() as runner, connected(runner, "port", port=port) as stranger:
        answer = await stranger.line()
        assert (answer["k"], answer["code"]) == ("refused", "port_closed")
        assert await stranger.reader.read() == b""


async def test_a_server_that_says_much_and_ends_is_heard_to_the_end_by_a_slow_reader() -> None:
    said = b"0123456789abcdef" * 2**20

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with running() as runner, listening(talk) as port, opened(runner, port) as stranger:
        before = runner.memory_bytes()
        heard = hashlib.sha256(await stranger.reader.readexactly(2**16))
        assert runner.memory_bytes() - before < 8 * 2**20, "the rest waits where it is made"
        while data := await stranger.reader.read(2**16):
            heard.update(data)
        assert heard.digest() == hashlib.sha256(said).digest()


async def test_a_server_that_does_not_read_stops_the_sender() -> None:
    stop = asyncio.Event()

    async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await stop.wait()

    async with running() as runner, listening(deaf) as port, opened(runner, port) as stranger:
        before = runner.memory_bytes()
        stranger.writer.write(b"x" * 2**26)
        async with opened(runner, port):
            assert runner.memory_bytes() - before < 8 * 2**20
        stop.set()


async def test_whoever_leaves_is_missed_though_the_server_reads_nothing() -> None:
    stop, left = asyncio.Event(), asyncio.Event()

    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while not stop.is_set():
                await asyncio.sleep(0.05)
                writer.write(b".")
                await writer.drain()
        left.set()

    async with running() as runner, listening(deaf) as port:
        async with opened(runner, port) as stranger:
            stranger.writer.write(b"x" * 2**24)
        await left.wait()
        stop.set()


async def test_whoever_leaves_ends_the_other_side() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            assert await reader.read() == b""
        gone.set()

    async with running() as runner, listening(wait) as port:
        async with opened(runner, port):
            pass
        await gone.wait()


async def test_a_hundred_at_once_and_no_more_than_the_bound() -> None:
    async with running() as runner, listening(echo) as port:
        everybody = [
            await asyncio.open_unix_connection(runner.directory / "runner.sock")
            for _ in range(ports.MAX_OPEN)
        ]
        strangers = [Stranger(*streams) for streams in everybody]
        for stranger in strangers:
            stranger.say("port", port=port)
            stranger.writer.write(b"hello")
        for stranger in strangers:
            assert await stranger.line() == {"k": "opened"}
            assert await stranger.reader.readexactly(5) == b"hello"
        async with connected(runner, "port", port=port) as refused:
            assert (await refused.line())["code"] == "too_many_connections"
        for stranger in strangers:
            stranger.writer.transport.abort()

        async def is_served() -> bool:
            async with connected(runner, "port", port=port) as again:
                return (await again.line())["k"] == "opened"

        async with asyncio.timeout(10):
            while not await is_served():
                await asyncio.sleep(0.01)


async def test_nonsense_is_answered_by_the_end_of_its_connection() -> None:
    async with running() as runner:
        for port in (0, -1, 65536, 1.5, True, "80", None, [80]):
            async with connected(runner, "port", port=port) as stranger:
                assert await stranger.reader.read() == b""
        client = await runner.attach()
        assert await client.result("list") == {"files": []}


async def test_the_runner_opens_no_descriptor_that_it_does_not_close() -> None:
    def open_descriptors(runner: RunnerProcess) -> int:
        return len(list(Path(f"/proc/{runner.process.pid}/fd").iterdir()))

    async with running() as runner, listening(echo) as port:
        async with opened(runner, port):
            pass
        client = await runner.attach()
        await client.result("list")
        before = open_descriptors(runner)
        for _ in range(50):
            async with opened(runner, port):
                pass
        await eventually(lambda: open_descriptors(runner) < before + 10)
